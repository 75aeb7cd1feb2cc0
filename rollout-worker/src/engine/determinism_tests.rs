//! What a sample depends on, with a real (tiny, random) model; and how far its log-probs are from
//! the trainer's.

use plumb_domain::SamplingParams;
use plumb_engine::{EngineSettings, LoadPlan, Precision, ResponseSample, ShardedModel, log_probs};
use plumb_model::HeadSpec;
use tch::{Device, Tensor};

use super::*;
use crate::stop::{Detokenizer, StopRules};
use crate::tiny_model;

struct NoText;

impl Detokenizer for NoText {
    fn text(&self, _ids: &[u32]) -> String {
        String::new()
    }
}

const ROOM: Limits = Limits { max_sequences: 64, kv_cache_bytes: 1 << 24, prefill_tokens: 4096 };
const TEMPERATURE: f64 = 0.9;
const SAMPLES: u32 = 16;

fn prompts(count: u32) -> Vec<EncodedPrompt> {
    (0..count)
        .map(|n| EncodedPrompt {
            id: format!("p{n}"),
            label: "general".into(),
            ids: (0..3 + 2 * n).map(|t| (7 * t + n) % 31).collect(),
            question: String::new(),
            reference: None,
        })
        .collect()
}

fn request(prompts: Vec<EncodedPrompt>, new_tokens: u32) -> Request {
    Request {
        prompts,
        samples_per_prompt: SAMPLES,
        sampling: SamplingParams {
            max_new_tokens: new_tokens,
            temperature: TEMPERATURE,
            ..SamplingParams::default()
        },
        stop: StopRules::default(),
        seed: 5,
        step: 1,
    }
}

/// All samples of these requests, in the order of their prompts' ids.
fn written(
    deterministic: bool,
    limits: Limits,
    requests: Vec<Request>,
) -> (BTreeMap<String, FinishedGroup>, Figures) {
    let mut native = tiny_model::native(3);
    if deterministic {
        native.make_deterministic().unwrap();
    }
    let mut engine = Engine::new(native, Box::new(NoText), limits, PolicyVersion(0));
    let mut open: Vec<RequestId> =
        requests.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    let mut groups = BTreeMap::new();
    while !open.is_empty() {
        engine.step();
        open.retain(|id| {
            let collected = engine.collect(*id).unwrap();
            groups.extend(collected.groups.into_iter().map(|g| (g.prompt.id.clone(), g)));
            !collected.done
        });
    }
    (groups, engine.figures())
}

fn texts(groups: &BTreeMap<String, FinishedGroup>) -> Vec<&[u32]> {
    groups.values().flat_map(|g| &g.samples).map(|s| s.response_ids.as_slice()).collect()
}

/// Bits of every log-prob.
fn bits(groups: &BTreeMap<String, FinishedGroup>) -> Vec<u32> {
    let samples = groups.values().flat_map(|group| &group.samples);
    samples.flat_map(|s| &s.logps).map(|logp| logp.to_bits()).collect()
}

/// Limits and companies under which the same samples are asked for.
fn circumstances() -> Vec<(Limits, Vec<Request>)> {
    let all = || prompts(8);
    let block = 16 * tiny_model::native(3).kv_bytes_per_token();
    let crowded = Limits { kv_cache_bytes: 23 * block, ..ROOM };
    let mut backwards = all();
    backwards.reverse();
    let (late, early) = (backwards.split_off(3), backwards);
    vec![
        (Limits { max_sequences: 1, ..ROOM }, vec![request(all(), 24)]),
        (Limits { max_sequences: 7, prefill_tokens: 5, ..ROOM }, vec![request(all(), 24)]),
        (crowded, vec![request(all(), 24)]),
        (ROOM, vec![request(early, 24), request(late, 24)]),
    ]
}

#[test]
fn ro_1_deterministic_samples_are_the_same_to_the_bit_in_any_company() {
    let (expected, _) = written(true, ROOM, vec![request(prompts(8), 24)]);
    let mut preemptions = 0;
    for (limits, requests) in circumstances() {
        let (groups, figures) = written(true, limits, requests);
        assert_eq!(texts(&groups), texts(&expected), "{limits:?}");
        assert_eq!(bits(&groups), bits(&expected), "{limits:?}");
        preemptions += figures.preemptions;
    }
    assert!(preemptions > 0, "no sequence lost its blocks");
}

