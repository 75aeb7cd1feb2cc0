//! What every process of a Plumbline cluster shares: identity and TLS, joining, heartbeats, the
//! device thread, the object store, idempotent calls, the rendezvous client, and an orderly end.
//!
//! A worker's `main` is a few lines:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use plumb_runtime::{Bootstrap, DeviceThread, GroupPlace, Worker, WorkerHooks};
//! # struct Role;
//! # #[tonic::async_trait]
//! # impl WorkerHooks for Role {
//! #     async fn init_group(&self, _: GroupPlace) -> Result<(), tonic::Status> { Ok(()) }
//! #     async fn abort_group(&self, _: &str) -> Result<(), tonic::Status> { Ok(()) }
//! # }
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let bootstrap = Bootstrap::from_stdin()?;
//! let worker = Worker::start(bootstrap).await?;
//! let context = worker.context().clone();
//! let device = DeviceThread::spawn(context.worker_id().as_str(), || 0_u64)?;
//! let role = Arc::new(Role); // holds `context` and `device`
//! # drop(device);
//! worker.serve(role, tonic::service::Routes::default()).await?; // role's services go in here
//! # Ok(()) }
//! ```
//!
//! Invariants are numbered where they are kept: EP and ID in [`idempotent`], PE in
//! [`permission`], OB in [`object`], DE in [`device`], HB in [`heartbeat`]. Tests cite them.
//! This crate knows no tensors.

pub mod bootstrap;
mod ca;
pub mod credentials;
pub mod device;
mod error;
pub mod exit;
pub mod heartbeat;
pub mod idempotent;
pub mod identity;
mod join;
pub mod memory;
pub mod object;
pub mod peers;
pub mod permission;
pub mod phase;
mod pin;
pub mod rendezvous;
pub mod server;
mod worker;
mod worker_service;

pub use bootstrap::Bootstrap;
pub use ca::{CertificateAuthority, KeyRequest};
pub use credentials::{Credentials, MAX_MESSAGE_BYTES};
pub use device::{DeviceError, DeviceThread};
pub use error::{RuntimeError, chain};
pub use idempotent::Idempotent;
pub use identity::{Identity, PeerKind};
pub use join::join;
pub use memory::{MemoryProbe, ProbeFunctions, ResidentMemory};
pub use object::ObjectStore;
pub use peers::Peers;
pub use phase::{Phase, PhaseGuard};
pub use rendezvous::{Rendezvous, RendezvousError};
pub use worker::{Worker, WorkerContext};
pub use worker_service::{Backend, GroupPlace, WorkerHooks};
