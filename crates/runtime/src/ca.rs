//! The certificate authority of one run. Its key lives in the coordinator's memory only.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::credentials::{Credentials, fingerprint_of_pem};
use crate::error::RuntimeError;
use crate::identity::Identity;

/// Clocks of one cluster may differ by this much.
const CLOCK_SLACK: Duration = Duration::hours(1);
const VALIDITY: Duration = Duration::days(30);

/// Issues every certificate of a run.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    fingerprint: String,
}

impl CertificateAuthority {
    /// Makes a fresh CA for the run of this name.
    ///
    /// # Errors
    /// [`RuntimeError::Certificate`] when key generation fails.
    pub fn new(run: &str) -> Result<Self, RuntimeError> {
        let failed = |e: rcgen::Error| certificate_error("the run's CA", &e);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("plumb run {run}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params);
        let ca_pem = params.self_signed(&key).map_err(failed)?.pem();
        let fingerprint = fingerprint_of_pem(&ca_pem)?;
        Ok(Self { issuer: Issuer::new(params, key), ca_pem, fingerprint })
    }

    /// The CA's own certificate, PEM. Public.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// SHA-256 of the CA's certificate, hex: what a joiner pins the coordinator by.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Signs a request. Only the public key is taken from it: who the holder is, is decided
    /// here and never by the peer.
    ///
    /// # Errors
    /// [`RuntimeError::Certificate`] when the request is not a valid PKCS#10 request.
    pub fn sign(&self, csr_pem: &str, identity: &Identity) -> Result<String, RuntimeError> {
        let failed = |e: rcgen::Error| certificate_error(&identity.to_string(), &e);
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(failed)?;
        request.params = leaf_params(identity)?;
        let leaf = request.signed_by(&self.issuer).map_err(failed)?.pem();
        Ok(self.chained(&leaf))
    }

    /// Makes a key and a certificate for the coordinator itself or its command line.
    ///
    /// # Errors
    /// [`RuntimeError::Certificate`] when key generation or signing fails.
    pub fn issue(&self, identity: &Identity) -> Result<Credentials, RuntimeError> {
        let failed = |e: rcgen::Error| certificate_error(&identity.to_string(), &e);
        let key = KeyPair::generate().map_err(failed)?;
        let leaf = leaf_params(identity)?.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Credentials::new(self.chained(&leaf), key.serialize_pem(), self.ca_pem.clone())
    }

    /// Leaf, then CA: a joiner finds the pinned certificate in the chain.
    fn chained(&self, leaf_pem: &str) -> String {
        format!("{leaf_pem}{}", self.ca_pem)
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").field("fingerprint", &self.fingerprint).finish()
    }
}

/// A key and a signing request; the private key never leaves the process that made it.
pub struct KeyRequest {
    pub(crate) key_pem: String,
    /// PKCS#10, PEM.
    pub csr_pem: String,
}

impl KeyRequest {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// [`RuntimeError::Certificate`] when key generation fails.
    pub fn new() -> Result<Self, RuntimeError> {
        let failed = |e: rcgen::Error| certificate_error("a joining process", &e);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("joining");
        let csr_pem = params.serialize_request(&key).map_err(failed)?.pem().map_err(failed)?;
        Ok(Self { key_pem: key.serialize_pem(), csr_pem })
    }
}

fn leaf_params(identity: &Identity) -> Result<CertificateParams, RuntimeError> {
    let failed = |e: rcgen::Error| certificate_error(&identity.to_string(), &e);
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&identity.kind().to_string());
    params.subject_alt_names = vec![
        SanType::DnsName(identity.server_name().try_into().map_err(failed)?),
        SanType::URI(identity.to_uri().try_into().map_err(failed)?),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    set_validity(&mut params);
    Ok(params)
}

fn set_validity(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + VALIDITY;
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn certificate_error(subject: &str, error: &rcgen::Error) -> RuntimeError {
    RuntimeError::Certificate { subject: subject.to_owned(), what: error.to_string() }
}

#[cfg(test)]
mod tests {
    use plumb_domain::{Epoch, Role, WorkerId};

    use super::*;
    use crate::credentials::identity_of;

    #[test]
    fn a_signed_certificate_names_what_the_ca_says_and_not_what_the_peer_asks() {
        let ca = CertificateAuthority::new("test").unwrap();
        // The peer asks to be the coordinator.
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            vec![SanType::URI(Identity::Coordinator.to_uri().try_into().unwrap())];
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let granted = Identity::Worker {
            role: Role::Reward,
            epoch: Epoch(1),
            id: WorkerId::new("reward-0").unwrap(),
        };
        let chain = ca.sign(&csr, &granted).unwrap();
        let credentials =
            Credentials::new(chain, key.serialize_pem(), ca.ca_pem().to_owned()).unwrap();
        assert_eq!(credentials.identity(), &granted);
        assert_eq!(identity_of(&credentials.leaf_der().unwrap()).unwrap(), granted);
    }

    #[test]
    fn a_request_that_is_no_request_is_refused() {
        let ca = CertificateAuthority::new("test").unwrap();
        let error = ca.sign("not pem", &Identity::Admin).unwrap_err();
        assert!(error.to_string().starts_with("certificate for admin: "), "{error}");
    }
}
