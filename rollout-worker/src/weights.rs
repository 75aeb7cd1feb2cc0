//! Weights on their way from the policy to the engine.
//!
//! A version is received over the collective and staged; it becomes live only when the sender's
//! digests, which come by way of the coordinator, equal those of what arrived. Otherwise the old
//! version stays live.
//!
//! - WE-1: only the staged version can become live, and only if every bucket's digest is the
//!   sender's.
//! - WE-2: the live version never goes down. The way back is to load a folder again, under an
//!   explicit version.

use plumb_domain::PolicyVersion;
use plumb_proto::actor::WeightBucket;

/// Why a version does not become live.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActivationError {
    /// Nothing was received, or it was used up.
    #[error("WE-1: version {asked} is not staged: nothing was received since version {live}")]
    NothingStaged {
        /// The version asked for.
        asked: PolicyVersion,
        /// The live version.
        live: PolicyVersion,
    },
    /// Another version was received.
    #[error("WE-1: version {asked} is not staged; staged is version {staged}")]
    OtherStaged {
        /// The version asked for.
        asked: PolicyVersion,
        /// The version at hand.
        staged: PolicyVersion,
    },
    /// The version is older than the live one.
    #[error("WE-2: version {asked} is older than the live version {live}")]
    Stale {
        /// The version asked for.
        asked: PolicyVersion,
        /// The live version.
        live: PolicyVersion,
    },
    /// Sender and receiver do not count the same buckets.
    #[error("WE-1: version {version}: {received} buckets were received, the sender sent {sent}")]
    BucketCount {
        /// The version.
        version: PolicyVersion,
        /// Buckets here.
        received: usize,
        /// Buckets there.
        sent: usize,
    },
    /// A bucket is not what was sent.
    #[error(
        "WE-1: version {version}, bucket {name}: received {received_bytes} bytes with BLAKE3 \
         {received}, the sender says {sent_name}, {sent_bytes} bytes, {sent}"
    )]
    Bucket {
        /// The version.
        version: PolicyVersion,
        /// The bucket here.
        name: String,
        /// Its size here.
        received_bytes: u64,
        /// Its digest here.
        received: String,
        /// The bucket's name there.
        sent_name: String,
        /// Its size there.
        sent_bytes: u64,
        /// Its digest there.
        sent: String,
    },
}

/// A received version with its payload `W`.
#[derive(Debug)]
pub struct Staged<W> {
    /// Its number.
    pub version: PolicyVersion,
    /// What arrived: names, sizes, digests.
    pub buckets: Vec<WeightBucket>,
    /// The weights.
    pub weights: W,
}

/// Takes the staged weights out if `version` may become live with the sender's `sent` buckets.
///
/// After an error the staged weights are dropped only if their digests were wrong: those can
/// never become live.
///
/// # Errors
/// [`ActivationError`] names versions, bucket and digests.
pub fn take_verified<W>(
    staged: &mut Option<Staged<W>>,
    live: PolicyVersion,
    version: PolicyVersion,
    sent: &[WeightBucket],
) -> Result<W, ActivationError> {
    if version < live {
        return Err(ActivationError::Stale { asked: version, live });
    }
    match staged.take() {
        None => Err(ActivationError::NothingStaged { asked: version, live }),
        Some(other) if other.version != version => {
            let error = ActivationError::OtherStaged { asked: version, staged: other.version };
            *staged = Some(other);
            Err(error)
        }
        Some(mine) => {
            compare(version, &mine.buckets, sent)?;
            Ok(mine.weights)
        }
    }
}

fn compare(
    version: PolicyVersion,
    received: &[WeightBucket],
    sent: &[WeightBucket],
) -> Result<(), ActivationError> {
    if received.len() != sent.len() {
        let (received, sent) = (received.len(), sent.len());
        return Err(ActivationError::BucketCount { version, received, sent });
    }
    match received.iter().zip(sent).find(|(here, there)| here != there) {
        None => Ok(()),
        Some((here, there)) => Err(ActivationError::Bucket {
            version,
            name: here.name.clone(),
            received_bytes: here.bytes,
            received: here.digest.clone(),
            sent_name: there.name.clone(),
            sent_bytes: there.bytes,
            sent: there.digest.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(name: &str, digest: &str) -> WeightBucket {
        WeightBucket { name: name.into(), bytes: 8, digest: digest.into() }
    }

    fn staged(version: u64) -> Option<Staged<&'static str>> {
        Some(Staged {
            version: PolicyVersion(version),
            buckets: vec![bucket("block-0000", "aa"), bucket("block-0001", "bb")],
            weights: "new",
        })
    }

    #[test]
    fn we_1_equal_digests_make_a_version_live_once() {
        let mut slot = staged(3);
        let sent = staged(3).unwrap().buckets;
        let (live, version) = (PolicyVersion(2), PolicyVersion(3));
        assert_eq!(take_verified(&mut slot, live, version, &sent), Ok("new"));
        let again = take_verified(&mut slot, live, version, &sent).unwrap_err();
        assert!(matches!(again, ActivationError::NothingStaged { .. }), "{again}");
    }

    #[test]
    fn we_1_another_digest_is_refused_with_both() {
        let mut slot = staged(3);
        let sent = [bucket("block-0000", "aa"), bucket("block-0001", "cc")];
        let error =
            take_verified(&mut slot, PolicyVersion(2), PolicyVersion(3), &sent).unwrap_err();
        assert_eq!(
            error.to_string(),
            "WE-1: version 3, bucket block-0001: received 8 bytes with BLAKE3 bb, the sender says \
             block-0001, 8 bytes, cc"
        );
        assert!(slot.is_none(), "what is proved wrong is dropped");
        let missing = take_verified(&mut staged(3), PolicyVersion(2), PolicyVersion(3), &sent[..1]);
        assert!(matches!(missing, Err(ActivationError::BucketCount { received: 2, sent: 1, .. })));
    }

    #[test]
    fn we_1_another_version_than_the_staged_one_is_refused_and_the_staged_kept() {
        let mut slot = staged(3);
        let error = take_verified(&mut slot, PolicyVersion(2), PolicyVersion(4), &[]).unwrap_err();
        assert_eq!(error.to_string(), "WE-1: version 4 is not staged; staged is version 3");
        assert!(slot.is_some());
    }

    #[test]
    fn we_2_a_version_below_the_live_one_is_refused() {
        let sent = staged(3).unwrap().buckets;
        let error =
            take_verified(&mut staged(3), PolicyVersion(5), PolicyVersion(3), &sent).unwrap_err();
        assert_eq!(error.to_string(), "WE-2: version 3 is older than the live version 5");
    }
}
