//! The objective of a policy update: policy term, KL in the loss, entropy bonus.

use tch::{Kind as TensorKind, Tensor};

use super::sums::read;
use super::{PolicyTerm, PpoClip, TokenSums, token_losses};
use crate::aggregate::{Aggregation, Denominators, Layout, token_weights};
use crate::{LossError, check, kl};

/// KL to the reference as a term of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlTerm {
    /// Its coefficient, at least 0.
    pub coef: f64,
    /// Which estimate.
    pub kind: kl::Kind,
    /// verl's clamps, or none.
    pub clamps: kl::Clamps,
    /// The estimate's own gradient, or k2's.
    pub gradient: kl::Gradient,
}

/// What an update minimises:
/// `agg(policy term) + kl.coef * agg(kl(logp, ref)) - entropy_coef * agg(H)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// The policy term. Default PPO clip as verl sets it.
    pub policy: PolicyTerm,
    /// How token losses are aggregated, the same for all terms. Default the token mean.
    pub aggregation: Aggregation,
    /// KL in the loss. Default none.
    pub kl: Option<KlTerm>,
    /// Weight of the entropy bonus. Default 0, which needs no entropies.
    pub entropy_coef: f64,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            policy: PolicyTerm::PpoClip(PpoClip::default()),
            aggregation: Aggregation::TokenMean,
            kl: None,
            entropy_coef: 0.0,
        }
    }
}

/// One micro-batch. All tensors have the shape of `logp`: `[B, T]` or `[N]`, as `layout` says.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Log-prob of each token under the policy that learns, with gradients.
    pub logp: &'a Tensor,
    /// The same under the policy that sampled (or at the start of the update); no gradient.
    pub old_logp: &'a Tensor,
    /// Advantage of each token; no gradient.
    pub advantage: &'a Tensor,
    /// Log-prob under the reference; needed with [`Objective::kl`].
    pub ref_logp: Option<&'a Tensor>,
    /// Entropy of each token's distribution, with gradients; needed with a non-zero
    /// [`Objective::entropy_coef`], else only reported.
    pub entropy: Option<&'a Tensor>,
    /// Importance weight of each token's policy term ([`crate::importance`]); no gradient. `None`
    /// is 1.
    pub weight: Option<&'a Tensor>,
    /// Item of each token, i64; needed with [`super::RatioLevel::Item`].
    pub items: Option<&'a Tensor>,
    /// Which tokens count (response tokens of samples that are kept).
    pub mask: &'a Tensor,
    /// How tokens are laid out.
    pub layout: Layout<'a>,
}

impl<'a> Batch<'a> {
    /// A batch of what every term needs, and nothing that only some do.
    #[must_use]
    pub fn new(
        logp: &'a Tensor,
        old_logp: &'a Tensor,
        advantage: &'a Tensor,
        mask: &'a Tensor,
        layout: Layout<'a>,
    ) -> Self {
        let (ref_logp, entropy, weight, items) = (None, None, None, None);
        Self { logp, old_logp, advantage, ref_logp, entropy, weight, items, mask, layout }
    }
}

/// A micro-batch's share of the loss.
#[derive(Debug)]
pub struct PolicyTerms {
    /// The contribution, a scalar with gradients to `logp` (and `entropy`). The contributions of
    /// all micro-batches of all ranks add up to the loss of the batch.
    pub loss: Tensor,
    /// Figures that add up likewise.
    pub sums: TokenSums,
}

/// The objective on one micro-batch, with denominators of the whole batch.
///
/// Sources: verl `compute_policy_loss_vanilla` and the actor's update; LightRFT `PolicyLoss` with
/// `use_kl_loss`. A micro-batch without masked-in tokens contributes 0 to everything.
///
/// # Errors
/// [`LossError::Missing`] for a term whose input is not there, [`LossError::NonFinite`] when the
/// contribution is no number, [`LossError::Empty`] when the whole batch has nothing to average
/// over; else as [`token_losses`], [`kl::kl_tokens`] and [`token_weights`].
pub fn policy_loss(
    objective: &Objective,
    batch: &Batch<'_>,
    denominators: &Denominators,
) -> Result<PolicyTerms, LossError> {
    let mask = check::mask("policy_loss", &batch.logp.size(), batch.mask)?;
    let kind = check::maths_kind(batch.logp);
    let weights = token_weights(objective.aggregation, &mask, batch.layout, denominators, kind)?;
    weighted_policy_loss(objective, batch, &weights)
}

