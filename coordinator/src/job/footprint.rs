//! Memory of a stage's roles: what was predicted beside what was measured.

use std::collections::BTreeMap;

use plumb_config::memory::{CUDA_CONTEXT_BYTES, RoleMemory};
use plumb_domain::Role;
use serde::{Deserialize, Serialize};

use crate::fleet::memory::PeakBytes;

/// A measured peak above this multiple of the prediction is worth a warning.
const TOLERANCE: f64 = 1.1;

/// Memory of one process of a role, the largest of its group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// The stage.
    pub stage: String,
    /// The role.
    pub role: String,
    /// Its processes.
    pub ranks: u64,
    /// What `plumb explain` says.
    pub predicted_bytes: u64,
    /// What a process held at most.
    pub measured_bytes: u64,
    /// The same by phase, as the calls are named.
    pub measured_by_phase: BTreeMap<String, u64>,
}

impl Footprint {
    /// The roles of a stage that were both predicted and measured.
    #[must_use]
    pub fn of_stage(
        stage: &str,
        predicted: &[RoleMemory],
        measured: &BTreeMap<Role, PeakBytes>,
    ) -> Vec<Self> {
        let found = predicted.iter().filter_map(|role| {
            let (_, peaks) = measured.iter().find(|(found, _)| found.as_str() == role.role)?;
            // A device's allocator does not see its context.
            let context = if role.gpus > 0.0 { CUDA_CONTEXT_BYTES } else { 0 };
            Some(Self {
                stage: stage.to_owned(),
                role: role.role.to_owned(),
                ranks: role.ranks,
                predicted_bytes: role.peak_bytes().saturating_sub(context),
                measured_bytes: *peaks.values().max()?,
                measured_by_phase: peaks.clone(),
            })
        });
        found.collect()
    }

    /// Measured by predicted.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.measured_bytes as f64 / self.predicted_bytes.max(1) as f64
    }

    /// What to say when the prediction was too low.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let mib = |bytes: u64| bytes as f64 / f64::from(1u32 << 20);
        (self.ratio() > TOLERANCE).then(|| {
            format!(
                "a {} process of stage {:?} held {:.0} MiB, {:.0} % more than the {:.0} MiB that \
                 were predicted",
                self.role,
                self.stage,
                mib(self.measured_bytes),
                (self.ratio() - 1.0) * 100.0,
                mib(self.predicted_bytes)
            )
        })
    }

    /// Figures for the run's log.
    #[must_use]
    pub fn figures(&self) -> [(String, f64); 2] {
        [
            (format!("memory/{}/predicted_bytes", self.role), self.predicted_bytes as f64),
            (format!("memory/{}/measured_bytes", self.role), self.measured_bytes as f64),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plumb_config::memory::PhaseMemory;

    fn role(name: &'static str, gpus: f64, bytes: u64) -> RoleMemory {
        let phases = vec![PhaseMemory::new("update", &[("all", bytes)])];
        RoleMemory { role: name, group: name, ranks: 2, gpus, phases, idle_bytes: 0, host_bytes: 0 }
    }

    fn measured(role: Role, bytes: [u64; 2]) -> BTreeMap<Role, PeakBytes> {
        let peaks = [("load".to_owned(), bytes[0]), ("update".to_owned(), bytes[1])];
        [(role, PeakBytes::from(peaks))].into()
    }

    #[test]
    fn a_peak_far_above_the_prediction_is_told() {
        let of = |update: u64| {
            let peaks = measured(Role::Policy, [50 << 20, update << 20]);
            let roles = [role("policy", 0.0, 100 << 20), role("rollout", 0.0, 1)];
            Footprint::of_stage("rl", &roles, &peaks)
        };
        let near = of(109);
        assert_eq!(near.len(), 1);
        assert_eq!((near[0].warning(), near[0].measured_bytes), (None, 109 << 20));
        let text = of(125)[0].warning().unwrap();
        assert!(text.contains("policy") && text.contains("125 MiB, 25 % more"), "{text}");
    }

    #[test]
    fn a_device_is_compared_without_its_context() {
        let peaks = measured(Role::Rollout, [0, 40 << 20]);
        let predicted = CUDA_CONTEXT_BYTES + (40 << 20);
        let found = Footprint::of_stage("rl", &[role("rollout", 1.0, predicted)], &peaks);
        assert_eq!(found[0].ratio(), 1.0);
    }
}
