//! Figures of an update that add up over micro-batches and ranks.

use tch::{Kind, Tensor};

/// Sums over masked-in tokens of one micro-batch. Add them (`+=`) over micro-batches, all-reduce
/// [`TokenSums::as_array`] over ranks, then read the means.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenSums {
    /// Masked-in tokens.
    pub tokens: f64,
    /// Tokens whose ratio the clip bounds.
    pub clipped: f64,
    /// Tokens whose loss the dual clip bounds.
    pub clipped_lower: f64,
    /// Sum of `old_logp - logp`, the k1 estimate of KL(old, new).
    pub approx_kl: f64,
    /// Sum of the in-loss KL estimate to the reference.
    pub reference_kl: f64,
    /// Sum of entropies.
    pub entropy: f64,
    /// This contribution to the policy term of the loss.
    pub policy_loss: f64,
    /// This contribution to the KL term, before its coefficient.
    pub kl_loss: f64,
    /// This contribution to the entropy term, before its coefficient.
    pub entropy_loss: f64,
    /// This contribution to the loss.
    pub loss: f64,
}

impl TokenSums {
    /// Number of figures in [`TokenSums::as_array`].
    pub const FIGURES: usize = 10;

    /// The figures in a fixed order, for an all-reduce.
    #[must_use]
    pub fn as_array(&self) -> [f64; Self::FIGURES] {
        [
            self.tokens,
            self.clipped,
            self.clipped_lower,
            self.approx_kl,
            self.reference_kl,
            self.entropy,
            self.policy_loss,
            self.kl_loss,
            self.entropy_loss,
            self.loss,
        ]
    }

    /// Back from [`TokenSums::as_array`].
    #[must_use]
    pub fn from_array(figures: [f64; Self::FIGURES]) -> Self {
        let [
            tokens,
            clipped,
            clipped_lower,
            approx_kl,
            reference_kl,
            entropy,
            policy_loss,
            kl_loss,
            entropy_loss,
            loss,
        ] = figures;
        Self {
            tokens,
            clipped,
            clipped_lower,
            approx_kl,
            reference_kl,
            entropy,
            policy_loss,
            kl_loss,
            entropy_loss,
            loss,
        }
    }

    /// Share of tokens whose ratio the clip bounds (verl `actor/pg_clipfrac`).
    #[must_use]
    pub fn clip_fraction(&self) -> f64 {
        self.per_token(self.clipped)
    }

    /// Share of tokens whose loss the dual clip bounds (verl `actor/pg_clipfrac_lower`).
    #[must_use]
    pub fn clip_fraction_lower(&self) -> f64 {
        self.per_token(self.clipped_lower)
    }

    /// Mean of `old_logp - logp` (verl `actor/ppo_kl`).
    #[must_use]
    pub fn approx_kl_mean(&self) -> f64 {
        self.per_token(self.approx_kl)
    }

    /// Mean KL estimate to the reference per token.
    #[must_use]
    pub fn reference_kl_mean(&self) -> f64 {
        self.per_token(self.reference_kl)
    }

    /// Mean entropy per token.
    #[must_use]
    pub fn entropy_mean(&self) -> f64 {
        self.per_token(self.entropy)
    }

    /// `sum / tokens`, and 0 where there is no token.
    fn per_token(&self, sum: f64) -> f64 {
        if self.tokens > 0.0 { sum / self.tokens } else { 0.0 }
    }
}

impl std::ops::AddAssign for TokenSums {
    fn add_assign(&mut self, other: Self) {
        let mut figures = self.as_array();
        for (figure, more) in figures.iter_mut().zip(other.as_array()) {
            *figure += more;
        }
        *self = Self::from_array(figures);
    }
}

/// Reads scalars off the device in one transfer.
pub(super) fn read<const K: usize>(scalars: [&Tensor; K]) -> [f64; K] {
    let doubles = scalars.map(|s| s.detach().to_kind(Kind::Double).reshape([]));
    let stacked = Tensor::stack(&doubles, 0).to_device(tch::Device::Cpu);
    std::array::from_fn(|i| stacked.double_value(&[i as i64]))
}
