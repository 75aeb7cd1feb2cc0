//! Rotary position embedding: parameters from `config.json`, and the tables.

use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use crate::config_fields::Fields;
use crate::error::Result;

const SUPPORTED: &str = "default, linear, llama3";

/// Rotary embedding parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How frequencies are stretched for contexts longer than the one first trained on.
    pub scaling: RopeScaling,
}

/// Scaling of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear blend between.
    Llama3 {
        /// Divisor for long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length before scaling, in tokens.
        original_max_position_embeddings: f64,
    },
}

impl Rope {
    /// Reads transformers 5's `rope_parameters`, or transformers 4's `rope_theta` and
    /// `rope_scaling` (where the type is under `rope_type`, or `type` in older files).
    pub(crate) fn from_config(config: Fields<'_>) -> Result<Self> {
        let (key, nested) = match config.object("rope_parameters")? {
            Some(map) => ("rope_parameters.", Some(map)),
            None => ("rope_scaling.", config.object("rope_scaling")?),
        };
        let empty = Map::<String, Value>::new();
        let fields = Fields::new(config.path(), key, nested.unwrap_or(&empty));
        let theta = match fields.positive_number("rope_theta")? {
            Some(theta) => theta,
            None => config.positive_number("rope_theta")?.unwrap_or(10_000.0),
        };
        for holder in [&config, &fields] {
            if holder.number("partial_rotary_factor")?.is_some_and(|x| x != 1.0) {
                return Err(holder.wrong("partial_rotary_factor", "1.0 (the whole head rotates)"));
            }
        }
        Ok(Self { theta, scaling: RopeScaling::from_fields(fields)? })
    }

    /// Inverse frequencies `[D/2]` f32, by the same f32 operations as transformers'
    /// `modeling_rope_utils` (positions of a few hundred magnify a last-bit difference).
    pub(crate) fn inverse_frequencies(&self, head_dim: i64) -> Result<Tensor> {
        let exponent = Tensor::f_arange_start_step(0, head_dim, 2, (Kind::Int64, Device::Cpu))?
            .f_to_kind(Kind::Float)?
            .f_div_scalar(head_dim)?;
        let inv_freq = Tensor::f_pow_scalar(self.theta, &exponent)?.f_reciprocal()?;
        match self.scaling {
            RopeScaling::Default => Ok(inv_freq),
            RopeScaling::Linear { factor } => Ok(inv_freq.f_div_scalar(factor)?),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let context = original_max_position_embeddings;
                let wavelength =
                    inv_freq.f_reciprocal()?.f_mul_scalar(2.0 * std::f64::consts::PI)?;
                let stretched = inv_freq.f_div_scalar(factor)?;
                let smooth = wavelength
                    .f_reciprocal()?
                    .f_mul_scalar(context)?
                    .f_sub_scalar(low_freq_factor)?
                    .f_div_scalar(high_freq_factor - low_freq_factor)?;
                // (1 - smooth) * stretched + smooth * inv_freq
                let blended = stretched.f_lerp_tensor(&inv_freq, &smooth)?;
                let long = wavelength.f_gt(context / low_freq_factor)?;
                let short = wavelength.f_lt(context / high_freq_factor)?;
                Ok(stretched.f_where_self(&long, &inv_freq.f_where_self(&short, &blended)?)?)
            }
        }
    }

    /// How many times longer than `max_position_embeddings` the usable context is: files with
    /// linear scaling keep the unscaled length in that key.
    pub(crate) fn context_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Linear { factor } => factor.max(1.0),
            RopeScaling::Default | RopeScaling::Llama3 { .. } => 1.0,
        }
    }
}

impl RopeScaling {
    fn from_fields(fields: Fields<'_>) -> Result<Self> {
        let kind = match fields.text("rope_type")? {
            Some(kind) => kind,
            None => fields.text("type")?.unwrap_or("default"),
        };
        let required = |key: &str| {
            fields.positive_number(key)?.ok_or_else(|| fields.wrong(key, "a number above 0"))
        };
        match kind {
            "default" => Ok(Self::Default),
            "linear" => Ok(Self::Linear { factor: required("factor")? }),
            "llama3" => {
                let low_freq_factor = required("low_freq_factor")?;
                let high_freq_factor = required("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    return Err(fields.wrong("high_freq_factor", "more than low_freq_factor"));
                }
                Ok(Self::Llama3 {
                    factor: required("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: required("original_max_position_embeddings")?,
                })
            }
            other => Err(fields.unsupported("rope type", other, SUPPORTED)),
        }
    }
}

/// Tables for positions `[N]` (i64): cosine and signed sine, both `[N, 1, D]` in `kind`.
///
/// The first half of the sines is negated, so that rotating is
/// `x * cos + roll(x, D/2) * sin` on the whole head.
pub(crate) fn tables(
    inv_freq: &Tensor,
    position_ids: &Tensor,
    kind: Kind,
) -> Result<(Tensor, Tensor)> {
    let inv_freq = inv_freq.f_to_device(position_ids.device())?;
    let angle = position_ids.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&inv_freq)?;
    let (cos, sin) = (angle.f_cos()?, angle.f_sin()?);
    let cos_n1d = Tensor::f_cat(&[&cos, &cos], 1)?.f_unsqueeze(1)?.f_to_kind(kind)?;
    let sin_n1d = Tensor::f_cat(&[&sin.f_neg()?, &sin], 1)?.f_unsqueeze(1)?.f_to_kind(kind)?;
    Ok((cos_n1d, sin_n1d))
}

/// Rotates `x_nkd` (`[N, heads, D]`) by the tables of [`tables`].
///
/// Both products are rounded before they are added, as in transformers: one fused step moves
/// the log-probs of a 30-layer model by 2e-5 in f32.
pub(crate) fn rotate(x_nkd: &Tensor, cos_n1d: &Tensor, sin_n1d: &Tensor) -> Result<Tensor> {
    let half = x_nkd.size().last().copied().unwrap_or(0) / 2;
    let swapped = x_nkd.f_roll([half], [-1])?;
    Ok(x_nkd.f_mul(cos_n1d)?.f_add(&swapped.f_mul(sin_n1d)?)?)
}
