//! Output heads: language model, linear score, MLP score.
//!
//! How a score head is stored, so that it round-trips:
//!
//! | head | tensors | `config.json` |
//! |---|---|---|
//! | linear | `score.weight` `[1, H]` | `architectures: ["<Family>ForSequenceClassification"]`, one label |
//! | MLP | `score.layers.<i>.weight`, `.bias`, then `score.output_layer.weight` `[1, last]`, `.bias` | `architectures: ["<Family>ForMlpScore"]`, `hidden_dim_str: "a,b,.."` |
//!
//! The linear form is what transformers' `AutoModelForSequenceClassification` loads. The MLP form
//! is UPS-RM's head (commit 3b44b72, `modeling_myrm.py`), which transformers has no class for.

use tch::{Kind, Tensor};

use crate::block::ParamSpec;
use crate::error::{ModelError, Result};

/// What the last block computes from the hidden states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadSpec {
    /// Next-token logits.
    CausalLm,
    /// One number per sequence.
    Score(ScoreHead),
}

/// How a sequence's score is computed from its last token's hidden state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScoreHead {
    /// `w · h`, without bias.
    Linear,
    /// UPS-RM: linear layers of the given widths, each followed by leaky ReLU (0.01), then a
    /// linear layer to one number.
    Mlp {
        /// Width of each hidden layer. Without any it is one linear layer with a bias, as in
        /// safe-rlhf's score models; a model folder cannot hold that form.
        hidden_dims: Vec<i64>,
    },
}

impl ScoreHead {
    /// Parameters of the head for hidden states of `hidden_size`, without the final norm.
    pub fn params(&self, hidden_size: i64) -> Vec<ParamSpec> {
        let param = |name: String, shape: Vec<i64>| ParamSpec { name, shape };
        match self {
            Self::Linear => vec![param("score.weight".into(), vec![1, hidden_size])],
            Self::Mlp { hidden_dims } => {
                let mut params = Vec::with_capacity(2 * hidden_dims.len() + 2);
                let mut width = hidden_size;
                for (i, &dim) in hidden_dims.iter().enumerate() {
                    params.push(param(format!("score.layers.{i}.weight"), vec![dim, width]));
                    params.push(param(format!("score.layers.{i}.bias"), vec![dim]));
                    width = dim;
                }
                params.push(param("score.output_layer.weight".into(), vec![1, width]));
                params.push(param("score.output_layer.bias".into(), vec![1]));
                params
            }
        }
    }

    /// Scores `[B]` from normalised hidden states `[B, H]` of any float dtype; computed in f32, or
    /// in f64 where the hidden states are. `params` are those of [`ScoreHead::params`], in that
    /// order. Differentiable.
    ///
    /// # Errors
    /// If the number of parameters or a shape does not fit.
    pub fn score(&self, params: &[Tensor], hidden_bh: &Tensor) -> Result<Tensor> {
        let (layers, expected) = match self {
            Self::Linear => (0, 1),
            Self::Mlp { hidden_dims } => (hidden_dims.len(), 2 * hidden_dims.len() + 2),
        };
        if params.len() != expected {
            return Err(ModelError::input(format!(
                "score head {self:?} takes {expected} parameters, got {}",
                params.len()
            )));
        }
        let kind = if hidden_bh.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let cast = |t: &Tensor| t.f_to_kind(kind);
        let mut x = cast(hidden_bh)?;
        for layer in params[..2 * layers].chunks_exact(2) {
            x = x.f_linear(&cast(&layer[0])?, Some(cast(&layer[1])?))?.f_leaky_relu()?;
        }
        let bias = params.get(2 * layers + 1).map(cast).transpose()?;
        Ok(x.f_linear(&cast(&params[2 * layers])?, bias)?.f_squeeze_dim(-1)?)
    }

    /// UPS-RM's `hidden_dim_str`: the hidden widths joined by commas; `None` for a linear head.
    pub fn hidden_dim_str(&self) -> Option<String> {
        match self {
            Self::Linear => None,
            Self::Mlp { hidden_dims } => {
                Some(hidden_dims.iter().map(i64::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }

    /// Reads UPS-RM's `hidden_dim_str`.
    ///
    /// # Errors
    /// If an entry is not a positive whole number.
    pub fn from_hidden_dim_str(text: &str) -> Result<Self> {
        let hidden_dims = text
            .split(',')
            .map(|part| match part.trim().parse::<i64>() {
                Ok(dim) if (1..=1 << 20).contains(&dim) => Ok(dim),
                _ => Err(ModelError::input(format!(
                    "`{part}` in hidden widths \"{text}\" is not a whole number from 1 to 1048576"
                ))),
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self::Mlp { hidden_dims })
    }
}
