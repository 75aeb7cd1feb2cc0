//! Identities: strings with a checked alphabet, so that one may stand in a path or a log line.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A string that cannot be an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} {value:?} is not valid: use 1 to 128 of A-Z a-z 0-9 . _ - / :, no '..', no leading '/'"
)]
pub struct IdError {
    /// Which id was asked for.
    pub kind: &'static str,
    /// What was given.
    pub value: String,
}

fn is_valid(value: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':');
    (1..=128).contains(&value.len())
        && value.chars().all(allowed)
        && !value.starts_with('/')
        && !value.contains("..")
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the alphabet and length.
            ///
            /// # Errors
            /// [`IdError`] names the kind and the value.
            pub fn new(value: impl Into<String>) -> Result<Self, IdError> {
                let value = value.into();
                if is_valid(&value) { Ok(Self(value)) } else { Err(IdError { kind: $kind, value }) }
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(value: String) -> Result<Self, IdError> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

string_id!(/** One submitted recipe. */ JobId, "job id");
string_id!(/** One worker process slot, for example `policy-0`; restarts keep it. */ WorkerId, "worker id");
string_id!(/** One agent, that is one node. */ AgentId, "agent id");
string_id!(/** One row of the prompt data. */ PromptId, "prompt id");
string_id!(/** One response: `<step>/<prompt id>/<index>`. */ SampleId, "sample id");
string_id!(/** Which reward mix a prompt gets, for example `safety`. */ Label, "label");

/// Step of a job, counted from 0. Replays of a step keep its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StepId(pub u64);

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a worker group does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The model under training ("actor" in RL terms).
    Policy,
    /// The frozen model that the KL leash is tied to.
    Reference,
    /// A value model, of the reward.
    Critic,
    /// A value model, of the cost.
    CostCritic,
    /// A reward or cost model under training.
    RewardTrainer,
    /// Generation.
    Rollout,
    /// Scoring.
    Reward,
}

impl Role {
    /// The role's name in ids, certificates, recipes and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Reference => "reference",
            Self::Critic => "critic",
            Self::CostCritic => "cost_critic",
            Self::RewardTrainer => "reward_trainer",
            Self::Rollout => "rollout",
            Self::Reward => "reward",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = IdError;
    fn from_str(value: &str) -> Result<Self, IdError> {
        [
            Self::Policy,
            Self::Reference,
            Self::Critic,
            Self::CostCritic,
            Self::RewardTrainer,
            Self::Rollout,
            Self::Reward,
        ]
        .into_iter()
        .find(|role| role.as_str() == value)
        .ok_or_else(|| IdError { kind: "role", value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_refuse_what_could_leave_a_folder() {
        for bad in ["", "/etc", "a/../b", "a b", "ä", &"x".repeat(129)] {
            assert!(WorkerId::new(bad).is_err(), "{bad:?} passed");
        }
        assert_eq!(SampleId::new("3/p-1/0").unwrap().as_str(), "3/p-1/0");
    }

    #[test]
    fn roles_round_trip_through_their_names() {
        for role in [Role::Policy, Role::RewardTrainer, Role::Rollout] {
            assert_eq!(role.as_str().parse::<Role>(), Ok(role));
        }
        assert!("actor".parse::<Role>().is_err());
    }
}
