//! Greedy output against transformers', token for token: 64 prompts of 128 tokens for each model,
//! at several batch widths, with room for all and with so little that sequences lose their blocks.
//! The vectors are made by tests/parity/make_greedy_vectors.py.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "clippy takes a test file's own functions for library code"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plumb_domain::{PolicyVersion, SamplingParams};
use plumb_model::{Decoder, HeadSpec, ModelConfig, Weights};
use plumb_rollout_worker::engine::{
    EncodedPrompt, Engine, Figures, Forward, Limits, Native, Request,
};
use plumb_rollout_worker::stop::{Detokenizer, StopRules};
use tch::{Device, Kind};

#[derive(serde::Deserialize)]
struct Vector {
    folder: Option<String>,
    context: Option<i64>,
    prompts: Vec<Vec<u32>>,
    tokens: Vec<Vec<u32>>,
    least_gap: f64,
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/data")
}

fn vectors() -> BTreeMap<String, Vector> {
    let text = std::fs::read_to_string(data().join("greedy.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

struct NoText;

impl Detokenizer for NoText {
    fn text(&self, _ids: &[u32]) -> String {
        String::new()
    }
}

fn native(folder: &Path, context: Option<i64>) -> Native {
    let path = folder.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    if let Some(context) = context {
        config["max_position_embeddings"] = context.into();
    }
    let config = ModelConfig::from_json(&config.to_string(), &path).unwrap();
    let decoder = Decoder::new(config).unwrap();
    let weights =
        Weights::load(&decoder, folder, &HeadSpec::CausalLm, Kind::Float, Device::Cpu).unwrap();
    Native::new(decoder, weights)
}

fn written(native: Native, vector: &Vector, limits: Limits) -> (Vec<Vec<u32>>, Figures) {
    let mut engine = Engine::new(native, Box::new(NoText), limits, PolicyVersion(0));
    let prompts = vector.prompts.iter().enumerate().map(|(n, ids)| EncodedPrompt {
        id: format!("{n:03}"),
        label: "parity".into(),
        ids: ids.clone(),
        question: String::new(),
        reference: None,
    });
    let id = engine
        .submit(Request {
            prompts: prompts.collect(),
            samples_per_prompt: 1,
            sampling: SamplingParams {
                max_new_tokens: 128,
                temperature: 0.0,
                ..SamplingParams::default()
            },
            stop: StopRules::default(),
            seed: 0,
            step: 0,
        })
        .unwrap();
    let mut texts = BTreeMap::new();
    loop {
        engine.step();
        let collected = engine.collect(id).unwrap();
        for mut group in collected.groups {
            texts.insert(group.prompt.id, group.samples.remove(0).response_ids);
        }
        if collected.done {
            return (texts.into_values().collect(), engine.figures());
        }
    }
}

/// Compares at one width. `crowded`: blocks for two sequences of the longest kind and a half only.
fn check(name: &str, native: Native, vector: &Vector, max_sequences: usize, crowded: bool) {
    assert_eq!((vector.prompts.len(), vector.tokens.len()), (64, 64));
    let longest = vector.prompts.iter().map(Vec::len).max().unwrap() + 128;
    let per_token = native.kv_bytes_per_token();
    // Each sequence holds whole blocks.
    let tokens = if crowded { longest * 5 / 2 + 16 } else { 64 * (longest + 16) };
    let kv_cache_bytes = per_token * tokens as u64;
    let prefill_tokens = if crowded { 24 } else { 2048 };
    let limits = Limits { max_sequences, kv_cache_bytes, prefill_tokens };
    let (texts, figures) = written(native, vector, limits);
    for (n, (text, expected)) in texts.iter().zip(&vector.tokens).enumerate() {
        let same = text.iter().zip(expected).take_while(|(a, b)| a == b).count();
        assert_eq!(same, 128, "{name}, prompt {n}, batch {max_sequences}: other than transformers");
    }
    assert_eq!(figures.preemptions > 0, crowded, "{figures:?}");
    println!(
        "{name}, batch {max_sequences}: 64 x 128 tokens equal (least gap {:.1e}, {} preemptions)",
        vector.least_gap, figures.preemptions
    );
}

#[test]
fn tiny_models_write_what_transformers_writes() {
    let vectors = vectors();
    let tiny: Vec<_> =
        vectors.iter().filter_map(|(name, v)| Some((name, v, v.folder.as_ref()?))).collect();
    assert_eq!(tiny.len(), 4);
    for (name, vector, folder) in tiny {
        let load = || native(&data().join(folder), vector.context);
        for (width, crowded) in [(1, false), (7, false), (7, true), (64, false), (64, true)] {
            check(name, load(), vector, width, crowded);
        }
        let mut fixed = load();
        fixed.make_deterministic().unwrap();
        check(&format!("{name}, deterministic"), fixed, vector, 64, true);
    }
}

/// Run by `make parity`: the fetched models take minutes.
#[test]
#[ignore = "takes minutes; run by `make parity`"]
fn fetched_models_write_what_transformers_writes() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.assets");
    let vectors = vectors();
    let imported = tempfile::tempdir().unwrap();
    for (name, file) in
        [("smollm2-135m-instruct", "smollm2-135m-instruct"), ("stories15m", "stories15M.bin")]
    {
        let source = assets.join(file);
        if !source.exists() {
            println!("{name}: SKIPPED, {} is not there", source.display());
            continue;
        }
        let folder = if source.is_dir() {
            source
        } else {
            let folder = imported.path().join(name);
            let tokenizer = assets.join("llama2c-tokenizer.bin");
            plumb_model::import::import(&source, Some(&tokenizer), &folder).unwrap();
            folder
        };
        for (width, crowded) in [(64, false), (64, true), (7, false), (1, false)] {
            check(name, native(&folder, None), &vectors[name], width, crowded);
        }
    }
}
