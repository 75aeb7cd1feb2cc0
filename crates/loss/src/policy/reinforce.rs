//! REINFORCE on whole sequences: one return and one log-prob a sequence.

use tch::{Kind, Tensor};

use crate::aggregate::{Layout, Rows};
use crate::{LossError, check};

/// What is subtracted from a sequence's return.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Baseline {
    /// A number known beforehand, for example the running mean of returns; 0 is none.
    Fixed(f64),
    /// The mean return of the other samples of the same prompt. Sequences of one prompt are
    /// adjacent.
    LeaveOneOut {
        /// Samples of each prompt, at least 2.
        samples_per_prompt: usize,
    },
}

/// `-(1/B) sum_b (G_b - baseline_b) sum_t logp_bt`, without ratio, clip or critic.
///
/// Source: Williams 1992; RLOO (Ahmadian et al. 2024); HC-RLHF
/// `ReinforceCILagTrainer.actor_loss_fn`. Its leave-one-out form
/// `mean over prompts of sum_i (G_i - mean G) logp_i / (k - 1)` is the same number.
///
/// `logp` is `[B, T]` or `[N]` as `layout` says, `mask` of its shape, `returns` `[B]` without
/// gradient (HC-RLHF: `reward - lambda * cost`, not divided by `1 + lambda`). `total_sequences` counts the sequences of the whole batch, so contributions add up;
/// with [`Baseline::LeaveOneOut`] a prompt's samples must be in one call. Gradients flow to `logp`.
/// A sequence without masked-in tokens contributes 0 (and counts).
///
/// # Errors
/// [`LossError::Empty`] when `total_sequences` is 0, [`LossError::Parameter`] for
/// `samples_per_prompt` below 2 or not a divisor of B, [`LossError::NonFinite`] when the result is
/// no number, [`LossError::Shape`], [`LossError::Rank`], [`LossError::Bounds`],
/// [`LossError::Kind`] for tensors that do not fit.
pub fn reinforce(
    baseline: Baseline,
    logp: &Tensor,
    returns: &Tensor,
    mask: &Tensor,
    layout: Layout<'_>,
    total_sequences: usize,
) -> Result<Tensor, LossError> {
    const F: &str = "reinforce";
    check::float(F, "logp", logp)?;
    check::float(F, "returns", returns)?;
    let mask = check::mask(F, &logp.size(), mask)?;
    let rows = Rows::new(F, &mask, layout)?;
    check::shape(F, "returns", &[rows.sequences(&mask)], returns)?;
    if total_sequences == 0 {
        return Err(LossError::Empty { function: F, what: "sequences" });
    }
    let kind = check::maths_kind(logp);
    let advantage = subtract(baseline, &returns.detach().to_kind(kind))?;
    let sequence_logp = rows.sums(&logp.to_kind(kind).masked_fill(&mask.logical_not(), 0.0));
    let loss = -(advantage * sequence_logp).sum(kind) / total_sequences as f64;
    check::finite(F, "the loss", loss.double_value(&[]))?;
    Ok(loss)
}

fn subtract(baseline: Baseline, returns: &Tensor) -> Result<Tensor, LossError> {
    const F: &str = "reinforce";
    match baseline {
        Baseline::Fixed(value) => {
            check::parameter(F, "baseline", value, true, "a finite number")?;
            Ok(returns - value)
        }
        Baseline::LeaveOneOut { samples_per_prompt: k } => {
            let divides = k >= 2 && returns.size()[0] % k as i64 == 0;
            let expected = "at least 2 and a divisor of the number of sequences";
            check::parameter(F, "samples_per_prompt", k as f64, divides, expected)?;
            let groups = returns.reshape([-1, k as i64]);
            let mean = groups.mean_dim(-1, true, Kind::Double).to_kind(returns.kind());
            let share = k as f64 / (k as f64 - 1.0);
            Ok(((groups - mean) * share).reshape([-1]))
        }
    }
}
