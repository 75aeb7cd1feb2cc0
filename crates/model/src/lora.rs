//! Low-rank adapters (Hu et al. 2021) in the layout of PEFT.
//!
//! An adapted matrix `W [out, in]` computes `y = W x + (alpha / rank) B A dropout(x)` with
//! `A [rank, in]` and `B [out, rank]`; `B A` is never formed in a forward pass.

use tch::{Kind, Tensor};

use crate::block::{BlockKind, BlockSpec, ParamSpec};
use crate::error::{ModelError, Result};
use crate::init;

/// What PEFT puts before the name of an adapted module.
const PREFIX: &str = "base_model.model.";

/// A matrix of a decoder layer that can be adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoraTarget {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of the attention.
    O,
    /// Gate of the MLP.
    Gate,
    /// Input of the MLP.
    Up,
    /// Output of the MLP.
    Down,
}

impl LoraTarget {
    /// Every target, in block order.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's name in Hugging Face checkpoints and in PEFT's `target_modules`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    fn of_weight(name: &str) -> Option<Self> {
        let module = name.strip_suffix(".weight")?.rsplit('.').next()?;
        Self::ALL.into_iter().find(|target| target.as_str() == module)
    }
}

impl std::str::FromStr for LoraTarget {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|target| target.as_str() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            ModelError::input(format!("adapter target {name:?}; expected one of {known}"))
        })
    }
}

/// Shape and strength of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rows of A and columns of B.
    pub rank: i64,
    /// The product is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Share of the inputs of A that are zeroed in training, in [0, 1).
    pub dropout: f64,
    /// Adapted matrices, in block order.
    pub targets: Vec<LoraTarget>,
}

impl LoraConfig {
    /// Checks the values and puts the targets in block order.
    ///
    /// # Errors
    /// Names the value that is out of its domain.
    pub fn new(rank: i64, alpha: f64, dropout: f64, targets: &[LoraTarget]) -> Result<Self> {
        let refuse = |what: String| Err(ModelError::input(what));
        if rank < 1 {
            return refuse(format!("adapter rank {rank}; expected at least 1"));
        }
        if !(alpha > 0.0 && alpha.is_finite()) {
            return refuse(format!("adapter alpha {alpha}; expected a number above 0"));
        }
        if !(0.0..1.0).contains(&dropout) {
            return refuse(format!("adapter dropout {dropout}; expected a number in [0, 1)"));
        }
        let mut ordered = targets.to_vec();
        ordered.sort_unstable();
        ordered.dedup();
        if ordered.is_empty() || ordered.len() != targets.len() {
            let names: Vec<_> = targets.iter().map(|target| target.as_str()).collect();
            return refuse(format!("adapter targets {names:?}; expected one or more, each once"));
        }
        Ok(Self { rank, alpha, dropout, targets: ordered })
    }

    /// `alpha / rank`.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The adapter of one layer: A and B of each target, under PEFT's names.
    ///
    /// # Errors
    /// A block that is no layer.
    pub fn block(&self, layer: &BlockSpec) -> Result<BlockSpec> {
        if !matches!(layer.kind, BlockKind::Layer(_)) {
            return Err(ModelError::input(format!("an adapter for block {:?}", layer.kind)));
        }
        let mut params = Vec::with_capacity(2 * self.targets.len());
        for (_, weight) in self.adapted(layer) {
            let module = weight.name.trim_end_matches(".weight");
            let (outputs, inputs) = (weight.shape[0], weight.shape[1]);
            let named = |matrix: &str, shape| ParamSpec {
                name: format!("{PREFIX}{module}.{matrix}.weight"),
                shape,
            };
            params.push(named("lora_A", vec![self.rank, inputs]));
            params.push(named("lora_B", vec![outputs, self.rank]));
        }
        Ok(BlockSpec { kind: layer.kind, params, tied: false })
    }

