//! Gradients through [`Decoder::layer`] with parameters that are views of a flat leaf, which is
//! how the sharded engine calls it.

use plumb_model::{Decoder, HeadSpec, ModelConfig, TensorSource};
use tch::{Kind, Tensor};

use crate::vectors::{TOLERANCE, Vector, vectors};

/// One flat leaf per block that requires a gradient.
fn leaves(decoder: &Decoder, source: &TensorSource) -> Vec<Tensor> {
    decoder
        .blocks(&HeadSpec::CausalLm)
        .iter()
        .map(|block| {
            let flat: Vec<Tensor> =
                block.params.iter().map(|p| source.slice(&p.name, 0, p.numel()).unwrap()).collect();
            Tensor::cat(&flat, 0).set_requires_grad(true)
        })
        .collect()
}

fn split(flat: &Tensor, decoder: &Decoder, index: usize) -> Vec<(String, Tensor)> {
    let mut start = 0;
    decoder.blocks(&HeadSpec::CausalLm)[index]
        .params
        .iter()
        .map(|p| {
            let part = flat.narrow(0, start, p.numel()).view(p.shape.as_slice());
            start += p.numel();
            (p.name.clone(), part)
        })
        .collect()
}

fn tensors(flat: &Tensor, decoder: &Decoder, index: usize) -> Vec<Tensor> {
    split(flat, decoder, index).into_iter().map(|(_, tensor)| tensor).collect()
}

fn loss(vector: &Vector, decoder: &Decoder, leaves: &[Tensor]) -> Tensor {
    let packed = vector.packed();
    let layout = decoder.layout(&packed, Kind::Float).unwrap();
    let embedding = tensors(&leaves[0], decoder, 0);
    let mut hidden = decoder.embed(&embedding, &packed.input_ids).unwrap();
    let layers = decoder.config().num_hidden_layers;
    for i in 0..layers {
        let params = tensors(&leaves[i + 1], decoder, i + 1);
        hidden = decoder.layer(i, &params, &hidden, &layout).unwrap();
    }
    let head = tensors(&leaves[layers + 1], decoder, layers + 1);
    let hidden = decoder.final_norm(&head, &hidden).unwrap();
    let tied = decoder.blocks(&HeadSpec::CausalLm)[layers + 1].tied;
    let weight = if tied { &embedding[0] } else { &head[1] };
    let log_probs = decoder.logits(weight, &hidden).unwrap().log_softmax(-1, Kind::Float);
    let mut rows = Vec::new();
    let mut next: Vec<i64> = Vec::new();
    for (sequence, &start) in vector.sequences.iter().zip(&packed.cu_seqlens) {
        rows.extend((0..sequence.len() as i64 - 1).map(|t| start + t));
        next.extend(sequence[1..].iter().map(|&id| i64::from(id)));
    }
    let rows = log_probs.index_select(0, &Tensor::from_slice(&rows));
    -rows.gather(1, &Tensor::from_slice(&next).view([-1, 1]), false).mean(Kind::Float)
}

#[test]
fn gradients_agree_with_transformers() {
    let mut models = 0;
    for (name, vector) in vectors().into_iter().filter(|(_, v)| !v.gradients.is_empty()) {
        models += 1;
        let folder = vector.folder().unwrap();
        let decoder = Decoder::new(ModelConfig::from_folder(&folder).unwrap()).unwrap();
        let leaves = leaves(&decoder, &TensorSource::open(&folder).unwrap());
        let loss = loss(&vector, &decoder, &leaves);
        let difference = (loss.double_value(&[]) - vector.loss.unwrap()).abs();
        assert!(difference < TOLERANCE, "{name}: loss differs by {difference:.2e}");
        loss.backward();
        let mut seen = 0;
        let mut worst = 0.0_f64;
        for (index, leaf) in leaves.iter().enumerate() {
            for (param, gradient) in split(&leaf.grad(), &decoder, index) {
                let expected = &vector.gradients[&param];
                let flat = gradient.to_kind(Kind::Double).view([-1]);
                let element = Tensor::arange(flat.size()[0], (Kind::Double, tch::Device::Cpu));
                let probe = (&flat * (element + 1.0).sin()).sum(Kind::Double).double_value(&[]);
                let norm = flat.norm().double_value(&[]);
                let difference = (norm - expected.norm).abs().max((probe - expected.probe).abs());
                worst = worst.max(difference / expected.norm);
                seen += 1;
            }
        }
        println!("{name}: max |difference of gradients| {worst:.2e} of the norm");
        assert!(worst < TOLERANCE, "{name}: {worst:.2e}");
        assert_eq!(seen, vector.gradients.len(), "{name}: parameters");
    }
    assert!(models >= 5, "only {models} models with gradients");
}
