//! Blocking client of the coordinator's rendezvous store.
//!
//! Collective backends call it from the device thread and from threads of their own, so it must
//! work outside any async runtime: a thread of its own does the I/O.

use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use plumb_proto::cluster::cluster_service_client::ClusterServiceClient;
use plumb_proto::cluster::{StoreAddRequest, StoreDeleteRequest, StoreGetRequest, StoreSetRequest};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::credentials::Credentials;
use crate::error::RuntimeError;
use crate::identity::Identity;

/// Room for the reply to travel after the server's own timeout.
const REPLY_SLACK: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the store gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RendezvousError {
    /// Keys that nobody set in time.
    #[error("rendezvous of group {group} (epoch {epoch}) timed out: {message}")]
    TimedOut {
        /// The collective group.
        group: String,
        /// Its epoch.
        epoch: u64,
        /// The missing keys and the time waited.
        message: String,
    },
    /// The coordinator refused, or cannot be reached.
    #[error("rendezvous of group {group} (epoch {epoch}) failed: {message}")]
    Failed {
        /// The collective group.
        group: String,
        /// Its epoch.
        epoch: u64,
        /// The coordinator's reason, or the transport's.
        message: String,
    },
}

type Client = ClusterServiceClient<Channel>;
type Job = Box<dyn FnOnce(Client) -> futures::future::BoxFuture<'static, ()> + Send>;

/// The thread that talks to the coordinator. One per process is enough.
#[derive(Clone, Debug)]
pub(crate) struct RendezvousThread {
    jobs: mpsc::UnboundedSender<Job>,
}

impl RendezvousThread {
    pub(crate) fn spawn(
        coordinator: &str,
        credentials: &Credentials,
    ) -> Result<Self, RuntimeError> {
        let endpoint = credentials.endpoint(coordinator, &Identity::Coordinator.server_name())?;
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let failed = |cause| RuntimeError::Thread { name: "rendezvous".to_owned(), cause };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let body = move || {
            runtime.block_on(async move {
                let client = Client::new(endpoint.connect_lazy());
                while let Some(job) = queue.recv().await {
                    tokio::spawn(job(client.clone()));
                }
            });
        };
        std::thread::Builder::new().name("rendezvous".to_owned()).spawn(body).map_err(failed)?;
        Ok(Self { jobs })
    }

    pub(crate) fn store(&self, group: &str, epoch: u64) -> Rendezvous {
        Rendezvous { jobs: self.jobs.clone(), group: group.to_owned(), epoch }
    }
}

/// The keys of one collective group at one epoch. Calls block the calling thread; never call it
/// from async code.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    jobs: mpsc::UnboundedSender<Job>,
    group: String,
    epoch: u64,
}

impl Rendezvous {
    /// Sets a key.
    ///
    /// # Errors
    /// [`RendezvousError`] naming group and epoch.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), RendezvousError> {
        let request = StoreSetRequest {
            group: self.group.clone(),
            epoch: self.epoch,
            key: key.to_owned(),
            value: value.to_vec(),
        };
        self.call(CALL_TIMEOUT, |mut c| async move { c.store_set(request).await }).map(|_| ())
    }

    /// Waits until every key is set and returns the values in the order of the keys.
    ///
    /// # Errors
    /// [`RendezvousError::TimedOut`] names the missing keys.
    pub fn get(
        &self,
        keys: &[impl AsRef<str>],
        timeout: Duration,
    ) -> Result<Vec<Vec<u8>>, RendezvousError> {
        let request = StoreGetRequest {
            group: self.group.clone(),
            epoch: self.epoch,
            keys: keys.iter().map(|k| k.as_ref().to_owned()).collect(),
            timeout_millis: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        };
        let reply =
            self.call(timeout + REPLY_SLACK, |mut c| async move { c.store_get(request).await })?;
        Ok(reply.values)
    }

    /// Waits until every key is set.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn wait(&self, keys: &[impl AsRef<str>], timeout: Duration) -> Result<(), RendezvousError> {
        self.get(keys, timeout).map(|_| ())
    }

    /// Whether every key is set now.
    ///
    /// # Errors
    /// [`RendezvousError::Failed`] when the coordinator gave no answer.
    pub fn check(&self, keys: &[impl AsRef<str>]) -> Result<bool, RendezvousError> {
        match self.get(keys, Duration::ZERO) {
            Ok(_) => Ok(true),
            Err(RendezvousError::TimedOut { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Adds to a counter (0 when it does not exist) and returns the sum.
    ///
    /// # Errors
    /// [`RendezvousError`]; among others when the key holds no number.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, RendezvousError> {
        let request = StoreAddRequest {
            group: self.group.clone(),
            epoch: self.epoch,
            key: key.to_owned(),
            amount,
        };
        self.call(CALL_TIMEOUT, |mut c| async move { c.store_add(request).await }).map(|r| r.value)
    }

    /// Removes a key; returns whether it was there.
    ///
    /// # Errors
    /// [`RendezvousError`] naming group and epoch.
    pub fn delete(&self, key: &str) -> Result<bool, RendezvousError> {
        let request = StoreDeleteRequest {
            group: self.group.clone(),
            epoch: self.epoch,
            key: key.to_owned(),
        };
        self.call(CALL_TIMEOUT, |mut c| async move { c.store_delete(request).await })
            .map(|r| r.existed)
    }

    /// The collective group that the keys belong to.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    fn call<R, F, W>(&self, timeout: Duration, make: F) -> Result<R, RendezvousError>
    where
        R: Send + 'static,
        F: FnOnce(Client) -> W + Send + 'static,
        W: Future<Output = Result<tonic::Response<R>, Status>> + Send + 'static,
    {
        let (reply, result) = std_mpsc::sync_channel(1);
        let job: Job = Box::new(move |client| {
            Box::pin(async move {
                // The caller may have given up.
                let _ = reply.send(make(client).await);
            })
        });
        self.jobs.send(job).map_err(|_| self.failed("the rendezvous thread has ended"))?;
        match result.recv_timeout(timeout) {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(self.failed(&format!("no answer within {} s", timeout.as_secs()))),
        }
    }

    fn error(&self, status: &Status) -> RendezvousError {
        if status.code() == Code::DeadlineExceeded {
            return RendezvousError::TimedOut {
                group: self.group.clone(),
                epoch: self.epoch,
                message: status.message().to_owned(),
            };
        }
        self.failed(status.message())
    }

    fn failed(&self, message: &str) -> RendezvousError {
        RendezvousError::Failed {
            group: self.group.clone(),
            epoch: self.epoch,
            message: message.to_owned(),
        }
    }
}
