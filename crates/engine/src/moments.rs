//! The moments of one block's shard, and the step on them.

use std::collections::BTreeMap;

use plumb_torch::AdamW as Rule;
use plumb_torch::allocator::mapped_zeros;
use tch::{Device, Kind, Tensor};

use crate::eight_bit::{BLOCK, DynamicMap, Quantized};
use crate::trained_runs::Run;
use crate::{MomentState, Result};

/// Elements of 8-bit moments that are in fp32 at once: bounds a step's extra memory to 8 MiB.
const CHUNK: i64 = 4096 * BLOCK;

/// Running means of the gradient and of its square, `[S]`.
#[derive(Debug)]
pub(crate) enum Moments {
    /// fp32.
    Full {
        /// Of the gradient.
        first_s: Tensor,
        /// Of its square.
        second_s: Tensor,
    },
    /// One byte an element.
    EightBit {
        /// Of the gradient.
        first: Quantized,
        /// Of its square.
        second: Quantized,
    },
}

/// The maps of 8-bit moments on a device.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) first: DynamicMap,
    pub(crate) second: DynamicMap,
}

impl Maps {
    pub(crate) fn new(device: Device) -> Self {
        Self { first: DynamicMap::signed(device), second: DynamicMap::unsigned(device) }
    }
}

impl Moments {
    /// Zeros for a master `[S]`, where it lies.
    pub(crate) fn zeros(state: MomentState, master_s: &Tensor) -> Self {
        match state {
            MomentState::Fp32 => {
                let (elements, device) = (master_s.size()[0], master_s.device());
                let zeros = || mapped_zeros(elements, Kind::Float, device);
                Self::Full { first_s: zeros(), second_s: zeros() }
            }
            MomentState::EightBit => {
                let (elements, maps) = (master_s.size()[0], Maps::new(master_s.device()));
                Self::EightBit {
                    first: Quantized::zeros(elements, &maps.first),
                    second: Quantized::zeros(elements, &maps.second),
                }
            }
        }
    }

    /// What a checkpoint stores, by name.
    pub(crate) fn vectors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Full { first_s, second_s } => vec![("first", first_s), ("second", second_s)],
            Self::EightBit { first, second } => vec![
                ("first", &first.codes_s),
                ("first.scales", &first.scales_b),
                ("second", &second.codes_s),
                ("second.scales", &second.scales_b),
            ],
        }
    }

    /// Takes moments from fp32 vectors `[S]`.
    pub(crate) fn set(&mut self, first: &Tensor, second: &Tensor) {
        match self {
            Self::Full { first_s, second_s } => {
                first_s.copy_(first);
                second_s.copy_(second);
            }
            Self::EightBit { first: own_first, second: own_second } => {
                let device = own_first.codes_s.device();
                let maps = Maps::new(device);
                own_first.write(&maps.first, 0, &first.to_device(device));
                own_second.write(&maps.second, 0, &second.to_device(device));
            }
        }
    }

    /// Steps a master on its gradient; each run by the rule of its group. The first vectors of
    /// the four are `[S]`.
    pub(crate) fn step(
        &mut self,
        master_s: &Tensor,
        grad_s: &Tensor,
        runs: &[Run],
        rule: &impl Fn(Option<usize>) -> Rule,
        steps_taken: u64,
    ) -> Result<()> {
        match self {
            Self::Full { first_s, second_s } => {
                step_runs([master_s, grad_s, first_s, second_s], 0, runs, rule, steps_taken)
            }
            Self::EightBit { first, second } => {
                let maps = Maps::new(master_s.device());
                let elements = master_s.size()[0];
                for start in (0..elements).step_by(CHUNK as usize) {
                    let count = CHUNK.min(elements - start);
                    let runs: Vec<Run> =
                        runs.iter().filter_map(|run| run.within(start, count)).collect();
                    if runs.is_empty() {
                        continue;
                    }
                    let first_n = first.read(&maps.first, start, count);
                    let second_n = second.read(&maps.second, start, count);
                    let of = |vector_s: &Tensor| vector_s.narrow(0, start, count);
                    let vectors = [&of(master_s), &of(grad_s), &first_n, &second_n];
                    step_runs(vectors, start, &runs, rule, steps_taken)?;
                    first.write(&maps.first, start, &first_n);
                    second.write(&maps.second, start, &second_n);
                }
                Ok(())
            }
        }
    }
}

/// Runs the fused kernel once per group. `vectors` are master, gradient and moments from element
/// `start` of the shard on.
fn step_runs(
    vectors: [&Tensor; 4],
    start: i64,
    runs: &[Run],
    rule: &impl Fn(Option<usize>) -> Rule,
    steps_taken: u64,
) -> Result<()> {
    let mut lists: BTreeMap<Option<usize>, [Vec<Tensor>; 4]> = BTreeMap::new();
    for run in runs {
        let lists = lists.entry(run.group).or_default();
        for (list, vector) in lists.iter_mut().zip(vectors) {
            list.push(vector.narrow(0, run.first - start, run.count));
        }
    }
    for (group, [masters, grads, firsts, seconds]) in lists {
        let taken = || Tensor::from(steps_taken as f32).to_device(vectors[0].device());
        let steps: Vec<_> = masters.iter().map(|_| taken()).collect();
        rule(group).step(&masters, &grads, &firsts, &seconds, &steps)?;
    }
    Ok(())
}