    /// Targets and weights of a layer that are adapted: (position among the block's parameters,
    /// the parameter), in the order of [`LoraConfig::block`].
    fn adapted<'a>(&'a self, layer: &'a BlockSpec) -> impl Iterator<Item = (usize, &'a ParamSpec)> {
        let wanted =
            |name: &str| LoraTarget::of_weight(name).is_some_and(|t| self.targets.contains(&t));
        layer.params.iter().enumerate().filter(move |(_, param)| wanted(&param.name))
    }

    /// Positions of the adapted weights among the layer's parameters, in the order of the pairs
    /// of [`LoraConfig::block`].
    #[must_use]
    pub fn adapted_positions(&self, layer: &BlockSpec) -> Vec<usize> {
        self.adapted(layer).map(|(position, _)| position).collect()
    }

    /// What the adapter adds to a weight, `(alpha / rank) B A`, `[out, in]` fp32.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn delta(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let product = b.f_to_kind(Kind::Float)?.f_matmul(&a.f_to_kind(Kind::Float)?)?;
        Ok(product.f_mul_scalar(self.scale())?)
    }

    /// Squared Frobenius norm of [`LoraConfig::delta`], from rank x rank products only:
    /// `|B A|^2 = <B'B, A A'>`. Computed in double.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn delta_square(&self, a: &Tensor, b: &Tensor) -> Result<f64> {
        let (a, b) = (a.f_to_kind(Kind::Double)?, b.f_to_kind(Kind::Double)?);
        let (bb, aa) = (b.f_tr()?.f_matmul(&b)?, a.f_matmul(&a.f_tr()?)?);
        let square = bb.f_mul(&aa)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        Ok(square * self.scale() * self.scale())
    }

    /// Initial values of an adapter block, f32 on the CPU, as PEFT's: A uniform within
    /// `1 / sqrt(in)` (Kaiming with a = sqrt 5), B zero. A function of seed, name and element.
    ///
    /// # Errors
    /// If memory is short.
    pub fn initial(block: &BlockSpec, seed: u64) -> Result<Vec<Tensor>> {
        let values = |param: &ParamSpec| {
            if param.name.ends_with("lora_B.weight") {
                return Ok(Tensor::f_zeros(&param.shape, (Kind::Float, tch::Device::Cpu))?);
            }
            init::uniform(param, seed, 1.0 / (param.shape[1] as f64).sqrt())
        };
        block.params.iter().map(values).collect()
    }
}

/// An adapter's tensors applied to one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerAdapter<'a> {
    /// Shape and strength.
    pub config: &'a LoraConfig,
    /// A and B of each target, in the order of [`LoraConfig::block`], in compute dtype.
    pub params: &'a [Tensor],
    /// Seed of the dropout masks of this layer and pass; absent outside training. The same seed
    /// gives the same masks, so that a layer that is run again sees what it saw.
    pub dropout_seed: Option<u64>,
}

impl LayerAdapter<'_> {
    /// `(alpha / rank) B A dropout(x)` `[N, out]`, or nothing where the target is not adapted.
    /// `x_ni`: the target's input.
    pub(crate) fn delta(&self, target: LoraTarget, x_ni: &Tensor) -> Result<Option<Tensor>> {
        let Some(position) = self.config.targets.iter().position(|&other| other == target) else {
            return Ok(None);
        };
        let pair = self.params.get(2 * position..2 * position + 2).ok_or_else(|| {
            let (got, targets) = (self.params.len(), self.config.targets.len());
            ModelError::input(format!("an adapter of {targets} targets with {got} matrices"))
        })?;
        let dropped = match self.dropout_seed {
            Some(seed) if self.config.dropout > 0.0 => {
                let (dropout, device) = (self.config.dropout, x_ni.device());
                let keep = init::keep_mask(&x_ni.size(), seed, target as u64, dropout, device)?;
                let scale = 1.0 / (1.0 - dropout);
                Some(x_ni.f_mul(&keep.f_to_kind(x_ni.kind())?)?.f_mul_scalar(scale)?)
            }
            _ => None,
        };
        let low_nr = dropped.as_ref().unwrap_or(x_ni).f_linear(&pair[0], None::<&Tensor>)?;
        let delta = low_nr.f_linear(&pair[1], None::<&Tensor>)?;
        Ok(Some(delta.f_mul_scalar(self.config.scale())?))
    }
}
