//! The blocks a model is cut into, and the parameters of each.

use crate::config::ModelConfig;
use crate::score_head::HeadSpec;

/// Which part of the model a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// The token embedding.
    Embedding,
    /// Decoder layer `0..num_hidden_layers`.
    Layer(usize),
    /// Final norm and output head.
    Head,
}

/// One parameter tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Name in Hugging Face checkpoints, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Shape; linear weights are `[out, in]`.
    pub shape: Vec<i64>,
}

impl ParamSpec {
    /// Number of elements.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// A block and its parameters in their fixed order. A flat parameter of the block is the
/// concatenation of the parameters in this order, each in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSpec {
    /// Which block.
    pub kind: BlockKind,
    /// Its parameters. Query, key and value weights are neighbours, so that a flat block holds
    /// the fused projection as a plain view.
    pub params: Vec<ParamSpec>,
    /// For the head of a model with tied embeddings: the output weight is the embedding weight
    /// of block 0 and is not among `params`.
    pub tied: bool,
}

impl BlockSpec {
    /// Number of elements of the whole block.
    pub fn numel(&self) -> i64 {
        self.params.iter().map(ParamSpec::numel).sum()
    }
}

/// All blocks of a model: embedding, layers, head.
pub(crate) fn blocks(config: &ModelConfig, head: &HeadSpec) -> Vec<BlockSpec> {
    let mut blocks = Vec::with_capacity(config.num_hidden_layers + 2);
    let vocab_by_hidden = vec![config.vocab_size, config.hidden_size];
    blocks.push(BlockSpec {
        kind: BlockKind::Embedding,
        params: vec![ParamSpec {
            name: "model.embed_tokens.weight".into(),
            shape: vocab_by_hidden.clone(),
        }],
        tied: false,
    });
    blocks.extend((0..config.num_hidden_layers).map(|i| layer(config, i)));
    let mut params = vec![param("model.norm.weight", &[config.hidden_size])];
    let tied = matches!(head, HeadSpec::CausalLm) && config.tie_word_embeddings;
    match head {
        HeadSpec::CausalLm if tied => {}
        HeadSpec::CausalLm => params.push(param("lm_head.weight", &vocab_by_hidden)),
        HeadSpec::Score(score) => params.extend(score.params(config.hidden_size)),
    }
    blocks.push(BlockSpec { kind: BlockKind::Head, params, tied });
    blocks
}

fn param(name: impl Into<String>, shape: &[i64]) -> ParamSpec {
    ParamSpec { name: name.into(), shape: shape.to_vec() }
}

fn layer(config: &ModelConfig, index: usize) -> BlockSpec {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q_width, kv_width) = (config.q_width(), config.kv_width());
    let p = |name: &str, shape: &[i64]| param(format!("model.layers.{index}.{name}"), shape);
    let mut params = vec![
        p("input_layernorm.weight", &[hidden]),
        p("self_attn.q_proj.weight", &[q_width, hidden]),
        p("self_attn.k_proj.weight", &[kv_width, hidden]),
        p("self_attn.v_proj.weight", &[kv_width, hidden]),
    ];
    if config.qkv_bias {
        params.push(p("self_attn.q_proj.bias", &[q_width]));
        params.push(p("self_attn.k_proj.bias", &[kv_width]));
        params.push(p("self_attn.v_proj.bias", &[kv_width]));
    }
    params.push(p("self_attn.o_proj.weight", &[hidden, q_width]));
    if config.o_bias {
        params.push(p("self_attn.o_proj.bias", &[hidden]));
    }
    if config.qk_norm {
        params.push(p("self_attn.q_norm.weight", &[config.head_dim]));
        params.push(p("self_attn.k_norm.weight", &[config.head_dim]));
    }
    params.push(p("post_attention_layernorm.weight", &[hidden]));
    params.push(p("mlp.gate_proj.weight", &[inner, hidden]));
    params.push(p("mlp.up_proj.weight", &[inner, hidden]));
    if config.mlp_bias {
        params.push(p("mlp.gate_proj.bias", &[inner]));
        params.push(p("mlp.up_proj.bias", &[inner]));
    }
    params.push(p("mlp.down_proj.weight", &[hidden, inner]));
    if config.mlp_bias {
        params.push(p("mlp.down_proj.bias", &[hidden]));
    }
    BlockSpec { kind: BlockKind::Layer(index), params, tied: false }
}
