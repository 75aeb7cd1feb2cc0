//! Random streams that belong to a sample, not to a batch.
//!
//! Each sample draws from its own ChaCha8 stream. The key is a hash of what names the sample
//! (seed, step, prompt id, index among the prompt's samples), the counter is the token's position
//! in the response. So the draw for token `t` of a sample is the same whoever shares the batch,
//! in whichever order prompts arrived, and whether or not generation was interrupted before `t`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Domain separation of the key derivation; a change of the scheme changes this text.
const CONTEXT: &str = "plumbline rollout sample stream v1";

/// 32-bit words of a ChaCha block: one block for each token position.
const WORDS_PER_BLOCK: u128 = 16;

/// The uniform numbers of one sample.
#[derive(Debug, Clone)]
pub struct SampleStream {
    key: [u8; 32],
}

impl SampleStream {
    /// The stream of sample `index` of `prompt_id` at `step` under `seed`.
    #[must_use]
    pub fn new(seed: u64, step: u64, prompt_id: &str, index: u32) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&seed.to_le_bytes());
        hasher.update(&step.to_le_bytes());
        hasher.update(&index.to_le_bytes());
        hasher.update(prompt_id.as_bytes());
        Self { key: *hasher.finalize().as_bytes() }
    }

    /// The number for response token `position`, uniform in the open interval (0, 1).
    ///
    /// 32 bits, centred in their cells, so that neither end is ever met: an inverse CDF then
    /// never picks a token of probability 0.
    #[must_use]
    pub fn uniform(&self, position: usize) -> f64 {
        let mut generator = ChaCha8Rng::from_seed(self.key);
        generator.set_word_pos(position as u128 * WORDS_PER_BLOCK);
        (f64::from(generator.next_u32()) + 0.5) / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_is_a_function_of_the_sample_and_the_position_only() {
        let stream = SampleStream::new(7, 3, "p-1", 2);
        let forwards: Vec<f64> = (0..50).map(|t| stream.uniform(t)).collect();
        let backwards: Vec<f64> = (0..50).rev().map(|t| stream.uniform(t)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
        assert_eq!(SampleStream::new(7, 3, "p-1", 2).uniform(11), forwards[11]);
    }

    #[test]
    fn every_part_of_the_name_changes_the_stream() {
        let base = SampleStream::new(7, 3, "p-1", 2).uniform(0);
        for other in [
            SampleStream::new(8, 3, "p-1", 2),
            SampleStream::new(7, 4, "p-1", 2),
            SampleStream::new(7, 3, "p-2", 2),
            SampleStream::new(7, 3, "p-1", 3),
        ] {
            assert_ne!(base, other.uniform(0));
        }
    }

    #[test]
    fn draws_are_uniform_over_ten_cells() {
        // Chi-square with 9 degrees of freedom: 27.88 is the 0.999 quantile.
        let mut cells = [0u32; 10];
        for sample in 0..20 {
            let stream = SampleStream::new(1, 0, "p", sample);
            for position in 0..200 {
                cells[(stream.uniform(position) * 10.0) as usize] += 1;
            }
        }
        let chi_square: f64 = cells.iter().map(|&n| (f64::from(n) - 400.0).powi(2) / 400.0).sum();
        assert!(chi_square < 27.88, "chi-square {chi_square} over cells {cells:?}");
    }
}