/// The objective on any run of tokens, each with its weight in the whole batch's loss.
///
/// This is [`policy_loss`] for callers that cut through sequences (a fused head works on chunks
/// of tokens): `weights` are those of [`token_weights`] over the uncut sequences, narrowed to
/// these tokens. `weights` has the shape of `logp` and is 0 outside the mask;
/// [`Objective::aggregation`] is not looked at, and [`Batch::layout`] only by a term that
/// [`PolicyTerm::spans_sequences`], whose sequences must be whole.
///
/// # Errors
/// As [`policy_loss`].
pub fn weighted_policy_loss(
    objective: &Objective,
    batch: &Batch<'_>,
    weights: &Tensor,
) -> Result<PolicyTerms, LossError> {
    const F: &str = "policy_loss";
    let shape = batch.logp.size();
    check::shape(F, "weights", &shape, weights)?;
    let mask = check::mask(F, &shape, batch.mask)?;
    let outside = mask.logical_not();
    let kind = check::maths_kind(batch.logp);
    let weights = weights.to_kind(kind);
    let inside = |tokens: &Tensor| tokens.to_kind(kind).masked_fill(&outside, 0.0);

    let tokens = token_losses(&objective.policy, batch)?;
    let policy = (&tokens.loss * &weights).sum(kind);
    // A sum of its own: `+=` on a shallow clone would write into `policy`.
    let mut loss = &policy + 0.0;
    let zero = Tensor::zeros([], (TensorKind::Double, batch.logp.device()));
    let (mut kl_loss, mut kl_sum) = (zero.shallow_clone(), zero.shallow_clone());
    if let Some(term) = &objective.kl {
        check::parameter(F, "kl.coef", term.coef, term.coef >= 0.0, "at least 0")?;
        let kl_tokens = reference_kl(term, batch, &outside)?;
        kl_sum = kl_tokens.detach().sum(TensorKind::Double);
        kl_loss = (kl_tokens * &weights).sum(kind);
        loss += &kl_loss * term.coef;
    }
    let (mut entropy_loss, mut entropy_sum) = (zero.shallow_clone(), zero);
    let coef = objective.entropy_coef;
    check::parameter(F, "entropy_coef", coef, true, "a finite number")?;
    if let Some(entropy) = batch.entropy {
        check::shape(F, "entropy", &shape, entropy)?;
        let entropy = inside(entropy);
        entropy_sum = entropy.detach().sum(TensorKind::Double);
        entropy_loss = (entropy * &weights).sum(kind);
        if coef != 0.0 {
            loss -= &entropy_loss * coef;
        }
    } else if coef != 0.0 {
        let because = "entropy_coef is not 0";
        return Err(LossError::Missing { function: F, argument: "entropy", because });
    }

    let sums = TokenSums::from_array(read([
        &mask.sum(TensorKind::Double),
        &tokens.clipped.sum(TensorKind::Double),
        &tokens.clipped_lower.sum(TensorKind::Double),
        &-tokens.log_ratio.sum(TensorKind::Double),
        &kl_sum,
        &entropy_sum,
        &policy,
        &kl_loss,
        &entropy_loss,
        &loss,
    ]));
    check::finite(F, "the policy term", sums.policy_loss)?;
    check::finite(F, "the KL term", sums.kl_loss)?;
    check::finite(F, "the loss", sums.loss)?;
    Ok(PolicyTerms { loss, sums })
}

/// KL to the reference with 0 outside the mask, set before the maths so that NaN there cannot
/// reach a gradient.
fn reference_kl(term: &KlTerm, batch: &Batch<'_>, outside: &Tensor) -> Result<Tensor, LossError> {
    const F: &str = "policy_loss";
    let Some(ref_logp) = batch.ref_logp else {
        let because = "the objective has a KL term";
        return Err(LossError::Missing { function: F, argument: "ref_logp", because });
    };
    check::shape(F, "ref_logp", &batch.logp.size(), ref_logp)?;
    let logp = batch.logp.masked_fill(outside, 0.0);
    let ref_logp = ref_logp.masked_fill(outside, 0.0);
    kl::kl_tokens_with(term.gradient, term.kind, term.clamps, &logp, &ref_logp)
}
