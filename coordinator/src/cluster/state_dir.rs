//! Files that a coordinator leaves for its command line and for agents: 0600, written whole.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use plumb_domain::AgentId;
use plumb_runtime::{Credentials, Identity};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use super::error::ClusterError;

/// What a command line needs to reach a coordinator: `<state>/admin.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminAccess {
    /// Where the coordinator listens.
    pub coordinator: String,
    /// An admin's certificate and key.
    pub credentials: Credentials,
}

/// What an agent needs to join: `<state>/tokens/<agent>.json`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentToken {
    /// Where the coordinator listens.
    pub coordinator: String,
    /// The agent that the token is for.
    pub agent_id: AgentId,
    /// SHA-256 of the run's CA certificate, hex.
    pub ca_fingerprint: String,
    /// Single use.
    pub join_token: String,
    /// When it expires, seconds since 1970.
    pub expires_unix_secs: u64,
}

impl std::fmt::Debug for AgentToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AgentToken({} at {})", self.agent_id, self.coordinator)
    }
}

impl AdminAccess {
    /// Reads `<state>/admin.json`.
    ///
    /// # Errors
    /// [`ClusterError`] names the file and what is wrong with it.
    pub fn read(state_dir: &Path) -> Result<Self, ClusterError> {
        read(&admin_file(state_dir))
    }

    /// Connects to the coordinator; only the holder of its certificate can answer.
    ///
    /// # Errors
    /// [`ClusterError::Runtime`] when nobody answers.
    pub async fn connect(&self) -> Result<Channel, ClusterError> {
        let endpoint =
            self.credentials.endpoint(&self.coordinator, &Identity::Coordinator.server_name())?;
        let connected = endpoint.connect().await;
        Ok(connected.map_err(|e| plumb_runtime::RuntimeError::Connect {
            peer: "the coordinator".to_owned(),
            address: self.coordinator.clone(),
            what: plumb_runtime::chain(&e),
        })?)
    }
}

impl AgentToken {
    /// Reads a token file.
    ///
    /// # Errors
    /// [`ClusterError`] names the file; its text is not quoted.
    pub fn read(path: &Path) -> Result<Self, ClusterError> {
        read(path)
    }

    /// Reads the JSON text of a token, for example a line of stdin. The text is not quoted in
    /// errors.
    ///
    /// # Errors
    /// [`ClusterError::Malformed`].
    pub fn parse(text: &str, from: &Path) -> Result<Self, ClusterError> {
        parse(text, from)
    }
}

/// Where the admin's access lies.
#[must_use]
pub fn admin_file(state_dir: &Path) -> PathBuf {
    state_dir.join("admin.json")
}

/// Where the token of an agent lies.
#[must_use]
pub fn token_file(state_dir: &Path, agent: &AgentId) -> PathBuf {
    state_dir.join("tokens").join(format!("{}.json", file_stem(agent.as_str())))
}

/// An id as a file name: ids may hold `/` and `:`.
#[must_use]
pub fn file_stem(id: &str) -> String {
    id.replace(['/', ':'], "_")
}

/// Makes a folder that only its owner may enter.
pub(crate) fn make_private_folder(path: &Path) -> Result<(), ClusterError> {
    let built = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    built.map_err(|cause| ClusterError::State {
        what: "make the folder",
        path: path.to_owned(),
        cause,
    })
}

/// Writes a secret: a new file of mode 0600, renamed into place when it is whole.
pub(crate) fn write_private(path: &Path, value: &impl Serialize) -> Result<(), ClusterError> {
    let failed = |what| move |cause| ClusterError::State { what, path: path.to_owned(), cause };
    let text = serde_json::to_vec_pretty(value)
        .map_err(|e| ClusterError::Malformed { path: path.to_owned(), what: e.to_string() })?;
    let part = path.with_extension(format!("json.part-{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&part).map_err(failed("write"))?;
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    if let Err(cause) = written.and_then(|()| std::fs::rename(&part, path)) {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&part);
        return Err(failed("write")(cause));
    }
    Ok(())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ClusterError> {
    let text = std::fs::read_to_string(path).map_err(|cause| ClusterError::State {
        what: "read",
        path: path.to_owned(),
        cause,
    })?;
    parse(&text, path)
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ClusterError> {
    serde_json::from_str(text).map_err(|e| ClusterError::Malformed {
        path: path.to_owned(),
        // The parser's own message could quote a secret.
        what: format!("line {} column {}: unexpected JSON", e.line(), e.column()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_written_whole_and_for_their_owner_only() {
        let folder = std::env::temp_dir().join(format!("plumb-state-{}", std::process::id()));
        make_private_folder(&folder.join("tokens")).unwrap();
        let token = AgentToken {
            coordinator: "127.0.0.1:1".into(),
            agent_id: AgentId::new("rack/1").unwrap(),
            ca_fingerprint: "ab".into(),
            join_token: "s3cret".into(),
            expires_unix_secs: 1,
        };
        let path = token_file(&folder, &token.agent_id);
        write_private(&path, &token).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let back = AgentToken::read(&path).unwrap();
        assert_eq!(back.join_token, "s3cret");
        assert!(!format!("{back:?}").contains("s3cret"));
        let files = std::fs::read_dir(folder.join("tokens")).unwrap().count();
        assert_eq!(files, 1, "a temporary file was left");
        std::fs::write(&path, "{\"join_token\": \"s3cret\", \"x\": 1}").unwrap();
        let error = AgentToken::read(&path).unwrap_err().to_string();
        assert!(error.contains("is not a file that a coordinator wrote"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
