//! Training and test samples of one data set.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::MixtureError;
use crate::mixture::choice;

/// What a split into training and test samples does when no test sample is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoTest {
    /// All samples are for training.
    #[default]
    AllTrain,
    /// As safe-rlhf cuts its list, from the end by a Python slice: a test size of 0 makes **all**
    /// samples test samples, and a share below 0 or above 1 is cut without complaint.
    CompatSlice,
}

/// How samples are split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TestSplit {
    /// Share of test samples; their number is `round(n * share)`, halves to even. Default 0.2.
    pub share: f64,
    /// Are samples shuffled first (ChaCha8, by the seed)? Default true.
    pub shuffle: bool,
    /// Default 42.
    pub seed: u64,
    /// Default [`NoTest::AllTrain`].
    pub no_test: NoTest,
}

impl Default for TestSplit {
    fn default() -> Self {
        Self { share: 0.2, shuffle: true, seed: 42, no_test: NoTest::AllTrain }
    }
}

impl TestSplit {
    /// The indices of training and of test samples: the last of the (shuffled) samples are for the
    /// test.
    ///
    /// Source: safe-rlhf `RawDataset.split_train_test`.
    ///
    /// # Errors
    /// [`MixtureError::TestShare`] for a share outside `[0, 1]` (with [`NoTest::CompatSlice`]: for
    /// one that is not finite).
    pub fn split(&self, samples: usize) -> Result<(Vec<usize>, Vec<usize>), MixtureError> {
        let slices = self.no_test == NoTest::CompatSlice;
        if !self.share.is_finite() || !(slices || (0.0..=1.0).contains(&self.share)) {
            return Err(MixtureError::TestShare { share: self.share });
        }
        let tests = (samples as f64 * self.share).round_ties_even();
        let cut = if slices && tests == 0.0 {
            0
        } else if tests >= 0.0 {
            samples.saturating_sub(tests as usize)
        } else {
            samples.min(-tests as usize)
        };
        let mut indices: Vec<usize> = (0..samples).collect();
        if self.shuffle {
            indices = choice(samples, samples, &mut ChaCha8Rng::seed_from_u64(self.seed));
        }
        let tests = indices.split_off(cut);
        Ok((indices, tests))
    }
}
