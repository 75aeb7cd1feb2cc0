//! Offloading from where there is nothing to offload.

use super::Findings;
use crate::Recipe;
use crate::schema::{OffloadConfig, Stage};

impl Recipe {
    pub(super) fn check_offload(&self, found: &mut Findings) {
        let offload = self.engine.offload;
        if offload == OffloadConfig::default() {
            return;
        }
        found.require(
            offload.optimizer,
            "engine.offload.parameters",
            "the master weights would stay on the GPU",
            "write optimizer = true beside it",
        );
        let policy = |s: &Stage| s.reinforces() || matches!(s, Stage::Sft(_) | Stage::Dpo(_));
        let a = &self.algorithm;
        let scores = |s: &Stage| matches!(s, Stage::RewardModel(_) | Stage::CostModel(_));
        let g = &self.groups;
        let groups = [
            ("policy", g.policy.gpus, self.stage.iter().any(policy)),
            ("reference", g.reference.gpus, self.needs_reference()),
            ("critic", g.critic.gpus, a.critic.is_some()),
            ("cost_critic", g.cost_critic.gpus, a.cost_critic.is_some()),
            ("reward_trainer", g.reward_trainer.gpus, self.stage.iter().any(scores)),
        ];
        for (role, gpus, used) in groups {
            found.require(
                !used || gpus > 0.0,
                "engine.offload",
                format!("groups.{role}.gpus = 0 computes on the CPU, whose memory is the host's"),
                &format!("set groups.{role}.gpus, or leave engine.offload out"),
            );
        }
    }
}
