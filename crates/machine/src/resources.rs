//! What nodes have and bundles need. Fractions are counted in thousandths, so that sums are exact.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One GPU of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuSlot {
    /// As the driver names it.
    pub uuid: String,
    /// Its memory.
    pub memory_bytes: u64,
}

/// What a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeResources {
    /// Thousandths of a CPU.
    pub cpus_milli: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// GPUs in device order.
    pub gpus: Vec<GpuSlot>,
}

/// What one worker needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Thousandths of a CPU.
    pub cpus_milli: u64,
    /// Memory; 0 where it is not known.
    pub memory_bytes: u64,
    /// Thousandths of a GPU: up to 1000 is a share of one device, above it whole devices.
    pub gpus_milli: u64,
}

/// A share of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuShare {
    /// Index on its node.
    pub index: u32,
    /// Thousandths of it.
    pub milli: u64,
}

/// What a placed worker may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// What was asked for.
    pub bundle: Bundle,
    /// Which devices; empty on CPU.
    pub gpus: Vec<GpuShare>,
}

/// What is left on a node.
#[derive(Debug, Clone)]
pub(crate) struct Free {
    cpus_milli: u64,
    memory_bytes: u64,
    gpus_milli: Vec<u64>,
}

impl Free {
    pub(crate) fn all_of(node: &NodeResources) -> Self {
        Self {
            cpus_milli: node.cpus_milli,
            memory_bytes: node.memory_bytes,
            gpus_milli: vec![1_000; node.gpus.len()],
        }
    }

    /// Accounts for something that is placed already.
    pub(crate) fn occupy(&mut self, assignment: &Assignment) {
        self.cpus_milli = self.cpus_milli.saturating_sub(assignment.bundle.cpus_milli);
        self.memory_bytes = self.memory_bytes.saturating_sub(assignment.bundle.memory_bytes);
        for share in &assignment.gpus {
            if let Some(left) = self.gpus_milli.get_mut(share.index as usize) {
                *left = left.saturating_sub(share.milli);
            }
        }
    }

    /// Takes a bundle, or says what is missing. Nothing is taken on failure.
    pub(crate) fn take(&mut self, bundle: &Bundle) -> Result<Assignment, String> {
        if bundle.cpus_milli > self.cpus_milli {
            return Err(format!(
                "{} CPUs free, {} needed",
                Milli(self.cpus_milli),
                Milli(bundle.cpus_milli)
            ));
        }
        if bundle.memory_bytes > self.memory_bytes {
            return Err(format!(
                "{} bytes of memory free, {} needed",
                self.memory_bytes, bundle.memory_bytes
            ));
        }
        let gpus = self.pick_gpus(bundle.gpus_milli)?;
        let assignment = Assignment { bundle: *bundle, gpus };
        self.occupy(&assignment);
        Ok(assignment)
    }

    fn pick_gpus(&self, needed_milli: u64) -> Result<Vec<GpuShare>, String> {
        if needed_milli == 0 {
            return Ok(Vec::new());
        }
        let devices = self.gpus_milli.len();
        let indexed = || (0_u32..).zip(self.gpus_milli.iter().copied());
        if needed_milli <= 1_000 {
            // Best fit: the fullest device that still has room keeps whole devices whole.
            let best = indexed().filter(|(_, left)| *left >= needed_milli).min_by_key(|(_, l)| *l);
            let (index, _) = best.ok_or_else(|| {
                let most = self.gpus_milli.iter().copied().max().unwrap_or(0);
                format!(
                    "{devices} GPUs, at most {} of one free, {} needed",
                    Milli(most),
                    Milli(needed_milli)
                )
            })?;
            return Ok(vec![GpuShare { index, milli: needed_milli }]);
        }
        let whole = usize::try_from(needed_milli / 1_000).unwrap_or(usize::MAX);
        let empty: Vec<GpuShare> = indexed()
            .filter(|(_, left)| *left == 1_000)
            .map(|(index, milli)| GpuShare { index, milli })
            .collect();
        if empty.len() < whole {
            return Err(format!("{} of {devices} GPUs wholly free, {whole} needed", empty.len()));
        }
        Ok(empty.into_iter().take(whole).collect())
    }
}

/// Thousandths, printed as a decimal number.
pub(crate) struct Milli(pub(crate) u64);

impl fmt::Display for Milli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1_000) {
            return write!(f, "{}", self.0 / 1_000);
        }
        let text = format!("{}.{:03}", self.0 / 1_000, self.0 % 1_000);
        f.write_str(text.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(cpus_milli: u64, gpus_milli: u64) -> Bundle {
        Bundle { cpus_milli, memory_bytes: 0, gpus_milli }
    }

    fn node(gpus: usize) -> NodeResources {
        let gpu = |i: usize| GpuSlot { uuid: format!("GPU-{i}"), memory_bytes: 1 };
        NodeResources {
            cpus_milli: 4_000,
            memory_bytes: 1 << 30,
            gpus: (0..gpus).map(gpu).collect(),
        }
    }

    #[test]
    fn shares_of_a_gpu_pack_onto_the_fullest_device_that_has_room() {
        let mut free = Free::all_of(&node(2));
        let share = |free: &mut Free, milli| free.take(&bundle(0, milli)).map(|a| a.gpus);
        assert_eq!(share(&mut free, 600), Ok(vec![GpuShare { index: 0, milli: 600 }]));
        assert_eq!(share(&mut free, 400), Ok(vec![GpuShare { index: 0, milli: 400 }]));
        assert_eq!(share(&mut free, 400), Ok(vec![GpuShare { index: 1, milli: 400 }]));
        assert_eq!(
            share(&mut free, 700),
            Err("2 GPUs, at most 0.6 of one free, 0.7 needed".to_owned())
        );
        assert_eq!(share(&mut free, 2_000), Err("0 of 2 GPUs wholly free, 2 needed".to_owned()));
    }

    #[test]
    fn a_failed_take_takes_nothing() {
        let mut free = Free::all_of(&node(1));
        assert!(free.take(&bundle(3_000, 1_000)).is_ok());
        assert_eq!(free.take(&bundle(1_500, 0)), Err("1 CPUs free, 1.5 needed".to_owned()));
        assert!(free.take(&bundle(1_000, 0)).is_ok());
    }
}
