//! Who a process is, as its certificate says it.

use std::fmt;
use std::str::FromStr;

use plumb_domain::{AgentId, Epoch, Role, WorkerId};

/// Names below this domain are only ever looked up in certificates, never in DNS.
const DOMAIN: &str = "plumb.internal";
const SCHEME: &str = "plumb:";

/// The holder of a certificate of this run's CA.
///
/// It stands in the certificate as the URI `plumb:<identity>`, for example
/// `plumb:worker/policy/2/policy-0` (role, epoch, worker id).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The one coordinator.
    Coordinator,
    /// One node's agent.
    Agent(AgentId),
    /// One life of one worker process; a restart has a new epoch and so a new certificate.
    Worker {
        /// What its group does.
        role: Role,
        /// The epoch that this process was started under.
        epoch: Epoch,
        /// Its slot.
        id: WorkerId,
    },
    /// A person's command line.
    Admin,
}

/// A certificate, or a token, with an identity that this system does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an identity: expected coordinator, admin, agent/<id> or worker/<role>/<epoch>/<id>"
)]
pub struct IdentityError(pub String);

impl Identity {
    /// The URI that stands in the certificate.
    #[must_use]
    pub fn to_uri(&self) -> String {
        format!("{SCHEME}{self}")
    }

    /// Reads the URI of a certificate.
    ///
    /// # Errors
    /// [`IdentityError`] with the text as it stands.
    pub fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        uri.strip_prefix(SCHEME).ok_or_else(|| IdentityError(uri.to_owned()))?.parse()
    }

    /// The DNS name in this identity's certificate. A client that names it cannot be answered
    /// by any other process, whatever address it dials.
    #[must_use]
    pub fn server_name(&self) -> String {
        match self {
            Self::Coordinator => format!("coordinator.{DOMAIN}"),
            Self::Agent(id) => agent_server_name(id),
            Self::Worker { id, .. } => worker_server_name(id),
            Self::Admin => format!("admin.{DOMAIN}"),
        }
    }

    /// The row of the permission table that this identity falls under.
    #[must_use]
    pub fn kind(&self) -> PeerKind {
        match self {
            Self::Coordinator => PeerKind::Coordinator,
            Self::Agent(_) => PeerKind::Agent,
            Self::Worker { .. } => PeerKind::Worker,
            Self::Admin => PeerKind::Admin,
        }
    }
}

/// Kinds of peers, as the permission table names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerKind {
    /// The coordinator.
    Coordinator,
    /// An agent.
    Agent,
    /// A worker of any role.
    Worker,
    /// A person's command line.
    Admin,
}

impl fmt::Display for PeerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "coordinator",
            Self::Agent => "agent",
            Self::Worker => "worker",
            Self::Admin => "admin",
        })
    }
}

/// The name that a worker's certificate bears, whatever its role and epoch.
#[must_use]
pub fn worker_server_name(id: &WorkerId) -> String {
    format!("{}.worker.{DOMAIN}", label(id.as_str()))
}

/// The name that an agent's certificate bears.
#[must_use]
pub fn agent_server_name(id: &AgentId) -> String {
    format!("{}.agent.{DOMAIN}", label(id.as_str()))
}

/// A DNS label for an id: readable head, and a digest because ids hold more than labels may.
fn label(id: &str) -> String {
    let readable: String = id
        .chars()
        .take(32)
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    format!("{}-{}", readable.trim_matches('-'), &blake3::hash(id.as_bytes()).to_hex()[..12])
        .trim_start_matches('-')
        .to_owned()
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Agent(id) => write!(f, "agent/{id}"),
            Self::Worker { role, epoch, id } => write!(f, "worker/{role}/{epoch}/{id}"),
            Self::Admin => f.write_str("admin"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let wrong = || IdentityError(text.to_owned());
        match text {
            "coordinator" => return Ok(Self::Coordinator),
            "admin" => return Ok(Self::Admin),
            _ => {}
        }
        if let Some(id) = text.strip_prefix("agent/") {
            return AgentId::new(id).map(Self::Agent).map_err(|_| wrong());
        }
        let rest = text.strip_prefix("worker/").ok_or_else(wrong)?;
        let mut parts = rest.splitn(3, '/');
        let (Some(role), Some(epoch), Some(id)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        Ok(Self::Worker {
            role: role.parse().map_err(|_| wrong())?,
            epoch: Epoch(epoch.parse().map_err(|_| wrong())?),
            id: WorkerId::new(id).map_err(|_| wrong())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_round_trip_through_their_uri() {
        let worker = Identity::Worker {
            role: Role::Rollout,
            epoch: Epoch(7),
            id: WorkerId::new("job-1/rollout-0").unwrap(),
        };
        assert_eq!(worker.to_uri(), "plumb:worker/rollout/7/job-1/rollout-0");
        let agent = Identity::Agent(AgentId::new("node-0").unwrap());
        for identity in [worker, agent, Identity::Coordinator, Identity::Admin] {
            assert_eq!(Identity::from_uri(&identity.to_uri()), Ok(identity));
        }
    }

    #[test]
    fn an_unknown_identity_is_refused_with_its_text() {
        for bad in ["plumb:root", "plumb:worker/policy/x/p-0", "plumb:worker/king/0/k", "admin"] {
            assert!(Identity::from_uri(bad).is_err(), "{bad} passed");
        }
    }

    #[test]
    fn ids_that_differ_in_characters_labels_cannot_hold_have_different_names() {
        let name = |id: &str| worker_server_name(&WorkerId::new(id).unwrap());
        assert_ne!(name("a/b"), name("a:b"));
        assert_ne!(name("A"), name("a"));
        assert!(name("policy-0").starts_with("policy-0-"));
        assert!(!name("-_-").starts_with('-'));
    }
}
