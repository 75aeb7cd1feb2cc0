//! A process's certificate and key, and the TLS settings made from them.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity as Pem, ServerTlsConfig};
use x509_parser::extensions::GeneralName;

use crate::error::RuntimeError;
use crate::identity::Identity;
use crate::pin::PinnedCa;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest message of a unary call; bulk goes through the object service in chunks.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Certificate chain, private key and CA of one process. Cheap to clone.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Credentials {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    identity: Identity,
    stored: Stored,
}

/// As written to the 0600 file that the command line reads.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    certificate_pem: String,
    key_pem: String,
    ca_pem: String,
}

impl Credentials {
    /// Takes PEM texts; `certificate_pem` is the chain, leaf first.
    ///
    /// # Errors
    /// [`RuntimeError`] when the leaf does not parse or names no identity.
    pub fn new(
        certificate_pem: String,
        key_pem: String,
        ca_pem: String,
    ) -> Result<Self, RuntimeError> {
        let leaf = first_certificate(&certificate_pem)?;
        let identity = identity_of(&leaf)?;
        let stored = Stored { certificate_pem, key_pem, ca_pem };
        Ok(Self { inner: Arc::new(Inner { identity, stored }) })
    }

    /// Who these are for.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The leaf certificate, DER.
    ///
    /// # Errors
    /// [`RuntimeError::Certificate`] when the PEM does not parse.
    pub fn leaf_der(&self) -> Result<CertificateDer<'static>, RuntimeError> {
        first_certificate(&self.inner.stored.certificate_pem)
    }

    /// Server side: clients are asked for a certificate of this run's CA. `join_allowed` lets a
    /// client without one finish the handshake; the permission table then lets it call `Join`
    /// and nothing else.
    #[must_use]
    pub fn server_tls(&self, join_allowed: bool) -> ServerTlsConfig {
        let stored = &self.inner.stored;
        ServerTlsConfig::new()
            .identity(Pem::from_pem(&stored.certificate_pem, &stored.key_pem))
            .client_ca_root(Certificate::from_pem(&stored.ca_pem))
            .client_auth_optional(join_allowed)
    }

    /// Client side: an endpoint that only the process called `server_name` can answer.
    ///
    /// # Errors
    /// [`RuntimeError::Address`] when the address is not `host:port`.
    pub fn endpoint(&self, address: &str, server_name: &str) -> Result<Endpoint, RuntimeError> {
        let stored = &self.inner.stored;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&stored.ca_pem))
            .identity(Pem::from_pem(&stored.certificate_pem, &stored.key_pem))
            .domain_name(server_name);
        plain_endpoint(address)?.tls_config(tls).map_err(|e| RuntimeError::Certificate {
            subject: self.identity().to_string(),
            what: crate::error::chain(&e),
        })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.identity())
    }
}

impl TryFrom<Stored> for Credentials {
    type Error = RuntimeError;
    fn try_from(stored: Stored) -> Result<Self, RuntimeError> {
        Self::new(stored.certificate_pem, stored.key_pem, stored.ca_pem)
    }
}

impl From<Credentials> for Stored {
    fn from(credentials: Credentials) -> Self {
        credentials.inner.stored.clone()
    }
}

/// An endpoint for a caller without a certificate: it trusts only a chain that holds the CA
/// with this SHA-256 fingerprint.
///
/// # Errors
/// [`RuntimeError::Address`] when the address is not `host:port`.
pub fn pinned_endpoint(address: &str, ca_fingerprint: &str) -> Result<Endpoint, RuntimeError> {
    let tls = ClientTlsConfig::new().domain_name(Identity::Coordinator.server_name());
    plain_endpoint(address)?
        .tls_config_with_verifier(tls, Arc::new(PinnedCa::new(ca_fingerprint)))
        .map_err(|e| RuntimeError::Certificate {
            subject: "a joining process".to_owned(),
            what: crate::error::chain(&e),
        })
}

fn plain_endpoint(address: &str) -> Result<Endpoint, RuntimeError> {
    let wrong = || RuntimeError::Address { address: address.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    Ok(Endpoint::from_shared(format!("https://{address}"))
        .map_err(|_| wrong())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20))
}

/// The identity in a leaf certificate: the one URI among its alternative names.
///
/// # Errors
/// [`RuntimeError`] when the certificate does not parse or has no such URI.
pub fn identity_of(leaf: &CertificateDer<'_>) -> Result<Identity, RuntimeError> {
    let failed = |what: String| RuntimeError::Certificate { subject: "a peer".to_owned(), what };
    let (_, certificate) =
        x509_parser::parse_x509_certificate(leaf).map_err(|e| failed(e.to_string()))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| failed(e.to_string()))?
        .ok_or_else(|| failed("it has no subject alternative name".to_owned()))?;
    let uri = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    Ok(Identity::from_uri(uri.ok_or_else(|| failed("it names no identity".to_owned()))?)?)
}

/// SHA-256 of the first certificate of a PEM text, hex.
pub(crate) fn fingerprint_of_pem(pem: &str) -> Result<String, RuntimeError> {
    Ok(fingerprint_of_der(&first_certificate(pem)?))
}

/// SHA-256 of a certificate, hex.
pub(crate) fn fingerprint_of_der(der: &CertificateDer<'_>) -> String {
    hex::encode(Sha256::digest(der))
}

fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, RuntimeError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| RuntimeError::Certificate {
        subject: "a process".to_owned(),
        what: format!("the PEM text holds no certificate: {e:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::CertificateAuthority;

    #[test]
    fn credentials_survive_their_file_and_hide_their_key() {
        let ca = CertificateAuthority::new("test").unwrap();
        let credentials = ca.issue(&Identity::Admin).unwrap();
        let text = serde_json::to_string(&credentials).unwrap();
        let back: Credentials = serde_json::from_str(&text).unwrap();
        assert_eq!(back.identity(), &Identity::Admin);
        assert!(!format!("{back:?}").contains("KEY"));
    }

    #[test]
    fn an_address_without_a_port_is_refused_by_name() {
        let ca = CertificateAuthority::new("test").unwrap();
        let credentials = ca.issue(&Identity::Admin).unwrap();
        for bad in ["localhost", ":1", "h:port", "h:70000", ""] {
            let error = credentials.endpoint(bad, "x.plumb.internal").unwrap_err();
            assert!(error.to_string().contains("expected host:port"), "{error}");
        }
    }
}
