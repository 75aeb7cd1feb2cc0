//! A tree computes what its branches would compute as sequences of their own.

// Clippy's exception for tests does not reach the functions they share.
#![allow(clippy::unwrap_used)]

use plumb_model::{Decoder, HeadSpec, ModelConfig, Packed, Tree, random_blocks};
use tch::{Kind, Tensor};

fn decoder(window: &str) -> Decoder {
    let config = format!(
        r#"{{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": true {window}}}"#
    );
    Decoder::new(ModelConfig::from_json(&config, std::path::Path::new("config.json")).unwrap())
        .unwrap()
}

const PROMPT: [u32; 5] = [3, 14, 15, 9, 26];
const BRANCHES: [&[u32]; 3] = [&[5, 35, 8], &[9], &[7, 9, 3, 2]];

/// Hidden states of every branch (prompt included) and the gradients of their sum of squares.
fn run(
    decoder: &Decoder,
    packed: &Packed,
    kind: Kind,
    rows: &[Vec<i64>],
) -> (Vec<Tensor>, Vec<Tensor>) {
    let blocks = random_blocks(&decoder.blocks(&HeadSpec::CausalLm), 7).unwrap();
    let blocks: Vec<Vec<Tensor>> = blocks
        .iter()
        .map(|b| b.iter().map(|p| p.to_kind(kind).detach().set_requires_grad(true)).collect())
        .collect();
    let layout = decoder.layout(packed, kind).unwrap();
    let mut hidden = decoder.embed(&blocks[0], &packed.input_ids).unwrap();
    for layer in 0..2 {
        hidden = decoder.layer(layer, &blocks[layer + 1], &hidden, &layout).unwrap();
    }
    let parts: Vec<Tensor> =
        rows.iter().map(|r| hidden.index_select(0, &Tensor::from_slice(r))).collect();
    // The prompt's rows are counted once, however often they were computed.
    let loss = parts
        .iter()
        .enumerate()
        .map(|(i, part)| {
            let skip = if i == 0 { 0 } else { PROMPT.len() as i64 };
            let own = part.narrow(0, skip, part.size()[0] - skip);
            (&own * &own).sum(Kind::Float)
        })
        .fold(Tensor::from(0f32), |a, b| a + b);
    let leaves: Vec<&Tensor> = blocks[1].iter().chain(&blocks[2]).collect();
    let grads = Tensor::run_backward(&[&loss], &leaves, false, false);
    (parts.iter().map(Tensor::detach).collect(), grads)
}

fn compare(window: &str, kind: Kind, tolerance: f64) {
    let decoder = decoder(window);
    let tree = Packed::trees(&[Tree { prompt: &PROMPT, branches: &BRANCHES }]).unwrap();
    let whole: Vec<Vec<u32>> = BRANCHES.iter().map(|b| [&PROMPT[..], b].concat()).collect();
    let sequences: Vec<&[u32]> = whole.iter().map(Vec::as_slice).collect();
    let apart = Packed::new(&sequences).unwrap();

    let (mut tree_rows, mut apart_rows) = (Vec::new(), Vec::new());
    let (mut branch_start, mut start) = (PROMPT.len() as i64, 0);
    for sequence in &sequences {
        let (length, own) = (sequence.len() as i64, (sequence.len() - PROMPT.len()) as i64);
        tree_rows.push((0..PROMPT.len() as i64).chain(branch_start..branch_start + own).collect());
        apart_rows.push((start..start + length).collect());
        (branch_start, start) = (branch_start + own, start + length);
    }
    let (tree_hidden, tree_grads) = run(&decoder, &tree, kind, &tree_rows);
    let (apart_hidden, apart_grads) = run(&decoder, &apart, kind, &apart_rows);
    for (a, b) in tree_hidden.iter().zip(&apart_hidden).chain(tree_grads.iter().zip(&apart_grads)) {
        let scale = b.abs().max().double_value(&[]).max(1.0);
        let error = (a - b).abs().max().double_value(&[]) / scale;
        assert!(error < tolerance, "relative error {error}");
    }
}

#[test]
fn values_and_gradients_equal_those_of_separate_sequences() {
    compare("", Kind::Float, 1e-5);
}

#[test]
fn the_plain_kernel_of_bf16_agrees_too() {
    compare("", Kind::BFloat16, 3e-2);
}

#[test]
fn a_sliding_window_counts_positions_not_rows() {
    compare(
        r#", "use_sliding_window": true, "sliding_window": 3, "max_window_layers": 0"#,
        Kind::Float,
        1e-5,
    );
}

#[test]
fn the_last_indices_of_a_tree_are_those_of_its_branches() {
    let tree = Packed::trees(&[Tree { prompt: &PROMPT, branches: &BRANCHES }]).unwrap();
    assert_eq!(Vec::<i64>::try_from(tree.last_indices()).unwrap(), [7, 8, 12]);
}
