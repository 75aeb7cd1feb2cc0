//! Log-probabilities of whole sequences, and of the same sequences in steps over the KV cache.

use plumb_model::{BatchShape, Decoder, KvCache, Span, Weights};
use plumb_torch::paged::BLOCK_TOKENS;
use tch::{Device, Kind};

use crate::vectors::{
    TOLERANCE, Vector, check_log_probs, language_model, max_difference, next_token_log_probs,
    vectors,
};

fn committed_language_models() -> Vec<(String, Vector)> {
    let models: Vec<_> = vectors()
        .into_iter()
        .filter(|(_, vector)| vector.folder.is_some() && !vector.log_probs.is_empty())
        .collect();
    assert!(models.len() >= 6, "only {} committed models", models.len());
    models
}

#[test]
fn packed_forward_agrees_with_transformers() {
    for (name, vector) in committed_language_models() {
        let (decoder, weights) = language_model(&vector.folder().unwrap(), Kind::Float);
        check_log_probs(&name, &vector, &decoder, &weights);
    }
}

/// Blocks of `count` sequences, scattered: sequence i has i, i + count, i + 2 count and so on.
fn tables(count: usize, longest: usize) -> Vec<Vec<u32>> {
    let width = longest.div_ceil(BLOCK_TOKENS);
    (0..count).map(|i| (0..width).map(|w| (i + w * count) as u32).collect()).collect()
}

/// The first half of each sequence in parts of `part` tokens, the rest token by token, all
/// sequences in each step; log-probs of what the first half's end and all later tokens predict.
fn stepped(
    decoder: &Decoder,
    weights: &Weights,
    sequences: &[Vec<u32>],
    part: usize,
    shape: BatchShape,
) -> Vec<Vec<f64>> {
    let longest = sequences.iter().map(Vec::len).max().unwrap();
    let tables = tables(sequences.len(), longest);
    let blocks = tables.len() * tables[0].len();
    let mut cache = KvCache::new(decoder.config(), blocks, Kind::Float, Device::Cpu).unwrap();
    let mut done = vec![0; sequences.len()];
    let mut logps = vec![Vec::new(); sequences.len()];
    while done.iter().zip(sequences).any(|(done, ids)| *done < ids.len()) {
        let mut spans = Vec::new();
        let mut owners = Vec::new();
        for (i, ids) in sequences.iter().enumerate() {
            if done[i] == ids.len() {
                continue;
            }
            let half = ids.len().div_ceil(2);
            let end = if done[i] < half { half.min(done[i] + part) } else { done[i] + 1 };
            let wants_logits = end >= half;
            spans.push(Span {
                ids: &ids[done[i]..end],
                first_position: done[i],
                blocks: &tables[i],
                wants_logits,
            });
            done[i] = end;
            owners.extend(wants_logits.then_some((i, end)));
        }
        let logits = decoder.step(weights, &spans, &mut cache, shape).unwrap();
        let Some(logits) = logits else { continue };
        let logp_sv = logits.log_softmax(-1, Kind::Double);
        for (row, (i, end)) in owners.into_iter().enumerate() {
            if let Some(next) = sequences[i].get(end) {
                logps[i].push(logp_sv.double_value(&[row as i64, i64::from(*next)]));
            }
        }
    }
    logps
}

#[test]
fn steps_over_the_paged_cache_agree_with_transformers() {
    for (name, vector) in committed_language_models() {
        let (decoder, weights) = language_model(&vector.folder().unwrap(), Kind::Float);
        let expected: Vec<Vec<f64>> = vector
            .sequences
            .iter()
            .zip(&vector.log_probs)
            .map(|(ids, logps)| logps[(ids.len().div_ceil(2) - 1).min(logps.len())..].to_vec())
            .collect();
        for (part, shape) in
            [(usize::MAX, BatchShape::Ragged), (5, BatchShape::Ragged), (7, BatchShape::Fixed(16))]
        {
            let got = stepped(&decoder, &weights, &vector.sequences, part, shape);
            let worst = max_difference(&got, &expected);
            println!("{name}: {shape:?}, parts of {part}: max |difference| {worst:.2e}");
            assert!(worst < TOLERANCE, "{name}: {worst:.2e}");
        }
    }
}

/// Batches of a fixed shape: other sequences beside it, and another cut into steps, change nothing.
#[test]
fn fixed_batches_give_a_sequence_the_same_bits_in_any_company_and_any_cut() {
    for (name, vector) in committed_language_models() {
        let (decoder, weights) = language_model(&vector.folder().unwrap(), Kind::Float);
        let fixed = BatchShape::Fixed(32);
        let together = stepped(&decoder, &weights, &vector.sequences, 9, fixed);
        for (i, ids) in vector.sequences.iter().enumerate() {
            for part in [1, 4, usize::MAX] {
                let alone = stepped(&decoder, &weights, std::slice::from_ref(ids), part, fixed);
                assert_eq!(alone[0], together[i], "{name}, sequence {i}, parts of {part}");
            }
        }
    }
}

/// bf16 has 8 bits: the bound here only catches gross errors of the separate bf16 kernels.
#[test]
fn bf16_stays_near_f32() {
    for (name, vector) in committed_language_models() {
        let (decoder, weights) = language_model(&vector.folder().unwrap(), Kind::BFloat16);
        let hidden = decoder.forward(&weights, &vector.packed()).unwrap();
        assert_eq!(hidden.kind(), Kind::BFloat16);
        let logits = decoder.output(&weights, &hidden).unwrap();
        let got = next_token_log_probs(&logits, &vector.sequences);
        let mut differences: Vec<f64> = got
            .iter()
            .flatten()
            .zip(vector.log_probs.iter().flatten())
            .map(|(a, b)| (a - b).abs())
            .collect();
        differences.sort_by(f64::total_cmp);
        let median = differences[differences.len() / 2];
        println!("{name}: bf16, median |difference| {median:.2e}");
        assert!(median < 0.1, "{name}: {median:.2e}");
    }
}
