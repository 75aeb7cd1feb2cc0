//! How fast the engine decodes: `decode_speed FOLDER [fp32|bf16] [batch] [new tokens] [threads]`.
//!
//! Answers one text with `batch` samples, end-of-sequence ignored, so that every step has the
//! full batch. Prints milliseconds per step and tokens per second.
// A measurement prints its figures.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use plumb_domain::{PolicyVersion, SamplingParams};
use plumb_proto::rollout::Prompt;
use plumb_rollout_worker::engine::Limits;
use plumb_rollout_worker::request::{Generation, Loading};
use plumb_rollout_worker::state::State;
use tch::{Device, Kind};

const TEXT: &str =
    "Explain in a few sentences why the sky is blue, and what colour it has on Mars.";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: u32| -> anyhow::Result<u32> {
        arguments.get(place).map_or(Ok(default), |text| {
            text.parse().with_context(|| format!("argument {text:?} is not a number"))
        })
    };
    let folder = PathBuf::from(arguments.first().context("the first argument is a model folder")?);
    let kind = match arguments.get(1).map(String::as_str) {
        None | Some("bf16") => Kind::BFloat16,
        Some("fp32") => Kind::Float,
        Some(other) => bail!("number format {other:?}: use fp32 or bf16"),
    };
    let (batch, new_tokens, threads) = (number(2, 48)?, number(3, 64)?, number(4, 2)?);
    tch::set_num_threads(i32::try_from(threads)?);

    let mut state = State::new(Device::Cpu);
    let limits =
        Limits { max_sequences: batch as usize, kv_cache_bytes: 8 << 30, prefill_tokens: 4096 };
    let version = PolicyVersion(0);
    let start = Instant::now();
    state.load(&Loading { folder, kind, limits, version, deterministic: false })?;
    println!("load: {:.2} s", start.elapsed().as_secs_f64());

    let prompt = Prompt {
        id: "p".into(),
        label: "speed".into(),
        text: Some(TEXT.into()),
        ..Prompt::default()
    };
    let sampling = SamplingParams {
        max_new_tokens: new_tokens,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let id = state.submit(Generation {
        prompts: vec![prompt],
        max_prompt_tokens: 0,
        samples_per_prompt: batch,
        sampling,
        seed: 1,
        step: 0,
        version,
    })?;
    let start = Instant::now();
    // The first step also prefills, the last ones thin out nothing: all samples end together.
    state.advance(id)?;
    println!("prefill and first step: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let start = Instant::now();
    let mut steps = 1;
    while !state.advance(id)?.done {
        steps += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "decode, batch {batch}: {:.1} ms a step, {:.0} tokens/s",
        seconds * 1e3 / f64::from(steps),
        f64::from(batch * steps) / seconds
    );
    Ok(())
}