#[test]
fn ro_1_three_workers_write_what_one_writes() {
    for deterministic in [true, false] {
        let (expected, _) = written(deterministic, ROOM, vec![request(prompts(8), 24)]);
        let mut groups = BTreeMap::new();
        for worker in 0..3 {
            let own = prompts(8).into_iter().skip(worker).step_by(3).collect();
            groups.append(&mut written(deterministic, ROOM, vec![request(own, 24)]).0);
        }
        assert_eq!(texts(&groups), texts(&expected));
        assert!(!deterministic || bits(&groups) == bits(&expected));
    }
}

/// By default the last bits of the logits hang on the batch. A draw changes with them only where
/// the uniform number is that close to a border of the distribution: differences of 1e-6 in the
/// cumulative distribution make that one token in about a million, so these 3,072 agree.
#[test]
fn ro_1_by_default_the_tokens_are_the_same_in_any_company() {
    let (expected, _) = written(false, ROOM, vec![request(prompts(8), 24)]);
    let mut other_bits = false;
    for (limits, requests) in circumstances() {
        let (groups, _) = written(false, limits, requests);
        assert_eq!(texts(&groups), texts(&expected), "{limits:?}");
        other_bits |= bits(&groups) != bits(&expected);
    }
    println!("log-probs differ in their last bits with the batch: {other_bits}");
}

/// The trainer's log-probs of all samples, in order.
fn trained(groups: &BTreeMap<String, FinishedGroup>, one_sample_a_pass: bool) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    tiny_model::write_folder(&path, 3);
    let settings = EngineSettings {
        compute: Precision::Fp32,
        reduce: Precision::Fp32,
        recompute: true,
        reshard_after_forward: true,
        micro_batch_tokens: 2048,
        one_sample_a_pass,
        frozen_layers: 0,
        device: Device::Cpu,
        offload: plumb_engine::Offload::default(),
    };
    let plan = LoadPlan {
        head: HeadSpec::CausalLm,
        head_seed: 0,
        settings,
        optimizer: None,
        lora: None,
        ema: None,
    };
    let mut model = ShardedModel::load(&path, plan, Box::new(plumb_collective::solo())).unwrap();
    let samples: Vec<ResponseSample> = groups
        .values()
        .flat_map(|group| group.samples.iter().map(|s| (&group.prompt.ids, s)))
        .map(|(prompt_ids, sample)| ResponseSample {
            id: "s".into(),
            prompt_ids: prompt_ids.clone(),
            response_ids: sample.response_ids.clone(),
            rollout_logps: sample.logps.clone(),
        })
        .collect();
    let rows = log_probs(&mut model, &samples, TEMPERATURE).unwrap();
    rows.into_iter().map(|row| row.logps).collect()
}

#[test]
fn deterministic_log_probs_are_the_trainer_s_over_ten_thousand_tokens() {
    let (groups, figures) = written(true, ROOM, vec![request(prompts(10), 64)]);
    let trainer: Vec<u32> = trained(&groups, true).concat().into_iter().map(f32::to_bits).collect();
    assert!(trainer.len() >= 10_000, "{} tokens", trainer.len());
    let rollout = bits(&groups);
    assert_eq!(rollout.len(), trainer.len());
    let unequal = rollout.iter().zip(&trainer).filter(|(a, b)| a != b).count();
    println!("deterministic: {unequal} of {} log-probs differ ({figures:?})", trainer.len());
    assert_eq!(unequal, 0);
}

#[test]
fn by_default_the_mismatch_with_the_trainer_is_below_1e_4_in_fp32() {
    let (groups, _) = written(false, ROOM, vec![request(prompts(10), 64)]);
    let rollout: Vec<f32> =
        groups.values().flat_map(|g| &g.samples).flat_map(|s| s.logps.clone()).collect();
    let trainer = trained(&groups, false).concat();
    let mut mismatch = plumb_engine::mismatch::Mismatch::default();
    mismatch.add(&Tensor::from_slice(&trainer), &Tensor::from_slice(&rollout));
    println!(
        "default, {} tokens: |delta log p| max {:.1e}, mean {:.1e}, KL {:.1e}",
        trainer.len(),
        mismatch.max,
        mismatch.mean(),
        mismatch.kl()
    );
    assert!(mismatch.max < 1e-4 && mismatch.kl() < 1e-8, "{mismatch:?}");
}
