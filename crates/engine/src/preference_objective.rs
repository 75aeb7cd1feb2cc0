//! What a preference loss asks of answers.

use plumb_loss::preference::{Margin, Objective, Pop, PopFixed, Preference};
use tch::{Kind, Tensor};

use crate::preference_batch::AnswerPair;
use crate::{EngineError, Result};

/// By how much the rewards of a pair are to differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PairMargin {
    /// The same for all pairs.
    Same(f64),
    /// Each pair's own ([`AnswerPair::margin`]): HC-RLHF's adaptive margin.
    Own,
}

/// A preference loss on answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PreferenceObjective {
    /// Log-ratios to the reference, logistic loss (Rafailov et al. 2023).
    Dpo {
        /// Scale of the implicit reward.
        beta: f64,
        /// Assumed share of pairs that are labelled the wrong way round, in `[0, 1]`.
        label_smoothing: f64,
        /// By how much the rewards are to differ.
        margin: PairMargin,
    },
    /// Log-ratios to the reference, squared distance to `1 / (2 beta)` (Azar et al. 2023).
    Ipo {
        /// Strength of the pull towards the reference, above 0.
        beta: f64,
    },
    /// Mean log-probs, without a reference, logistic loss (Meng et al. 2024).
    SimPo {
        /// Scale of the implicit reward.
        beta: f64,
        /// By how much the rewards are to differ.
        margin: PairMargin,
    },
    /// Log-ratios of two pairs, of which the first is preferred with more certainty: both are
    /// learnt, and the first one's gap is to be the wider one (HC-RLHF's preference over
    /// preferences). Every pair has an [`AnswerPair::unpreferred`] one.
    Pop(Pop),
    /// The same, where the clamped gap of the unpreferred pair is a margin for the preferred one
    /// and is not learnt itself.
    PopFixed(PopFixed),
}

impl PreferenceObjective {
    /// Whether pairs need the reference's log-probs.
    #[must_use]
    pub fn needs_reference(&self) -> bool {
        !matches!(self, Self::SimPo { .. })
    }

    /// Whether every pair is compared with an unpreferred one.
    #[must_use]
    pub fn compares_pairs(&self) -> bool {
        matches!(self, Self::Pop(_) | Self::PopFixed(_))
    }

    /// Refuses pairs that lack what the loss needs.
    pub(crate) fn check(&self, pairs: &[AnswerPair]) -> Result<()> {
        let own = PairMargin::Own;
        let margins =
            matches!(self, Self::Dpo { margin, .. } | Self::SimPo { margin, .. } if *margin == own);
        for pair in pairs {
            let refuse = |problem: &str| {
                Err(EngineError::Sample { id: pair.id.clone(), problem: problem.to_owned() })
            };
            match &pair.unpreferred {
                None if self.compares_pairs() => return refuse("has no unpreferred pair"),
                Some(other) if self.compares_pairs() && other.reference.is_none() => {
                    return refuse("its unpreferred pair has no log-probs of the reference");
                }
                _ => {}
            }
            if self.needs_reference() && pair.reference.is_none() {
                return refuse("has no log-probs of the reference");
            }
            if margins && !pair.margin.is_some_and(f64::is_finite) {
                return refuse("has no finite margin");
            }
        }
        Ok(())
    }

    /// The loss of single pairs, with their own margins `[P]`; none for a loss of two.
    pub(crate) fn loss<'a>(&self, margin_p: &'a Tensor) -> Option<Preference<'a>> {
        let logistic = |label_smoothing, margin: PairMargin| Objective::Logistic {
            label_smoothing,
            margin: match margin {
                PairMargin::Same(margin) => Margin::Scalar(margin),
                PairMargin::Own => Margin::PerPair(margin_p),
            },
        };
        match *self {
            Self::Dpo { beta, label_smoothing, margin } => {
                Some(Preference { beta, objective: logistic(label_smoothing, margin) })
            }
            Self::Ipo { beta } => Some(Preference { beta, objective: Objective::Ipo }),
            Self::SimPo { beta, margin } => {
                Some(Preference { beta, objective: logistic(0.0, margin) })
            }
            Self::Pop(_) | Self::PopFixed(_) => None,
        }
    }
}

/// Own margins of pairs, `[P]` float; 0 where a pair has none.
pub(crate) fn margins(pairs: &[&AnswerPair]) -> Tensor {
    let margins: Vec<f64> = pairs.iter().map(|pair| pair.margin.unwrap_or(0.0)).collect();
    Tensor::from_slice(&margins).to_kind(Kind::Float)
}
