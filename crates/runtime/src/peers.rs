//! Connections to other processes, kept and shared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use plumb_domain::WorkerId;
use plumb_proto::Message;
use plumb_proto::object::object_service_client::ObjectServiceClient;
use plumb_proto::object::{FetchRequest, ObjectRef};
use tonic::Status;
use tonic::transport::Channel;

use crate::credentials::Credentials;
use crate::error::RuntimeError;
use crate::identity::worker_server_name;
use crate::object::verify;

/// Channels by (address, name of the process that must answer). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {
    credentials: Credentials,
    channels: Arc<Mutex<BTreeMap<(String, String), Channel>>>,
}

impl Peers {
    /// Connections made with these credentials.
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, channels: Arc::default() }
    }

    /// This process's own credentials.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// A channel that only the process with this name can answer. It connects on first use.
    ///
    /// # Errors
    /// [`RuntimeError::Address`] when the address is not `host:port`.
    pub fn channel(&self, address: &str, server_name: &str) -> Result<Channel, RuntimeError> {
        let key = (address.to_owned(), server_name.to_owned());
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let channel = self.credentials.endpoint(address, server_name)?.connect_lazy();
        channels.insert(key, channel.clone());
        Ok(channel)
    }

    /// A channel to a worker.
    ///
    /// # Errors
    /// [`RuntimeError::Address`] when the address is not `host:port`.
    pub fn worker(&self, address: &str, id: &WorkerId) -> Result<Channel, RuntimeError> {
        self.channel(address, &worker_server_name(id))
    }

    /// Drops the channels to an address whose process is gone.
    pub fn forget(&self, address: &str) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|(known, _), _| known != address);
    }

    /// Fetches an object from its owner and checks size and digest (OB-1).
    ///
    /// # Errors
    /// The owner's status, `DATA_LOSS` on a mismatch, `INVALID_ARGUMENT` for a reference that
    /// names no valid owner or address. Messages name the object and its owner.
    pub async fn fetch(&self, reference: &ObjectRef) -> Result<Bytes, Status> {
        let wrong =
            |e: String| Status::invalid_argument(format!("object reference {}: {e}", reference.id));
        let owner = WorkerId::new(reference.owner.clone()).map_err(|e| wrong(e.to_string()))?;
        let channel = self.worker(&reference.address, &owner).map_err(|e| wrong(e.to_string()))?;
        let context = |status: Status| {
            let text = format!("fetch of {} from {owner}: {}", reference.id, status.message());
            Status::new(status.code(), text)
        };
        let mut stream = ObjectServiceClient::new(channel)
            .fetch(FetchRequest { id: reference.id.clone() })
            .await
            .map_err(context)?
            .into_inner();
        // The size is the peer's word: grow with what comes instead of trusting it.
        let mut bytes = BytesMut::new();
        while let Some(chunk) = stream.message().await.map_err(context)? {
            bytes.extend_from_slice(&chunk.data);
            if bytes.len() as u64 > reference.bytes {
                break;
            }
        }
        verify(reference, &bytes)?;
        Ok(bytes.freeze())
    }

    /// [`fetch`](Self::fetch), decoded.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), and `DATA_LOSS` when the bytes are not such a message.
    pub async fn fetch_message<M: Message + Default>(
        &self,
        reference: &ObjectRef,
    ) -> Result<M, Status> {
        decode(reference, &self.fetch(reference).await?)
    }
}

pub(crate) fn decode<M: Message + Default>(
    reference: &ObjectRef,
    bytes: &[u8],
) -> Result<M, Status> {
    M::decode(bytes).map_err(|e| {
        Status::data_loss(format!("object {} of {}: {e}", reference.id, reference.owner))
    })
}
