//! 8-bit moments: beside fp32 ones over PyTorch's twenty steps, and in checkpoints.

use std::path::Path;

use plumb_collective::Collective;

use super::support::{plan, ranks, settings, weights};
use super::training_curve::{Curves, curves, data, step, train};
use crate::{AdamWSettings, LoadPlan, MomentState, ShardedModel};

/// How far a loss may be from that of fp32 moments, as a share of it.
const BOUND: f64 = 1e-3;

fn eight_bit(curves: &Curves) -> AdamWSettings {
    AdamWSettings { state: MomentState::EightBit, ..curves.settings.adamw() }
}

#[test]
fn the_losses_stay_close_to_those_of_fp32_moments() {
    let curves = curves();
    let expected = &curves.cases.fp32.losses;
    for world_size in [1, 2, 4] {
        let curve = train(&curves, settings(), (&eight_bit(&curves), None), world_size);
        let error = |(got, expected): (&f64, &f64)| (got - expected).abs() / expected;
        let worst = curve.losses.iter().zip(expected).map(error).fold(0.0, f64::max);
        eprintln!("8-bit moments, world size {world_size}: largest relative error {worst:.2e}");
        assert!(worst < BOUND, "world size {world_size}: {worst}");
        assert_ne!(&curve.losses, expected, "the moments are not in 8 bits");
    }
}

fn load(curves: &Curves, state: MomentState, comm: Box<dyn Collective>) -> ShardedModel {
    let optimizer = AdamWSettings { state, ..curves.settings.adamw() };
    let plan = LoadPlan { optimizer: Some(optimizer), ..plan(settings()) };
    ShardedModel::load(&data().join("train-qwen2"), plan, comm).unwrap()
}

/// The vectors of all moments of this rank, as bytes.
fn moments(model: &ShardedModel) -> Vec<Vec<u8>> {
    let optimizer = model.optimizer.as_ref().unwrap();
    let blocks = (0..model.blocks.len()).filter_map(|block| optimizer.moments(block));
    let vectors = blocks.flat_map(|moments| moments.vectors());
    vectors.map(|(_, vector)| plumb_torch::bytes(vector).unwrap().to_vec()).collect()
}

/// Steps `range`; the loss of each, summed over ranks.
fn steps(model: &mut ShardedModel, curves: &Curves, range: std::ops::Range<usize>) -> Vec<f64> {
    let one = |index: usize| {
        let rate = curves.settings.learning_rate(index);
        let (loss, _) = step(model, &curves.steps[index], rate);
        model.sum_over_ranks([loss]).unwrap()[0]
    };
    range.map(one).collect()
}

/// Eight steps and a checkpoint, then four more: the moments and weights at the checkpoint, and
/// the last losses.
type Course = (Vec<Vec<u8>>, Vec<f32>, Vec<f64>);

fn saved(curves: &Curves, state: MomentState, world_size: usize, folder: &Path) -> Vec<Course> {
    ranks(world_size, |comm| {
        let mut model = load(curves, state, comm);
        steps(&mut model, curves, 0..8);
        model.save_checkpoint(folder).unwrap();
        let (moments, weights) = (moments(&model), weights(&model));
        (moments, weights, steps(&mut model, curves, 8..12))
    })
}

fn resumed(curves: &Curves, state: MomentState, world_size: usize, folder: &Path) -> Vec<Course> {
    ranks(world_size, |comm| {
        let mut model = load(curves, state, comm);
        model.load_checkpoint(folder).unwrap();
        let (moments, weights) = (moments(&model), weights(&model));
        (moments, weights, steps(&mut model, curves, 8..12))
    })
}

#[test]
fn a_checkpoint_restores_the_bits_at_its_world_size_and_the_values_at_others() {
    let curves = curves();
    let run = tempfile::tempdir().unwrap();
    for from in [1, 2, 4] {
        let folder = run.path().join(format!("from-{from}"));
        let before = saved(&curves, MomentState::EightBit, from, &folder);
        let same = resumed(&curves, MomentState::EightBit, from, &folder);
        assert_eq!(same, before, "world size {from}");
        for to in [1, 2, 4].into_iter().filter(|to| *to != from) {
            let other = resumed(&curves, MomentState::EightBit, to, &folder);
            assert_eq!(other[0].1, before[0].1, "the weights are in fp32");
            for (got, expected) in other[0].2.iter().zip(&before[0].2) {
                let error = (got - expected).abs() / expected;
                assert!(error < BOUND, "{from} to {to} ranks: {got} instead of {expected}");
            }
        }
    }
}

#[test]
fn a_run_may_change_the_state_of_its_moments_at_a_checkpoint() {
    let curves = curves();
    let run = tempfile::tempdir().unwrap();
    let states = [MomentState::Fp32, MomentState::EightBit];
    for (from, to) in [(states[0], states[1]), (states[1], states[0])] {
        let folder = run.path().join(format!("{from:?}"));
        let before = saved(&curves, from, 2, &folder);
        let after = resumed(&curves, to, 2, &folder);
        for (got, expected) in after[0].2.iter().zip(&before[0].2) {
            let error = (got - expected).abs() / expected;
            assert!(error < BOUND, "{from:?} to {to:?}: {got} instead of {expected}");
        }
    }
}

#[test]
fn moments_take_a_quarter_of_their_memory() {
    let curves = curves();
    let bytes = |state| {
        let model = load(&curves, state, Box::new(plumb_collective::solo()));
        (moments(&model).concat().len() as f64, model.parameters() as f64)
    };
    let (full, parameters) = bytes(MomentState::Fp32);
    let (small, _) = bytes(MomentState::EightBit);
    assert_eq!(full / parameters, 8.0);
    // A block's last part may be short of 256 elements.
    assert!((small / parameters - 2.031_25).abs() < 1e-3, "{}", small / parameters);
}
