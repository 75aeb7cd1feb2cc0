//! Which policy term, and the loss of each token under it.

use tch::Tensor;

use super::cispo::cispo;
use super::geo_mean::geo_mean;
use super::gpg::gpg;
use super::gspo::gspo;
use super::level_clip::level_clip;
use super::sapo::sapo;
use super::{
    Batch, Cispo, Cpg, GeoMean, Gspo, LevelClip, PolicyTokens, PpoClip, RatioLevel, Sapo, cpg,
    masked, ppo_clip,
};
use crate::aggregate::Rows;
use crate::{LossError, check};

/// Which policy term. Each has its equation and source at its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PolicyTerm {
    /// PPO's clipped surrogate.
    PpoClip(PpoClip),
    /// Clipped policy gradient.
    Cpg(Cpg),
    /// The ratio of a whole sequence (GSPO).
    Gspo(Gspo),
    /// The clipped ratio as a weight (CISPO).
    Cispo(Cispo),
    /// A soft gate in place of the clip (SAPO).
    Sapo(Sapo),
    /// The geometric mean of clipped token ratios (GMPO).
    GeoMean(GeoMean),
    /// Plain policy gradient (GPG).
    Gpg,
    /// The clipped surrogate with the ratio of a token, an item or a sequence (Rank-GRPO).
    LevelClip(LevelClip),
}

impl PolicyTerm {
    /// Whether the loss of a token hangs on the other tokens of its sequence, so that a caller must
    /// not cut through sequences.
    #[must_use]
    pub fn spans_sequences(&self) -> bool {
        match self {
            Self::Gspo(_) | Self::GeoMean(_) => true,
            Self::LevelClip(spec) => spec.level != RatioLevel::Token,
            Self::PpoClip(_) | Self::Cpg(_) | Self::Cispo(_) | Self::Sapo(_) | Self::Gpg => false,
        }
    }
}

/// The loss of each token under `term`, before aggregation, multiplied by [`Batch::weight`] where
/// there is one.
///
/// Reads `logp`, `old_logp`, `advantage`, `mask`, `weight`, `items` and, where
/// [`PolicyTerm::spans_sequences`], `layout` of the batch. Gradients flow to `logp` only. Outside
/// the mask everything is 0 or false, whatever the inputs hold there.
///
/// # Errors
/// [`LossError::Parameter`] for settings out of range, [`LossError::Missing`] for items that the
/// term needs, [`LossError::Shape`], [`LossError::Kind`], [`LossError::Rank`],
/// [`LossError::Bounds`] for tensors that do not fit.
pub fn token_losses(term: &PolicyTerm, batch: &Batch<'_>) -> Result<PolicyTokens, LossError> {
    const F: &str = "token_losses";
    let Batch { logp, old_logp, advantage, mask, .. } = *batch;
    let inputs = || masked(F, logp, old_logp, advantage, mask);
    let weight = weight(batch)?;
    let with_rows = || {
        let m = inputs()?;
        let rows = Rows::new(F, &m.mask, batch.layout)?;
        Ok::<_, LossError>((m, rows))
    };
    let mut tokens = match term {
        PolicyTerm::PpoClip(spec) => ppo_clip(spec, logp, old_logp, advantage, mask)?,
        PolicyTerm::Cpg(spec) => cpg(spec, logp, old_logp, advantage, mask)?,
        PolicyTerm::Cispo(spec) => cispo(spec, &inputs()?)?,
        PolicyTerm::Sapo(spec) => sapo(spec, &inputs()?)?,
        PolicyTerm::Gpg => gpg(&inputs()?),
        PolicyTerm::Gspo(spec) => {
            let (m, rows) = with_rows()?;
            gspo(spec, &m, &rows)?
        }
        PolicyTerm::LevelClip(spec) => {
            let (m, rows) = with_rows()?;
            level_clip(spec, &m, &rows, batch.items)?
        }
        PolicyTerm::GeoMean(spec) => {
            let (m, rows) = with_rows()?;
            return geo_mean(spec, &m, &rows, weight.as_ref());
        }
    };
    if let Some(weight) = weight {
        tokens.loss *= weight;
    }
    Ok(tokens)
}

/// The importance weights, checked, 0 outside the mask.
fn weight(batch: &Batch<'_>) -> Result<Option<Tensor>, LossError> {
    const F: &str = "token_losses";
    let Some(weight) = batch.weight else { return Ok(None) };
    check::float(F, "weight", weight)?;
    check::shape(F, "weight", &batch.logp.size(), weight)?;
    let outside = check::mask(F, &batch.logp.size(), batch.mask)?.logical_not();
    let kind = check::maths_kind(batch.logp);
    Ok(Some(weight.detach().to_kind(kind).masked_fill(&outside, 0.0)))
}
