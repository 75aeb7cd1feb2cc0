//! Heartbeats, on a thread of their own.
//!
//! - **HB-1**: nothing that the rest of the process does can hold a heartbeat up: own thread, own
//!   async runtime, own connection.
//! - **HB-2**: a process that the coordinator has fenced stops at once.
//! - **HB-3**: a process whose heartbeats reach nobody for a whole lease stops: its lease is over.

use std::time::{Duration, Instant};

use plumb_proto::cluster::HeartbeatRequest;
use plumb_proto::cluster::cluster_service_client::ClusterServiceClient;
use tonic::transport::Endpoint;

use crate::credentials::Credentials;
use crate::error::RuntimeError;
use crate::exit::ExitCode;
use crate::identity::Identity;
use crate::memory::resident_bytes;
use crate::phase::Phase;

/// Heartbeats per lease.
const BEATS: u32 = 5;

/// Whose heartbeat it is.
#[derive(Debug, Clone)]
pub struct Beat {
    /// Agent or worker id.
    pub id: String,
    /// The worker's epoch; 0 for agents.
    pub epoch: u64,
    /// What the process is doing.
    pub phase: Phase,
    /// From the registration.
    pub lease: Duration,
}

/// Starts the thread. `lost` is called once, with the exit code and the reason, when the process
/// must stop (HB-2, HB-3).
///
/// # Errors
/// [`RuntimeError`] when the coordinator's address is no address, or there is no thread to be had.
pub fn spawn(
    coordinator: &str,
    credentials: &Credentials,
    beat: Beat,
    lost: impl FnOnce(ExitCode, String) + Send + 'static,
) -> Result<(), RuntimeError> {
    let endpoint = credentials.endpoint(coordinator, &Identity::Coordinator.server_name())?;
    let failed = |cause| RuntimeError::Thread { name: "heartbeat".to_owned(), cause };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let body = move || {
        let (code, reason) = runtime.block_on(run(endpoint, beat));
        lost(code, reason);
    };
    std::thread::Builder::new().name("heartbeat".to_owned()).spawn(body).map_err(failed)?;
    Ok(())
}

async fn run(endpoint: Endpoint, beat: Beat) -> (ExitCode, String) {
    let interval = (beat.lease / BEATS).max(Duration::from_millis(50));
    let mut client = ClusterServiceClient::new(endpoint.timeout(beat.lease / 2).connect_lazy());
    let mut renewed = Instant::now();
    let mut failures = 0_u32;
    loop {
        let request = HeartbeatRequest {
            id: beat.id.clone(),
            epoch: beat.epoch,
            phase: beat.phase.current(),
            resident_bytes: resident_bytes(),
        };
        let sent = Instant::now();
        match client.heartbeat(request).await {
            Ok(response) => {
                let response = response.into_inner();
                if response.stop {
                    return (ExitCode::Fenced, response.reason);
                }
                renewed = sent;
                failures = 0;
            }
            Err(status) => {
                failures += 1;
                // A process that was itself stopped for a while has not tried yet: count tries.
                if renewed.elapsed() > beat.lease && failures >= 3 {
                    let reason = format!(
                        "no heartbeat reached the coordinator for {} ms: {}",
                        renewed.elapsed().as_millis(),
                        status.message()
                    );
                    return (ExitCode::LeaseLost, reason);
                }
            }
        }
        tokio::time::sleep(interval).await;
    }
}
