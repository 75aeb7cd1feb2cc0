//! The stored vectors, and what the tests compute against them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plumb_model::{Decoder, HeadSpec, ModelConfig, Packed, Weights};
use tch::{Device, Kind, Tensor};

/// The bound of the project's parity claims, in f32.
pub(crate) const TOLERANCE: f64 = 1e-5;

#[derive(serde::Deserialize)]
pub(crate) struct Vector {
    /// Folder below the data folder; none for models too large to commit.
    pub(crate) folder: Option<String>,
    pub(crate) sequences: Vec<Vec<u32>>,
    #[serde(default)]
    pub(crate) log_probs: Vec<Vec<f64>>,
    /// How far transformers' own f32 log-probs are from its f64 ones.
    #[serde(default)]
    pub(crate) noise: f64,
    #[serde(default)]
    pub(crate) scores: Vec<f64>,
    pub(crate) loss: Option<f64>,
    #[serde(default)]
    pub(crate) gradients: BTreeMap<String, GradientDigest>,
}

#[derive(serde::Deserialize)]
pub(crate) struct GradientDigest {
    pub(crate) norm: f64,
    pub(crate) probe: f64,
}

impl Vector {
    pub(crate) fn packed(&self) -> Packed {
        let sequences: Vec<&[u32]> = self.sequences.iter().map(Vec::as_slice).collect();
        Packed::new(&sequences).unwrap()
    }

    pub(crate) fn folder(&self) -> Option<PathBuf> {
        self.folder.as_ref().map(|name| data().join(name))
    }
}

pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/data")
}

pub(crate) fn vectors() -> BTreeMap<String, Vector> {
    let text = std::fs::read_to_string(data().join("vectors.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub(crate) fn language_model(folder: &Path, kind: Kind) -> (Decoder, Weights) {
    let decoder = Decoder::new(ModelConfig::from_folder(folder).unwrap()).unwrap();
    let weights = Weights::load(&decoder, folder, &HeadSpec::CausalLm, kind, Device::Cpu).unwrap();
    (decoder, weights)
}

/// Log-probability of each next token, one row a sequence, from hidden states of the batch.
pub(crate) fn next_token_log_probs(logits_nv: &Tensor, sequences: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let log_probs = logits_nv.log_softmax(-1, Kind::Float);
    let mut start = 0;
    sequences
        .iter()
        .map(|ids| {
            let rows = log_probs.narrow(0, start, ids.len() as i64 - 1);
            start += ids.len() as i64;
            let next: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).collect();
            let picked = rows.gather(1, &Tensor::from_slice(&next).view([-1, 1]), false);
            Vec::<f64>::try_from(picked.to_kind(Kind::Double).view([-1])).unwrap()
        })
        .collect()
}

/// Largest absolute difference; panics when shapes differ or a number is not finite.
pub(crate) fn max_difference(got: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(
        got.iter().map(Vec::len).collect::<Vec<_>>(),
        expected.iter().map(Vec::len).collect::<Vec<_>>()
    );
    let pairs = got.iter().flatten().zip(expected.iter().flatten());
    pairs.fold(0.0, |worst: f64, (&a, &b)| {
        assert!(a.is_finite() && b.is_finite(), "not finite: {a} against {b}");
        worst.max((a - b).abs())
    })
}

/// Compares a model's log-probs over the packed batch with the stored ones.
pub(crate) fn check_log_probs(name: &str, vector: &Vector, decoder: &Decoder, weights: &Weights) {
    let hidden = decoder.forward(weights, &vector.packed()).unwrap();
    let logits = decoder.output(weights, &hidden).unwrap();
    let got = next_token_log_probs(&logits, &vector.sequences);
    let worst = max_difference(&got, &vector.log_probs);
    // Where transformers itself is less exact than the tolerance, another kind of CPU than the
    // one that made the vectors may round differently.
    let bound = TOLERANCE.max(2.0 * vector.noise);
    println!("{name}: max |difference of log-probs| {worst:.2e} (bound {bound:.1e})");
    assert!(worst < bound, "{name}: {worst:.2e} is not below {bound:.1e}");
}
