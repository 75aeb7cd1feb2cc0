//! Initial values from a seed, the same on every machine and with any libtorch.

use tch::{Device, Kind, Tensor};

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
                return Ok(Tensor::f_zeros(&param.shape, (Kind::Float, Device::Cpu))?);
            }
            normal(param, seed, 0.0)
        })
        .collect()
}

/// Uniform values in (-bound, bound], a function of the seed, the parameter's name and the element.
pub(crate) fn uniform(param: &ParamSpec, seed: u64, bound: f64) -> Result<Tensor> {
    let key = key(param, seed);
    let value = |i: u64| ((2.0 * unit(mix(key ^ mix(i))) - 1.0) * bound) as f32;
    let values: Vec<f32> = (0..param.numel() as u64).map(value).collect();
    Ok(Tensor::f_from_slice(&values)?.f_view(param.shape.as_slice())?)
}

/// A mask of `shape` (bool, on `device`) whose elements are false with probability `dropout`: a
/// function of seed, stream and element, on every device.
pub(crate) fn keep_mask(
    shape: &[i64],
    seed: u64,
    stream: u64,
    dropout: f64,
    device: Device,
) -> Result<Tensor> {
    const KEEP_BITS: i64 = 24;
    let key = mix(mix(seed) ^ stream) as i64;
    let elements: i64 = shape.iter().product();
    let counter = Tensor::f_arange(elements, (Kind::Int64, device))?;
    // SplitMix64 again, on tensors. Their right shift keeps the sign, which is as good a mixer.
    let mixed = |z: Tensor, shift: i64| -> Result<Tensor> {
        Ok(z.f_bitwise_xor_tensor(&z.f_bitwise_right_shift_tensor_scalar(shift)?)?)
    };
    let z = counter.f_mul_scalar(GOLDEN_GAMMA as i64)?.f_add_scalar(key)?;
    let z = mixed(z, 30)?.f_mul_scalar(MIX_FIRST as i64)?;
    let z = mixed(z, 27)?.f_mul_scalar(MIX_SECOND as i64)?;
    let bits = z.f_bitwise_right_shift_tensor_scalar(64 - KEEP_BITS)?;
    let bits = bits.f_bitwise_and((1_i64 << KEEP_BITS) - 1)?;
    let dropped = (dropout * (1_i64 << KEEP_BITS) as f64).round() as i64;
    Ok(bits.f_ge(dropped)?.f_view(shape)?)
}

/// Mixes counters into one seed, for example of a step, a micro-batch and a layer.
#[must_use]
pub fn derive_seed(seed: u64, counters: &[u64]) -> u64 {
    counters.iter().fold(mix(seed), |key, &counter| mix(key ^ mix(counter)))
}

/// Normal values around `mean`, a function of the seed, the parameter's name and the element.
fn normal(param: &ParamSpec, seed: u64, mean: f64) -> Result<Tensor> {
    let key = key(param, seed);
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

fn key(param: &ParamSpec, seed: u64) -> u64 {
    param.name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)))
}

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX_FIRST: u64 = 0xbf58_476d_1ce4_e5b9;
const MIX_SECOND: u64 = 0x94d0_49bb_1331_11eb;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(GOLDEN_GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(MIX_FIRST);
    z = (z ^ (z >> 27)).wrapping_mul(MIX_SECOND);
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

    #[test]
    fn masks_drop_the_stated_share_and_depend_on_seed_stream_and_element_only() {
        let mask = |seed, stream| keep_mask(&[300, 40], seed, stream, 0.3, Device::Cpu).unwrap();
        let first = mask(7, 0);
        assert!(first.equal(&mask(7, 0)));
        let share = |mask: &Tensor| mask.to_kind(Kind::Double).mean(Kind::Double);
        let kept = share(&first).double_value(&[]);
        let deviation = (0.3 * 0.7 / 12_000.0_f64).sqrt();
        assert!((kept - 0.7).abs() < 4.0 * deviation, "kept {kept}");
        for other in [mask(8, 0), mask(7, 1)] {
            // Independent masks agree on 0.7^2 + 0.3^2 of their elements.
            let agree = share(&first.eq_tensor(&other)).double_value(&[]);
            assert!((agree - 0.58).abs() < 0.02, "{agree}");
        }
        let neighbours = first.narrow(1, 0, 39).eq_tensor(&first.narrow(1, 1, 39));
        let agree = share(&neighbours).double_value(&[]);
        assert!((agree - 0.58).abs() < 0.02, "{agree}");
        assert_ne!(derive_seed(1, &[2, 3]), derive_seed(1, &[3, 2]));
    }
}
