use super::super::shape::tests::qwen2_53m;
use super::super::{PROCESS_BYTES, PhaseMemory};
use super::*;

/// Elements of the ~53M Qwen2: 8,388,608 + 16 x 2,819,840 + 512.
const ALL: u64 = 53_506_560;
const LAYER: u64 = 2_819_840;
const EMBEDDING: u64 = 8_388_608;

fn training(ranks: u64) -> EngineShape {
    EngineShape {
        model: qwen2_53m(),
        head: Head::LanguageModel,
        ranks,
        compute: Dtype::Bf16,
        reduce: Dtype::Fp32,
        recompute: true,
        reshard_after_forward: true,
        micro_batch_tokens: 2048,
        step_tokens: 2048,
        longest_tokens: 256,
        trained: Trained::Above(0),
        state_bytes: 8.0,
        offload_optimizer: false,
        offload_parameters: false,
        ema: false,
        cpu: true,
    }
}

fn term(phase: &PhaseMemory, what: &str) -> u64 {
    phase.terms.iter().find(|term| term.what == what).map_or(0, |term| term.bytes)
}

#[test]
fn one_rank_holds_eighteen_bytes_a_parameter() {
    let backward = training(1).backward();
    let of_parameters = ["masters", "optimiser state", "gradients", "shards in the compute type"];
    let bytes: u64 = of_parameters.iter().map(|what| term(&backward, what)).sum();
    assert_eq!(bytes, 18 * ALL);
    // Nothing is gathered or sent; q, k and v are joined, and their gradients are.
    assert_eq!(term(&backward, "gathered layers"), 2 * 393_984);
    assert_eq!(term(&backward, "gradients being summed"), 0);
    assert_eq!(term(&backward, "gradient of the embedding"), 0);
    assert_eq!(term(&backward, "gradients of a layer"), 2 * LAYER + 2 * 393_984);
    assert_eq!(term(&backward, "kept for the backward pass"), 2 << 20);
}

#[test]
fn two_ranks_halve_the_shards_and_add_what_is_gathered_and_sent() {
    let backward = training(2).backward();
    assert_eq!(term(&backward, "masters"), 4 * ALL / 2);
    assert_eq!(term(&backward, "optimiser state"), 8 * ALL / 2);
    // Two layers in bf16; a layer's fp32 gradient and half of it; the whole embedding's.
    assert_eq!(term(&backward, "gathered layers"), 2 * 2 * LAYER + 2 * 393_984);
    assert_eq!(term(&backward, "gradients being summed"), 4 * LAYER + 2 * LAYER);
    assert_eq!(term(&backward, "gradient of the embedding"), 4 * EMBEDDING);
}

#[test]
fn accumulated_gradients_meet_the_kept_inputs() {
    let once = training(2);
    let twice = EngineShape { step_tokens: 4096, ..training(2) };
    assert_eq!(term(&once.head_pass(), "gradients"), 0);
    assert_eq!(term(&twice.head_pass(), "gradients"), 2 * ALL);
    // 16 inputs of 2 MiB with the gradients of the first micro-batch.
    assert_eq!(term(&twice.backward(), "kept for the backward pass"), 32 << 20);
    assert_eq!(term(&twice.backward(), "gradients"), 2 * ALL);
}

#[test]
fn settings_trade_memory_as_they_say() {
    let peak =
        |shape: &EngineShape| shape.phases().iter().map(PhaseMemory::bytes).max().unwrap_or(0);
    let base = training(2);
    let without = |change: fn(&mut EngineShape)| {
        let mut shape = base.clone();
        change(&mut shape);
        peak(&shape)
    };
    assert!(without(|s| s.recompute = false) > peak(&base));
    assert!(without(|s| s.reshard_after_forward = false) > peak(&base));
    assert!(without(|s| s.micro_batch_tokens = 512) < peak(&base));
    assert_eq!(without(|s| s.ema = true) - peak(&base), 2 * ALL);
    assert_eq!(peak(&base) - without(|s| s.state_bytes = 2.0), 3 * ALL);
    assert!(without(|s| s.reduce = Dtype::Bf16) < peak(&base));
}

#[test]
fn what_is_frozen_has_neither_master_nor_moments() {
    let lora = EngineShape {
        trained: Trained::Adapters { frozen_layers: 4, elements: 1000 },
        ..training(1)
    };
    let load = lora.load();
    assert_eq!(term(&load, "masters"), 4 * 12 * 1000);
    assert_eq!(term(&load, "frozen weights"), 2 * ALL);
    let frozen = EngineShape { trained: Trained::Above(4), ..training(1) };
    let below = EMBEDDING + 4 * LAYER;
    assert_eq!(term(&frozen.load(), "frozen weights"), 2 * below);
    assert_eq!(term(&frozen.load(), "masters"), 4 * (ALL - below));
    let reference = EngineShape { trained: Trained::Nothing, ..training(1) };
    assert_eq!(reference.idle_bytes(), PROCESS_BYTES + 2 * ALL);
    assert_eq!(reference.phases()[1].phase, "log-probs");
}

#[test]
fn what_is_offloaded_is_in_host_memory() {
    let offloaded = EngineShape { offload_optimizer: true, cpu: false, ..training(2) };
    let backward = offloaded.backward();
    assert_eq!(term(&backward, "masters") + term(&backward, "gradients"), 0);
    assert_eq!(term(&backward, "shards in the compute type"), 2 * ALL / 2);
    assert_eq!(offloaded.offloaded_bytes(), 16 * ALL / 2);
    let all = EngineShape { offload_parameters: true, ..offloaded };
    assert_eq!(term(&all.backward(), "shards in the compute type"), 0);
    assert_eq!(all.offloaded_bytes(), 18 * ALL / 2);
    assert_eq!(training(1).offloaded_bytes(), 0);
}
