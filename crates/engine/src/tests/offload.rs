//! OFF-1, and on a GPU that offloading gives the same run with less of the device's memory.

use plumb_collective::solo;
use tch::Device;

use super::support::{ranks, settings};
use super::training_curve::{assert_curve, curves, data, step, train};
use crate::{EngineSettings, LoadPlan, MomentState, Offload, Precision, ShardedModel};

const OFFLOADS: [Offload; 2] =
    [Offload { optimizer: true, parameters: false }, Offload { optimizer: true, parameters: true }];

#[test]
fn off_1_offloading_changes_no_number() {
    let curves = curves();
    let adamw = curves.settings.adamw();
    let cuts = [
        (true, true, Precision::Fp32),
        (false, true, Precision::Bf16),
        (true, false, Precision::Bf16),
    ];
    // One micro-batch at world size 1, where the device adds up gradients in another order.
    for (world_size, micro_batch_tokens) in [(1, 1000), (2, 48), (4, 48)] {
        for (recompute, reshard_after_forward, compute) in cuts {
            let base = settings();
            let kept = EngineSettings {
                compute,
                recompute,
                reshard_after_forward,
                micro_batch_tokens,
                ..base
            };
            let expected = train(&curves, kept.clone(), (&adamw, None), world_size);
            for offload in OFFLOADS {
                let offloaded = EngineSettings { offload, ..kept.clone() };
                let curve = train(&curves, offloaded, (&adamw, None), world_size);
                let what = format!("{offload:?}, {world_size} ranks, {kept:?}");
                assert_eq!(curve.losses, expected.losses, "{what}");
                assert_eq!(curve.grad_norms, expected.grad_norms, "{what}");
            }
        }
    }
}

#[test]
fn an_offloaded_model_resumes_from_a_checkpoint_and_exports_its_masters() {
    let curves = curves();
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("checkpoint");
    let load = |offload, comm| {
        let optimizer =
            crate::AdamWSettings { state: MomentState::EightBit, ..curves.settings.adamw() };
        let plan = LoadPlan {
            optimizer: Some(optimizer),
            ..super::support::plan(EngineSettings { offload, ..settings() })
        };
        ShardedModel::load(&data().join("train-qwen2"), plan, comm).unwrap()
    };
    let after: Vec<_> = ranks(2, |comm| {
        let mut model = load(OFFLOADS[1], comm);
        step(&mut model, &curves.steps[0], 1e-3);
        model.save_checkpoint(&folder).unwrap();
        model.export(&run.path().join("export"), Precision::Fp32).unwrap();
        step(&mut model, &curves.steps[1], 1e-3)
    });
    let resumed: Vec<_> = ranks(2, |comm| {
        let mut model = load(Offload::default(), comm);
        model.load_checkpoint(&folder).unwrap();
        step(&mut model, &curves.steps[1], 1e-3)
    });
    assert_eq!(after, resumed);
    let plan = super::support::plan(settings());
    let exported = ShardedModel::load(&run.path().join("export"), plan, Box::new(solo())).unwrap();
    let mut restored = load(Offload::default(), Box::new(solo()));
    restored.load_checkpoint(&folder).unwrap();
    assert_eq!(super::support::weights(&exported), super::support::weights(&restored));
}

#[test]
fn gpu_offloading_gives_the_same_run_with_less_device_memory() {
    if let Err(error) = plumb_torch::cuda::load() {
        println!("skipped: no cuda device here ({error})");
        return;
    }
    let curves = curves();
    let adamw = curves.settings.adamw();
    let peak = |offload| {
        plumb_torch::device::empty_cache().unwrap();
        plumb_torch::device::reset_peak(0).unwrap();
        let on_gpu = EngineSettings { device: Device::Cuda(0), offload, ..settings() };
        let curve = train(&curves, on_gpu, (&adamw, None), 1);
        assert_curve(&curve.losses, &curves.cases.fp32.losses, 1e-4, &format!("{offload:?}"));
        plumb_torch::device::memory(0).unwrap().peak_bytes
    };
    let kept = peak(Offload::default());
    let [optimizer, both] = OFFLOADS.map(peak);
    println!("peak device memory: kept {kept}, optimizer {optimizer}, parameters {both} bytes");
    assert!(both < optimizer && optimizer < kept, "{kept}, {optimizer}, {both}");
}
