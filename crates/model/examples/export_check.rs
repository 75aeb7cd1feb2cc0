//! Exports the parity models for `tests/parity/check_export.py`.
//!
//! `cargo run -p plumb-model --example export_check -- OUT [FOLDER..]` exports each model folder
//! (default: all below `tests/parity/data`) to `OUT/<name>`, and writes to `OUT/<name>.json` the
//! logits computed here, before exporting, in f32.
#![allow(clippy::print_stdout)] // A command-line tool.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use plumb_model::{
    BatchShape, Decoder, HeadSpec, KvCache, ModelConfig, Packed, Span, Weights, export,
};
use plumb_torch::paged::BLOCK_TOKENS;
use serde_json::json;
use tch::{Device, Kind};

/// Small enough that one model becomes several shards.
const SHARD_BYTES: u64 = 40_000;
/// Length of the compared sequences.
const TOKENS: usize = 60;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let out = arguments.next().context("usage: export_check OUT [FOLDER..]")?;
    std::fs::create_dir_all(&out)?;
    let mut folders: Vec<PathBuf> = arguments.collect();
    if folders.is_empty() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/data");
        folders = std::fs::read_dir(data)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .filter(|path| path.is_dir())
            .collect();
        folders.sort();
    }
    for folder in folders {
        export_one(&folder, &out).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}

/// The model's own most likely continuation of one token: text of the kind it was trained on,
/// where f32 rounding is smallest.
fn greedy(decoder: &Decoder, weights: &Weights, first: u32) -> Result<Vec<u32>> {
    let blocks: Vec<u32> = (0..TOKENS.div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut cache = KvCache::new(decoder.config(), blocks.len(), Kind::Float, Device::Cpu)?;
    let mut ids = vec![first];
    while ids.len() < TOKENS {
        let at = ids.len() - 1;
        let span =
            Span { ids: &ids[at..], first_position: at, blocks: &blocks, wants_logits: true };
        let logits = decoder.step(weights, &[span], &mut cache, BatchShape::Ragged)?;
        let best = logits.context("no logits")?.argmax(-1, false).int64_value(&[0]);
        ids.push(u32::try_from(best)?);
    }
    Ok(ids)
}

fn export_one(folder: &Path, out: &Path) -> Result<()> {
    let name = folder.file_name().and_then(|n| n.to_str()).context("folder name")?;
    let config = ModelConfig::from_folder(folder)?;
    let head = config.score_head.clone().map_or(HeadSpec::CausalLm, HeadSpec::Score);
    let decoder = Decoder::new(config)?;
    let weights = Weights::load(&decoder, folder, &head, Kind::Float, Device::Cpu)?;
    let vocab = decoder.config().vocab_size as u32;
    let sequences = match head {
        HeadSpec::CausalLm => vec![greedy(&decoder, &weights, 1)?, greedy(&decoder, &weights, 9)?],
        HeadSpec::Score(_) => vec![(0..40).map(|i| (7 + 31 * i) % vocab).collect()],
    };
    let mut logits = Vec::new();
    for sequence in &sequences {
        let packed = Packed::new(&[sequence])?;
        let output = match head {
            HeadSpec::CausalLm => decoder.output(&weights, &decoder.forward(&weights, &packed)?)?,
            HeadSpec::Score(_) => decoder.score_sequences(&weights, &packed)?,
        };
        logits.push(Vec::<f32>::try_from(output.view([-1]))?);
    }
    let blocks = decoder.blocks(&head);
    let target = out.join(name);
    let shard_bytes = if vocab < 1000 { SHARD_BYTES } else { export::DEFAULT_SHARD_BYTES };
    let mut writer = export::Writer::create(
        &target,
        decoder.config(),
        &head,
        &blocks,
        Some(folder),
        Kind::Float,
        shard_bytes,
    )?;
    for (block, params) in blocks.iter().zip(&weights.blocks) {
        for (spec, tensor) in block.params.iter().zip(params) {
            writer.tensor(&spec.name, tensor)?;
        }
    }
    let bytes = writer.finish()?;
    println!("{name}: {bytes} bytes in {}", target.display());
    let class = ModelConfig::from_folder(&target)?;
    let suffix =
        if class.score_head.is_some() { "ForSequenceClassification" } else { "ForCausalLM" };
    let architecture = format!("{}{suffix}", class.architecture.family());
    let expected =
        json!({ "architecture": architecture, "sequences": sequences, "logits": logits });
    std::fs::write(out.join(format!("{name}.json")), expected.to_string())?;
    Ok(())
}
