//! Join tokens: short-lived, single use, each bound to one identity.
//!
//! - **TO-1**: a token is taken at most once.
//! - **TO-2**: a token is refused after its time, and the refusal says so.
//! - **TO-3**: the table holds digests, never tokens.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use plumb_runtime::Identity;
use rand::RngCore;

/// Spent and expired tokens are remembered this long, so that the refusal can say which it was.
const MEMORY: Duration = Duration::from_secs(3_600);

/// Why a token is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    /// No such token was issued by this coordinator.
    #[error("the join token is unknown: it is of another run, or mistyped")]
    Unknown,
    /// TO-1.
    #[error("the join token for {identity} was used already; ask for a new one")]
    Used {
        /// Whom it was for.
        identity: String,
    },
    /// TO-2.
    #[error("the join token for {identity} expired {ago_secs} s ago; ask for a new one")]
    Expired {
        /// Whom it was for.
        identity: String,
        /// How long ago.
        ago_secs: u64,
    },
}

/// All tokens that may still be taken, and the recent past ones.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    entries: Mutex<BTreeMap<[u8; 32], Entry>>,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    expires: Instant,
    used: bool,
}

impl Tokens {
    /// Makes a token of 256 random bits, hex.
    pub(super) fn issue(&self, identity: Identity, life: Duration, now: Instant) -> String {
        let mut bytes = [0_u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        let token = hex::encode(bytes);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| now < entry.expires + MEMORY);
        let entry = Entry { identity, expires: now + life, used: false };
        entries.insert(digest(&token), entry);
        token
    }

    /// Takes a token.
    ///
    /// # Errors
    /// [`TokenError`] says why it is not good.
    pub(super) fn take(&self, token: &str, now: Instant) -> Result<Identity, TokenError> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get_mut(&digest(token)).ok_or(TokenError::Unknown)?;
        let identity = entry.identity.to_string();
        if entry.used {
            return Err(TokenError::Used { identity });
        }
        if now >= entry.expires {
            let ago_secs = now.duration_since(entry.expires).as_secs();
            return Err(TokenError::Expired { identity, ago_secs });
        }
        entry.used = true;
        Ok(entry.identity.clone())
    }
}

fn digest(token: &str) -> [u8; 32] {
    *blake3::hash(token.trim().as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    #[test]
    fn to_1_a_token_is_taken_once() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(Identity::Admin, LIFE, now);
        assert_eq!(tokens.take(&token, now), Ok(Identity::Admin));
        let error = tokens.take(&token, now).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the join token for admin was used already; ask for a new one"
        );
    }

    #[test]
    fn to_2_an_expired_token_is_refused_and_says_so() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(Identity::Admin, LIFE, now);
        let error = tokens.take(&token, now + LIFE + Duration::from_secs(5)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the join token for admin expired 5 s ago; ask for a new one"
        );
    }

    #[test]
    fn to_3_the_table_holds_no_token() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(Identity::Admin, LIFE, now);
        assert!(!format!("{tokens:?}").contains(&token));
        assert_eq!(tokens.take("other", now), Err(TokenError::Unknown));
        assert_ne!(token, tokens.issue(Identity::Admin, LIFE, now));
    }

    #[test]
    fn old_entries_are_forgotten() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(Identity::Admin, LIFE, now);
        let later = now + LIFE + MEMORY;
        tokens.issue(Identity::Admin, LIFE, later);
        assert_eq!(tokens.take(&token, later), Err(TokenError::Unknown));
    }
}
