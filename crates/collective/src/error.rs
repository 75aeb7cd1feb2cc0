use std::fmt;

/// A collective that failed. Names group, rank and operation, and the peers at fault where they
/// can be found.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CollectiveError {
    /// Not all ranks came together.
    #[error(
        "group {group:?}, rank {rank} of {world_size}: {} did not join within {timeout_secs} s",
        Ranks(absent)
    )]
    Join {
        /// The group.
        group: String,
        /// This rank.
        rank: usize,
        /// Ranks in the group.
        world_size: usize,
        /// The ranks that did not come.
        absent: Vec<usize>,
        /// The time limit in seconds.
        timeout_secs: f64,
    },
    /// A peer is gone or hangs.
    #[error(
        "group {group:?}, rank {rank} of {world_size}: {operation} (number {sequence}) failed: \
         {}: {cause} (time limit {timeout_secs} s)",
        Absent(absent)
    )]
    Peer {
        /// The group.
        group: String,
        /// This rank.
        rank: usize,
        /// Ranks in the group.
        world_size: usize,
        /// What failed.
        operation: &'static str,
        /// Its number in the group, from 0.
        sequence: u64,
        /// The ranks that are dead, hang or did not come to this operation. Empty when all ranks
        /// report the failure, that is when only the connection between them broke.
        absent: Vec<usize>,
        /// What the backend said.
        cause: String,
        /// The time limit in seconds.
        timeout_secs: f64,
    },
    /// [`crate::Collective::abort`] was called, or an earlier operation of the group failed.
    #[error("group {group:?}, rank {rank}: {operation} was not done: the group was aborted")]
    Aborted {
        /// The group.
        group: String,
        /// This rank.
        rank: usize,
        /// What was not done.
        operation: &'static str,
    },
    /// Operands that do not fit, or ranks that do not do the same thing.
    #[error("group {group:?}, rank {rank}: {operation}: {reason}")]
    Misuse {
        /// The group.
        group: String,
        /// This rank.
        rank: usize,
        /// What was refused.
        operation: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The backend cannot be used on this machine or this device.
    #[error("group {group:?}, rank {rank}: {backend} backend: {reason}")]
    Backend {
        /// The group.
        group: String,
        /// This rank.
        rank: usize,
        /// The backend.
        backend: &'static str,
        /// What it said.
        reason: String,
    },
}

impl CollectiveError {
    /// The ranks that this error holds responsible; empty where none can be named.
    #[must_use]
    pub fn absent(&self) -> &[usize] {
        match self {
            Self::Join { absent, .. } | Self::Peer { absent, .. } => absent,
            _ => &[],
        }
    }
}

/// "rank 3", "ranks 1, 3".
struct Ranks<'a>(&'a [usize]);

impl fmt::Display for Ranks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "rank{} {}", if list.len() == 1 { "" } else { "s" }, list.join(", "))
    }
}

struct Absent<'a>(&'a [usize]);

impl fmt::Display for Absent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("every rank is alive but the connection broke")
        } else {
            write!(f, "{} did not arrive", Ranks(self.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_group_rank_operation_and_peers() {
        let mut error = CollectiveError::Peer {
            group: "policy".to_owned(),
            rank: 0,
            world_size: 4,
            operation: "all-reduce",
            sequence: 17,
            absent: vec![1, 3],
            cause: "connection closed".to_owned(),
            timeout_secs: 30.0,
        };
        assert_eq!(
            error.to_string(),
            "group \"policy\", rank 0 of 4: all-reduce (number 17) failed: ranks 1, 3 did not \
             arrive: connection closed (time limit 30 s)"
        );
        assert_eq!(error.absent(), [1, 3]);
        if let CollectiveError::Peer { absent, .. } = &mut error {
            absent.clear();
        }
        assert!(error.to_string().contains("every rank is alive"), "{error}");
    }
}
