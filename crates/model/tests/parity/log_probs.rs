//! Log-probabilities of whole sequences, and of the same sequences decoded token by token.

use plumb_model::{KvCache, Packed};
use tch::{Device, Kind, Tensor};

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

/// Prefill of a first part, a copied prefix, then one token at a time in a batch whose
/// sequences have different lengths, in slots that are not neighbours.
#[test]
fn decoding_agrees_with_transformers() {
    for (name, vector) in committed_language_models() {
        let (decoder, weights) = language_model(&vector.folder().unwrap(), Kind::Float);
        let longest = vector.sequences.iter().map(Vec::len).max().unwrap();
        for spread in [1, 2] {
            let count = vector.sequences.len();
            let mut cache = KvCache::new(
                decoder.config(),
                count * spread + 1,
                longest,
                Kind::Float,
                Device::Cpu,
            )
            .unwrap();
            let mut rows: Vec<Vec<Tensor>> = Vec::new();
            for (i, ids) in vector.sequences.iter().enumerate() {
                let first = ids.len().div_ceil(2);
                let packed = Packed::new(&[&ids[..first]]).unwrap();
                let spare = count * spread;
                let hidden = decoder.prefill(&weights, &packed, &mut cache, &[spare]).unwrap();
                cache.copy_prefix(spare, &[i * spread], first).unwrap();
                rows.push((0..first as i64).map(|t| hidden.get(t)).collect());
            }
            for position in 0..longest {
                let live: Vec<usize> = (0..count)
                    .filter(|&i| (rows[i].len()..vector.sequences[i].len()).contains(&position))
                    .collect();
                if live.is_empty() {
                    continue;
                }
                let ids: Vec<u32> = live.iter().map(|&i| vector.sequences[i][position]).collect();
                let slots: Vec<usize> = live.iter().map(|&i| i * spread).collect();
                let positions = vec![position; live.len()];
                let hidden =
                    decoder.decode(&weights, &ids, &positions, &slots, &mut cache).unwrap();
                for (b, &i) in live.iter().enumerate() {
                    rows[i].push(hidden.get(b as i64));
                }
            }
            let all: Vec<Tensor> = rows.into_iter().flatten().collect();
            let logits = decoder.output(&weights, &Tensor::stack(&all, 0)).unwrap();
            let got = next_token_log_probs(&logits, &vector.sequences);
            let worst = max_difference(&got, &vector.log_probs);
            println!("{name}: decoded, max |difference| {worst:.2e}");
            assert!(worst < TOLERANCE, "{name}: {worst:.2e}");
        }
    }
}

/// Sequences of different lengths at different positions in one decode step.
#[test]
fn a_decode_batch_does_not_mix_its_sequences() {
    let all = vectors();
    let vector = &all["tiny-qwen2-window"];
    let (decoder, weights) = language_model(&vector.folder().unwrap(), Kind::Float);
    let sequences: Vec<&Vec<u32>> = vector.sequences.iter().filter(|s| s.len() > 1).collect();
    let heads: Vec<&[u32]> = sequences.iter().map(|s| &s[..s.len() - 1]).collect();
    let ids: Vec<u32> = sequences.iter().map(|s| *s.last().unwrap()).collect();
    let positions: Vec<usize> = heads.iter().map(|s| s.len()).collect();
    let slots: Vec<usize> = (0..heads.len()).collect();
    let mut cache =
        KvCache::new(decoder.config(), heads.len(), 80, Kind::Float, Device::Cpu).unwrap();
    let packed = Packed::new(&heads).unwrap();
    let _ = decoder.prefill(&weights, &packed, &mut cache, &slots).unwrap();
    let together = decoder.decode(&weights, &ids, &positions, &slots, &mut cache).unwrap();
    for (i, sequence) in sequences.iter().enumerate() {
        let alone = decoder.forward(&weights, &Packed::new(&[sequence]).unwrap()).unwrap();
        let last = alone.get(sequence.len() as i64 - 1);
        let difference = (together.get(i as i64) - last).abs().max().double_value(&[]);
        assert!(difference < TOLERANCE, "sequence {i}: {difference:.2e}");
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
