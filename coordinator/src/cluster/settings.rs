//! How a cluster is run.

use std::path::PathBuf;
use std::time::Duration;

use plumb_domain::AgentId;

/// Settings of a coordinator's cluster side.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// `host:port`; port 0 lets the system choose. Loopback unless the operator says otherwise.
    pub listen: String,
    /// Holds `admin.json`, `tokens/` and `audit.jsonl`; made if need be.
    pub state_dir: PathBuf,
    /// The run's name in its CA certificate.
    pub run: String,
    /// How long an agent or worker may be silent.
    pub lease: Duration,
    /// Life of an agent's join token.
    pub token_life: Duration,
    /// Agents for which a token file is written at the start.
    pub agents: Vec<AgentId>,
    /// How long a placement waits for a first agent.
    pub agent_wait: Duration,
    /// How long a worker that is stopped in an orderly way has before it is killed.
    pub grace: Duration,
}

impl ClusterSettings {
    /// Defaults for one machine: loopback, a port of the system's choice, 10 s leases.
    #[must_use]
    pub fn local(state_dir: PathBuf, run: impl Into<String>, agents: Vec<AgentId>) -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            state_dir,
            run: run.into(),
            lease: Duration::from_secs(10),
            token_life: Duration::from_secs(3_600),
            agents,
            agent_wait: Duration::from_secs(30),
            grace: Duration::from_secs(3),
        }
    }
}
