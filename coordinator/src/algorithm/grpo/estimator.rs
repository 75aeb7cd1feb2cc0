//! The recipe's advantage estimator, and what it is given of a step.

use std::collections::BTreeSet;

use plumb_algo::AlgoError;
use plumb_algo::advantage::{
    Component, Cpgd, CpgdWeight, Estimator, Gdpo, Gpg, Grpo, Opo, Outcomes, PassK,
    ReinforceBaseline, ReinforcePlusPlusBaseline, Rloo, Singleton,
};
use plumb_algo::group::Groups;
use plumb_algo::mix::Mix;
use plumb_config::{Advantage, AlgorithmConfig, CpgdWeight as WeightKey};

use super::Rewarded;

/// The estimator that `[algorithm]` asks for. Groups of one are refused where samples are compared
/// within groups: the step leaves them out before.
pub(super) fn estimator(a: &AlgorithmConfig) -> Estimator {
    let singleton = Singleton::Refuse;
    let epsilon = |default: f64| a.advantage_epsilon.unwrap_or(default);
    match a.advantage {
        Advantage::GroupNorm => Estimator::GroupNorm,
        Advantage::Grpo => Estimator::Grpo(Grpo {
            norm_by_std: a.normalise_by_std,
            epsilon: epsilon(Grpo::default().epsilon),
            singleton,
        }),
        Advantage::GrpoPassk => Estimator::PassK(PassK {
            norm_by_std: a.normalise_by_std,
            epsilon: epsilon(PassK::default().epsilon),
        }),
        Advantage::Rloo => Estimator::Rloo(Rloo { singleton }),
        Advantage::ReinforceBaseline => {
            Estimator::ReinforceBaseline(ReinforceBaseline { singleton })
        }
        // GAE takes rewards as they are: its baseline is the critic.
        Advantage::Reinforce | Advantage::Gae => Estimator::Reinforce,
        Advantage::ReinforcePlusPlus => Estimator::ReinforcePlusPlus,
        Advantage::ReinforcePlusPlusBaseline => {
            Estimator::ReinforcePlusPlusBaseline(ReinforcePlusPlusBaseline { singleton })
        }
        Advantage::Opo => Estimator::Opo(Opo { singleton }),
        Advantage::Gpg => Estimator::Gpg(Gpg { norm: a.gpg_norm.unwrap_or(1.0), singleton }),
        Advantage::Cpgd => Estimator::Cpgd(Cpgd {
            weight: match a.cpgd_weight {
                None | Some(WeightKey::Std) => CpgdWeight::Std,
                Some(WeightKey::Centre) => CpgdWeight::Centre,
                Some(WeightKey::CompatClipFilter) => CpgdWeight::CompatClipFilter,
            },
            epsilon: epsilon(Cpgd::default().epsilon),
        }),
        Advantage::Gdpo => {
            Estimator::Gdpo(Gdpo { epsilon: epsilon(Gdpo::default().epsilon), ..Gdpo::default() })
        }
    }
}

/// The advantages of a step's samples, in their order.
pub(super) fn advantages(
    estimator: &Estimator,
    mix: &Mix,
    rewarded: &[Rewarded<'_>],
    groups: &Groups,
) -> Result<Vec<f64>, AlgoError> {
    let rewards: Vec<f64> = rewarded.iter().map(|r| r.reward).collect();
    let lengths: Vec<usize> = rewarded.iter().map(|r| r.tokens as usize).collect();
    let scores = component_scores(mix, rewarded);
    let components: Vec<Component<'_>> =
        scores.iter().map(|(weight, scores)| Component { weight: *weight, scores }).collect();
    estimator.advantages(&Outcomes {
        rewards: &rewards,
        groups,
        lengths_tokens: &lengths,
        components: &components,
    })
}

/// Weight and scores of each label's components over all samples. Samples of other labels have 0
/// there: their whole group has, so they are normalised to 0 and add nothing.
fn component_scores(mix: &Mix, rewarded: &[Rewarded<'_>]) -> Vec<(f64, Vec<f64>)> {
    let labels: BTreeSet<&str> = rewarded.iter().map(|r| r.label).collect();
    let mut all = Vec::new();
    for label in labels {
        for (component, weight) in mix.weights(label).unwrap_or_default() {
            let score = |r: &Rewarded<'_>| match r.label == label {
                true => r.scores.get(&component).copied().unwrap_or_default(),
                false => 0.0,
            };
            all.push((weight, rewarded.iter().map(score).collect()));
        }
    }
    all
}
