//! The clipped surrogate that PPO, GSPO and the per-item ratio share.

use tch::{Tensor, no_grad};

/// `-A r` and its clipped form, of tokens whose log ratio is known.
pub(super) struct Surrogate<'a> {
    /// Log of the ratio, with gradients.
    pub log_ratio: &'a Tensor,
    /// Advantages, no gradient.
    pub advantage: &'a Tensor,
    /// Which tokens count.
    pub mask: &'a Tensor,
    /// The ratio is clipped below at `1 - clip_low`.
    pub clip_low: f64,
    /// The ratio is clipped above at `1 + clip_high`.
    pub clip_high: f64,
}

/// Token losses and where bounds were active.
pub(super) struct Clipped {
    pub loss: Tensor,
    pub clipped: Tensor,
    pub clipped_lower: Tensor,
}

impl Surrogate<'_> {
    /// `max(-A r, -A clip(r))`, with `dual_clip` at most `-A c` where `A < 0`.
    ///
    /// A token at a bound gets the bound's value and no gradient at all: its ratio may be infinite,
    /// and 0 times infinity must not reach the gradient.
    pub(super) fn clip(&self, dual_clip: Option<f64>) -> Clipped {
        let (bounded, clipped, clipped_lower) = no_grad(|| self.bounds(dual_clip));
        let stopped = clipped.logical_or(&clipped_lower);
        let free = -self.advantage * self.log_ratio.masked_fill(&stopped, 0.0).exp();
        Clipped { loss: bounded.where_self(&stopped, &free), clipped, clipped_lower }
    }

    /// The value of a token at a bound, and which are at which bound.
    fn bounds(&self, dual_clip: Option<f64>) -> (Tensor, Tensor, Tensor) {
        let ratio = self.log_ratio.exp();
        let plain = -self.advantage * &ratio;
        let bounded = -self.advantage * ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high);
        let clipped = bounded.gt_tensor(&plain).logical_and(self.mask);
        match dual_clip {
            None => (bounded, clipped, self.mask.zeros_like()),
            Some(c) => {
                let negative = self.advantage.lt(0.0).logical_and(self.mask);
                let ceiling = -self.advantage * c;
                let over = plain.maximum(&bounded).gt_tensor(&ceiling).logical_and(&negative);
                (ceiling.where_self(&over, &bounded), clipped, over)
            }
        }
    }
}
