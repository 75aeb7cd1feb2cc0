//! A listener with TLS, the permission table and graceful stop.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::credentials::Credentials;
use crate::error::{RuntimeError, chain};
use crate::permission::PermissionLayer;

/// Open streams get this long to finish once a server has been told to stop.
const DRAIN: Duration = Duration::from_millis(500);

/// Binds a listener; port 0 lets the system choose.
///
/// # Errors
/// [`RuntimeError::Listen`] names the address; a port in use says what to do.
pub async fn listen(address: &str) -> Result<(TcpListener, SocketAddr), RuntimeError> {
    let failed =
        |cause: std::io::Error| RuntimeError::Listen { address: address.to_owned(), cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}

/// Serves until `stop` resolves, then drains for half a second.
///
/// `join_allowed` is for the coordinator: its listener admits clients without a certificate, and
/// the permission table limits them to `Join`.
///
/// # Errors
/// [`RuntimeError::Serve`] when TLS cannot be set up or the listener fails.
pub async fn serve(
    listener: TcpListener,
    credentials: &Credentials,
    join_allowed: bool,
    routes: Routes,
    stop: impl Future<Output = ()>,
) -> Result<(), RuntimeError> {
    let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
    let failed = |e: tonic::transport::Error| RuntimeError::Serve {
        address: address.clone(),
        what: chain(&e),
    };
    let (begun, stopping) = tokio::sync::oneshot::channel::<()>();
    let signal = async move {
        stop.await;
        drop(begun);
    };
    let server = Server::builder()
        .tls_config(credentials.server_tls(join_allowed))
        .map_err(failed)?
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .layer(PermissionLayer)
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), signal);
    let drained = async {
        // Resolves with an error when the sender is dropped, which is the signal.
        let _ = stopping.await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = server => result.map_err(failed),
        () = drained => Ok(()),
    }
}
