//! What the answers of pairs are worth to a policy.

use tch::Tensor;

use crate::{LossError, check};

/// `[P]` each: what the policy makes of the better and the worse answers, before beta. Both are of
/// one kind, double or float.
#[derive(Debug)]
pub struct PairValues {
    /// Of the better answers.
    pub better: Tensor,
    /// Of the worse answers.
    pub worse: Tensor,
}

/// `[P]` each: `beta * value`, the implicit rewards of answers, for reports. Without gradients.
#[derive(Debug)]
pub struct AnswerRewards {
    /// Of the better answers.
    pub better: Tensor,
    /// Of the worse answers.
    pub worse: Tensor,
}

impl PairValues {
    /// DPO's: `logp - ref_logp`, the log-ratio to the reference.
    ///
    /// Source: Rafailov et al. 2023, eq. 5 and 7. All tensors are `[P]`, sums over an answer's
    /// tokens ([`crate::preference::sum_log_probs`]). Gradients flow to the policy's log-probs.
    ///
    /// # Errors
    /// [`LossError::Kind`], [`LossError::Rank`], [`LossError::Shape`] for arguments that do not
    /// fit.
    pub fn log_ratios(
        better_logp: &Tensor,
        worse_logp: &Tensor,
        better_ref_logp: &Tensor,
        worse_ref_logp: &Tensor,
    ) -> Result<Self, LossError> {
        const F: &str = "PairValues::log_ratios";
        let pair = Self::checked(F, better_logp, worse_logp)?;
        let reference = Self::checked(F, better_ref_logp, worse_ref_logp)?;
        check::shape(F, "better_ref_logp", &pair.better.size(), &reference.better)?;
        let kind = pair.better.kind();
        Ok(Self {
            better: pair.better - reference.better.detach().to_kind(kind),
            worse: pair.worse - reference.worse.detach().to_kind(kind),
        })
    }

    /// SimPO's: `logp / tokens`, the mean log-prob of an answer's tokens; no reference.
    ///
    /// Source: Meng et al. 2024, eq. 4. Log-probs are `[P]`; the counts are those of
    /// [`crate::preference::Window::token_count`]. Gradients flow to the log-probs.
    ///
    /// # Errors
    /// As [`PairValues::log_ratios`]; [`LossError::Parameter`] for a count below 1.
    pub fn mean_log_probs(
        better_logp: &Tensor,
        worse_logp: &Tensor,
        better_tokens: &[i64],
        worse_tokens: &[i64],
    ) -> Result<Self, LossError> {
        const F: &str = "PairValues::mean_log_probs";
        let pair = Self::checked(F, better_logp, worse_logp)?;
        let mean = |logp: Tensor, argument, tokens: &[i64]| {
            if let Some(&count) = tokens.iter().find(|count| **count < 1) {
                check::parameter(F, argument, count as f64, false, "at least 1 token")?;
            }
            let counts = Tensor::from_slice(tokens).to_device(logp.device()).to_kind(logp.kind());
            check::shape(F, argument, &logp.size(), &counts)?;
            Ok(logp / counts)
        };
        Ok(Self {
            better: mean(pair.better, "better_tokens", better_tokens)?,
            worse: mean(pair.worse, "worse_tokens", worse_tokens)?,
        })
    }

    /// `[P]` better minus worse.
    pub fn gap(&self) -> Tensor {
        &self.better - &self.worse
    }

    /// Times beta, without gradients.
    #[must_use]
    pub fn rewards(&self, beta: f64) -> AnswerRewards {
        AnswerRewards { better: self.better.detach() * beta, worse: self.worse.detach() * beta }
    }

    fn checked(function: &'static str, better: &Tensor, worse: &Tensor) -> Result<Self, LossError> {
        check::float(function, "better", better)?;
        check::float(function, "worse", worse)?;
        if better.dim() != 1 {
            let got = better.size();
            return Err(LossError::Rank { function, argument: "better", expected: "[P]", got });
        }
        check::shape(function, "worse", &better.size(), worse)?;
        let kind = check::maths_kind(better);
        Ok(Self { better: better.to_kind(kind), worse: worse.to_kind(kind) })
    }

    /// The fields are public: the losses check them again.
    pub(super) fn check(&self, function: &'static str) -> Result<usize, LossError> {
        Self::checked(function, &self.better, &self.worse)?;
        Ok(self.better.size()[0] as usize)
    }
}

impl AnswerRewards {
    /// `[P]` better minus worse.
    pub fn margin(&self) -> Tensor {
        &self.better - &self.worse
    }

    /// `[P]` better plus worse, which safe-rlhf reports as a pair's reward.
    pub fn sum(&self) -> Tensor {
        &self.better + &self.worse
    }

    /// Pairs whose better answer has the strictly higher reward, as a double scalar.
    pub(super) fn correct(&self) -> Tensor {
        self.better.gt_tensor(&self.worse).sum(tch::Kind::Double)
    }
}
