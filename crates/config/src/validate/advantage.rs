//! Contradictions in the choice of an advantage estimator and its keys.

use super::Findings;
use crate::schema::{Advantage, AlgorithmConfig, CpgdWeight};
use crate::{KlPlace, Recipe};

impl Recipe {
    pub(super) fn check_advantage(&self, found: &mut Findings) {
        let a = &self.algorithm;
        let name = a.advantage.as_str();
        found.require(
            a.samples_per_prompt >= 2 || !a.advantage.compares_within_group(),
            "algorithm.samples_per_prompt",
            format!(
                "a group of {} has nothing to compare with for advantage = {name:?}",
                a.samples_per_prompt
            ),
            "write at least 2, or take reinforce, reinforce_plus_plus, cpgd or gae",
        );
        found.require(
            a.samples_per_prompt >= 1 || a.advantage.compares_within_group(),
            "algorithm.samples_per_prompt",
            "0 answers",
            "write at least 1",
        );
        found.require(
            a.normalise_by_std || matches!(a.advantage, Advantage::Grpo | Advantage::GrpoPassk),
            "algorithm.normalise_by_std",
            format!("false has no meaning for advantage = {name:?}"),
            "use advantage = \"grpo\" or \"grpo_passk\", or leave it true",
        );
        found.require(
            !a.skip_equal_groups || a.advantage.ignores_equal_groups(),
            "algorithm.skip_equal_groups",
            format!("groups of equal rewards teach something with advantage = {name:?}"),
            "leave it false, or take an advantage that compares rewards within groups only",
        );
        // Whitening over tokens has to see the penalty, which the policy alone adds.
        found.require(
            a.kl.place == KlPlace::Loss || !a.advantage.whitens(),
            "algorithm.advantage",
            format!("{name:?} is whitened before a KL penalty in the reward would be taken off"),
            "write kl.place = \"loss\", or take another advantage",
        );
        check_keys(a, found);
    }
}

/// Keys that belong to some of the estimators.
fn check_keys(a: &AlgorithmConfig, found: &mut Findings) {
    let name = a.advantage.as_str();
    if let Some(epsilon) = a.advantage_epsilon {
        let divides = match a.advantage {
            Advantage::Grpo | Advantage::GrpoPassk => a.normalise_by_std,
            Advantage::Cpgd => a.cpgd_weight.is_none_or(|w| w == CpgdWeight::Std),
            Advantage::Gdpo => true,
            _ => false,
        };
        found.require(
            divides && epsilon.is_finite() && epsilon >= 0.0,
            "algorithm.advantage_epsilon",
            format!("{epsilon} with advantage = {name:?}"),
            "give a number >= 0 to an advantage that divides by a standard deviation (grpo, \
             grpo_passk, cpgd, gdpo), and leave it out elsewhere",
        );
    }
    if let Some(norm) = a.gpg_norm {
        found.require(
            a.advantage == Advantage::Gpg && norm.is_finite() && norm > 0.0,
            "algorithm.gpg_norm",
            format!("{norm} with advantage = {name:?}"),
            "give a number > 0 to advantage = \"gpg\", and leave it out elsewhere",
        );
    }
    found.require(
        a.cpgd_weight.is_none() || a.advantage == Advantage::Cpgd,
        "algorithm.cpgd_weight",
        format!("it has no meaning for advantage = {name:?}"),
        "use advantage = \"cpgd\", or leave it out",
    );
}
