//! Bulk results stay with their producer; consumers fetch them from it.
//!
//! - **OB-1**: a reference bears the digest of the bytes; a fetch that does not match it fails.
//! - **OB-2**: references die with their step: `Release(step)` drops every object up to it.
//! - **OB-3**: an object is never changed; putting other bytes under a living id is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use futures::stream::BoxStream;
use plumb_domain::WorkerId;
use plumb_proto::Message;
use plumb_proto::object::object_service_server::ObjectService;
use plumb_proto::object::{FetchChunk, FetchRequest, ObjectRef, ReleaseRequest, ReleaseResponse};
use tonic::{Request, Response, Status};

/// Size of one message of a fetch stream.
const CHUNK_BYTES: usize = 256 << 10;

/// The objects of one process. Cheap to clone.
#[derive(Clone)]
pub struct ObjectStore {
    owner: WorkerId,
    address: String,
    objects: Arc<RwLock<BTreeMap<String, Stored>>>,
}

struct Stored {
    step: u64,
    bytes: Bytes,
    digest: blake3::Hash,
}

impl ObjectStore {
    pub(crate) fn new(owner: WorkerId, address: String) -> Self {
        Self { owner, address, objects: Arc::default() }
    }

    /// Keeps bytes under `<step>/<name>` until the step is released.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` when other bytes live under that id (OB-3).
    pub fn put(&self, step: u64, name: &str, bytes: Bytes) -> Result<ObjectRef, Status> {
        let id = format!("{step}/{name}");
        let digest = blake3::hash(&bytes);
        let reference = ObjectRef {
            owner: self.owner.to_string(),
            address: self.address.clone(),
            id: id.clone(),
            bytes: bytes.len() as u64,
            digest: digest.to_hex().to_string(),
        };
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        if objects.get(&id).is_some_and(|old| old.digest != digest) {
            return Err(Status::already_exists(format!(
                "OB-3: {} already holds other bytes under object {id}",
                self.owner
            )));
        }
        objects.insert(id, Stored { step, bytes, digest });
        Ok(reference)
    }

    /// [`put`](Self::put) of an encoded message.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_message(
        &self,
        step: u64,
        name: &str,
        message: &impl Message,
    ) -> Result<ObjectRef, Status> {
        self.put(step, name, message.encode_to_vec().into())
    }

    /// The bytes of a living object of this process.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Bytes> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(id).map(|stored| stored.bytes.clone())
    }

    /// Drops every object of the steps up to and including `step`; returns how many.
    pub fn release_up_to(&self, step: u64) -> u32 {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let before = objects.len();
        objects.retain(|_, stored| stored.step > step);
        u32::try_from(before - objects.len()).unwrap_or(u32::MAX)
    }

    /// Drops one step's objects, for a replay that makes them anew; returns how many.
    pub fn forget_step(&self, step: u64) -> u32 {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let before = objects.len();
        objects.retain(|_, stored| stored.step != step);
        u32::try_from(before - objects.len()).unwrap_or(u32::MAX)
    }

    /// Who owns what is put here.
    #[must_use]
    pub fn owner(&self) -> &WorkerId {
        &self.owner
    }
}

#[tonic::async_trait]
impl ObjectService for ObjectStore {
    type FetchStream = BoxStream<'static, Result<FetchChunk, Status>>;

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let id = request.into_inner().id;
        let bytes = self.get(&id).ok_or_else(|| {
            Status::not_found(format!("{} holds no object {id}: released or lost", self.owner))
        })?;
        let chunks = (0..bytes.len()).step_by(CHUNK_BYTES).map(move |from| {
            let to = (from + CHUNK_BYTES).min(bytes.len());
            Ok(FetchChunk { data: bytes.slice(from..to).to_vec() })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let released = self.release_up_to(request.into_inner().up_to_step);
        Ok(Response::new(ReleaseResponse { released }))
    }
}

/// Checks what a fetch brought against its reference (OB-1).
pub(crate) fn verify(reference: &ObjectRef, bytes: &[u8]) -> Result<(), Status> {
    if bytes.len() as u64 != reference.bytes {
        return Err(Status::data_loss(format!(
            "OB-1: object {} of {} has {} bytes, its reference says {}",
            reference.id,
            reference.owner,
            bytes.len(),
            reference.bytes
        )));
    }
    let digest = blake3::hash(bytes).to_hex();
    if digest.as_str() != reference.digest {
        return Err(Status::data_loss(format!(
            "OB-1: object {} of {} has BLAKE3 digest {digest}, its reference says {}",
            reference.id, reference.owner, reference.digest
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> ObjectStore {
        ObjectStore::new(WorkerId::new("rollout-0").unwrap(), "127.0.0.1:1".into())
    }

    #[test]
    fn ob_1_bytes_that_differ_from_their_reference_are_refused() {
        let reference = store().put(0, "p", Bytes::from_static(b"abc")).unwrap();
        assert!(verify(&reference, b"abc").is_ok());
        let short = verify(&reference, b"ab").unwrap_err();
        assert_eq!(
            short.message(),
            "OB-1: object 0/p of rollout-0 has 2 bytes, its reference says 3"
        );
        assert!(verify(&reference, b"abd").unwrap_err().message().contains("BLAKE3 digest"));
    }

    #[test]
    fn ob_2_release_drops_the_step_and_those_before_it() {
        let store = store();
        for step in 0..4 {
            store.put(step, "p", Bytes::from_static(b"x")).unwrap();
        }
        assert_eq!(store.release_up_to(1), 2);
        assert!(store.get("1/p").is_none());
        assert!(store.get("2/p").is_some());
        assert_eq!(store.forget_step(3), 1);
        assert!(store.get("3/p").is_none());
    }

    #[test]
    fn ob_3_an_object_is_never_changed() {
        let store = store();
        store.put(0, "p", Bytes::from_static(b"x")).unwrap();
        assert!(store.put(0, "p", Bytes::from_static(b"x")).is_ok());
        let error = store.put(0, "p", Bytes::from_static(b"y")).unwrap_err();
        assert!(error.message().starts_with("OB-3: rollout-0 already holds"), "{error}");
    }
}
