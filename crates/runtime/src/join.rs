//! From a join token to a certificate.

use std::time::Duration;

use plumb_proto::cluster::JoinRequest;
use plumb_proto::cluster::cluster_service_client::ClusterServiceClient;
use tonic::Code;

use crate::ca::KeyRequest;
use crate::credentials::{Credentials, fingerprint_of_pem, pinned_endpoint};
use crate::error::{RuntimeError, chain};

const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes a key, sends its signing request with the token, and returns the certificate.
///
/// The coordinator is known by the fingerprint of its CA: a server that cannot show that CA and
/// a coordinator's certificate signed by it never sees the token.
///
/// # Errors
/// [`RuntimeError::Connect`] when nobody (or somebody else) answers, and
/// [`RuntimeError::JoinRefused`] when the token is unknown, used or expired.
pub async fn join(
    coordinator: &str,
    ca_fingerprint: &str,
    token: &str,
) -> Result<Credentials, RuntimeError> {
    let request = KeyRequest::new()?;
    let channel =
        pinned_endpoint(coordinator, ca_fingerprint)?.timeout(JOIN_TIMEOUT).connect().await;
    let channel = channel.map_err(|e| connect_error(coordinator, chain(&e)))?;
    let response = ClusterServiceClient::new(channel)
        .join(JoinRequest { token: token.to_owned(), csr_pem: request.csr_pem.clone() })
        .await
        .map_err(|status| match status.code() {
            Code::Unavailable | Code::Unknown => {
                connect_error(coordinator, status.message().to_owned())
            }
            _ => RuntimeError::JoinRefused {
                address: coordinator.to_owned(),
                message: status.message().to_owned(),
            },
        })?
        .into_inner();
    if fingerprint_of_pem(&response.ca_pem)? != ca_fingerprint.to_ascii_lowercase() {
        return Err(connect_error(coordinator, "it answered with another run's CA".to_owned()));
    }
    Credentials::new(response.certificate_pem, request.key_pem, response.ca_pem)
}

fn connect_error(address: &str, what: String) -> RuntimeError {
    let what = if what.contains("UnknownIssuer") {
        format!("{what} (its CA is not the one that the token names: a token of another run?)")
    } else {
        what
    };
    RuntimeError::Connect { peer: "the coordinator".to_owned(), address: address.to_owned(), what }
}
