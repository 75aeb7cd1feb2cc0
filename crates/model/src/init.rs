//! Initial values from a seed, the same on every machine and with any libtorch.

use tch::{Kind, Tensor};

use crate::block::{BlockSpec, ParamSpec};
use crate::error::Result;
use crate::score_head::ScoreHead;

/// Standard deviation of initial weights, transformers' `initializer_range`.
const WEIGHT_SD: f64 = 0.02;

/// Random weights for every block, f32 on the CPU: normal with standard deviation 0.02, norms
/// around 1, biases like weights. For tests and for training from scratch.
///
/// # Errors
/// If memory is short.
pub fn random_blocks(specs: &[BlockSpec], seed: u64) -> Result<Vec<Vec<Tensor>>> {
    let block = |spec: &BlockSpec| {
        spec.params
            .iter()
            .map(|param| {
                let is_norm = param.name.ends_with("norm.weight");
                normal(param, seed, if is_norm { 1.0 } else { 0.0 })
            })
            .collect()
    };
    specs.iter().map(block).collect()
}

/// A new score head, f32 on the CPU: weights normal with standard deviation 0.02, biases 0.
/// The parameters of [`ScoreHead::params`], in that order.
///
/// # Errors
/// If memory is short.
pub fn score_head(head: &ScoreHead, hidden_size: i64, seed: u64) -> Result<Vec<Tensor>> {
    head.params(hidden_size)
        .iter()
        .map(|param| {
            if param.name.ends_with("bias") {
                return Ok(Tensor::f_zeros(&param.shape, (Kind::Float, tch::Device::Cpu))?);
            }
            normal(param, seed, 0.0)
        })
        .collect()
}

/// Normal values around `mean`, a function of the seed, the parameter's name and the element.
fn normal(param: &ParamSpec, seed: u64, mean: f64) -> Result<Tensor> {
    let key = param.name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
    let values: Vec<f32> = (0..param.numel() as u64)
        .map(|i| {
            let a = unit(mix(key ^ mix(2 * i)));
            let b = unit(mix(key ^ mix(2 * i + 1)));
            // Box-Muller; `a` is in (0, 1].
            let normal = (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos();
            (mean + WEIGHT_SD * normal) as f32
        })
        .collect();
    Ok(Tensor::f_from_slice(&values)?.f_view(param.shape.as_slice())?)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A uniform number in (0, 1].
fn unit(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// Names of parameters whose block is the head, for callers that initialise it apart.
pub(crate) fn is_score_tensor(name: &str) -> bool {
    name.starts_with("score.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockKind;

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let spec = |name: &str| BlockSpec {
            kind: BlockKind::Embedding,
            params: vec![ParamSpec { name: name.into(), shape: vec![50, 40] }],
            tied: false,
        };
        let values = |name: &str, seed| {
            Vec::<f32>::try_from(random_blocks(&[spec(name)], seed).unwrap()[0][0].view([-1]))
                .unwrap()
        };
        let first = values("a", 7);
        assert_eq!(first, values("a", 7));
        assert_ne!(first, values("b", 7));
        assert_ne!(first, values("a", 8));
        let n = first.len() as f64;
        let mean = first.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let sd = (first.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 4.0 * WEIGHT_SD / n.sqrt(), "mean {mean}");
        assert!((sd / WEIGHT_SD - 1.0).abs() < 0.1, "sd {sd}");
    }
}
