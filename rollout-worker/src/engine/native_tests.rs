//! The scheduler over a real (tiny, random) model.

use std::collections::BTreeMap;

use plumb_domain::{PolicyVersion, SamplingParams};
use tch::{Kind, Tensor};

use super::*;
use plumb_model::Packed;

use crate::engine::{EncodedPrompt, Engine, FinishedSample, Limits, Request};
use crate::stop::{Detokenizer, StopRules};
use crate::tiny_model::{self, EOS};

struct NoText;

impl Detokenizer for NoText {
    fn text(&self, _ids: &[u32]) -> String {
        String::new()
    }
}

fn engine(max_sequences: usize) -> Engine<Native> {
    let limits = Limits { max_sequences, kv_cache_bytes: 1 << 24, prefill_tokens: 4096 };
    Engine::new(tiny_model::native(3), Box::new(NoText), limits, PolicyVersion(0))
}

fn prompts() -> Vec<EncodedPrompt> {
    (0..4u32)
        .map(|n| EncodedPrompt {
            id: format!("p{n}"),
            label: "general".into(),
            ids: (0..3 + 2 * n).map(|t| (7 * t + n) % 31).collect(),
            question: String::new(),
            reference: None,
        })
        .collect()
}

fn request(prompts: Vec<EncodedPrompt>, temperature: f64) -> Request {
    Request {
        prompts,
        samples_per_prompt: 3,
        sampling: SamplingParams { max_new_tokens: 20, temperature, ..SamplingParams::default() },
        stop: StopRules { eos_ids: vec![EOS], ..StopRules::default() },
        seed: 5,
        step: 1,
    }
}

fn run(
    engine: &mut Engine<Native>,
    prompts: Vec<EncodedPrompt>,
    temperature: f64,
) -> BTreeMap<String, Vec<FinishedSample>> {
    let id = engine.submit(request(prompts, temperature)).unwrap();
    let mut samples = BTreeMap::new();
    loop {
        engine.step();
        let collected = engine.collect(id).unwrap();
        samples.extend(collected.groups.into_iter().map(|g| (g.prompt.id, g.samples)));
        if collected.done {
            return samples;
        }
    }
}

fn assert_alike(
    left: &BTreeMap<String, Vec<FinishedSample>>,
    right: &BTreeMap<String, Vec<FinishedSample>>,
) {
    assert_eq!(left.len(), right.len());
    for (left, right) in left.values().flatten().zip(right.values().flatten()) {
        assert_eq!((&left.response_ids, left.finish), (&right.response_ids, right.finish));
        for (a, b) in left.logps.iter().zip(&right.logps) {
            assert!((a - b).abs() < 1e-5, "log-probs {a} and {b}");
        }
    }
}

#[test]
fn a_batch_of_prompts_gives_what_each_gives_alone() {
    for temperature in [0.0, 1.0] {
        let mut alone = BTreeMap::new();
        for prompt in prompts() {
            alone.append(&mut run(&mut engine(1), vec![prompt], temperature));
        }
        for width in [3, 5, 32] {
            let mut backwards = prompts();
            backwards.reverse();
            assert_alike(&run(&mut engine(width), prompts(), temperature), &alone);
            assert_alike(&run(&mut engine(width), backwards, temperature), &alone);
        }
    }
}

#[test]
fn recorded_log_probs_are_those_of_a_forward_pass_over_the_whole_sequence() {
    let samples = run(&mut engine(8), prompts(), 1.0);
    let (decoder, weights) = (tiny_model::decoder(), tiny_model::weights(3));
    for prompt in prompts() {
        for sample in &samples[&prompt.id] {
            let ids = [prompt.ids.as_slice(), &sample.response_ids].concat();
            let packed = Packed::new(&[&ids]).unwrap();
            let hidden_nh = decoder.forward(&weights, &packed).unwrap();
            let logp_nv =
                decoder.output(&weights, &hidden_nh).unwrap().log_softmax(-1, Kind::Float);
            for (t, (token, logp)) in sample.response_ids.iter().zip(&sample.logps).enumerate() {
                let row = (prompt.ids.len() + t - 1) as i64;
                let expected = logp_nv.double_value(&[row, i64::from(*token)]);
                assert!((f64::from(*logp) - expected).abs() < 1e-5, "{logp} is not {expected}");
            }
        }
    }
}

#[test]
fn new_weights_change_what_is_written_from_the_next_step_on() {
    let mut engine = engine(8);
    let old = run(&mut engine, prompts(), 0.0);
    let flats: Vec<Tensor> = tiny_model::flats(4);
    let weights = engine.forward().weights_from(flats).unwrap();
    engine.activate(PolicyVersion(1), |native| native.replace(weights));
    let new = run(&mut engine, prompts(), 0.0);
    let texts = |samples: &BTreeMap<String, Vec<FinishedSample>>| -> Vec<Vec<u32>> {
        samples.values().flatten().map(|s| s.response_ids.clone()).collect()
    };
    assert_ne!(texts(&old), texts(&new));
    assert!(new.values().flatten().all(|s| s.segments[0].version == PolicyVersion(1)));
}

#[test]
fn weights_of_another_shape_are_refused() {
    let native = tiny_model::native(3);
    let mut flats = tiny_model::flats(3);
    flats.pop();
    assert!(native.weights_from(flats).is_err());
}
