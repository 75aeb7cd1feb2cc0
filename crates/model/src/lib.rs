//! Dense decoder language models: Llama, Qwen2 / Qwen2.5 and Qwen3.
//!
//! The model code is pure functions over slices of parameters. A model is a list of
//! [`BlockSpec`]s (embedding, layers, head), each with its parameters in one fixed order, so that
//! the sharded training engine can gather a block, run it and free it, while the rollout engine
//! keeps the same blocks resident in [`Weights`]. Both run the same [`Decoder`].
//!
//! Where to start:
//! - [`ModelConfig::from_folder`] reads `config.json`; [`TensorSource::open`] the safetensors.
//! - [`Decoder::blocks`] names every parameter and its shape.
//! - [`Packed`] is a batch of sequences without padding; [`Decoder::layout`] prepares it.
//! - [`Decoder::embed`], [`Decoder::layer`], [`Decoder::final_norm`], [`Decoder::logits`] and
//!   [`Decoder::score`] are the forward pass, differentiable in parameters and inputs.
//! - [`Weights`], [`KvCache`] and [`Decoder::step`] generate.
//! - [`export::Writer`] writes a folder that transformers loads.
//! - [`LoraConfig`] and [`LayerAdapter`] put low-rank adapters beside a layer's matrices; [`peft`]
//!   reads and writes them.
//! - [`Tokenizer`] and [`ChatTemplate`] turn conversations into ids and back.
//! - [`import::import`] reads GGUF and llama2.c files; [`hub::resolve`] finds or fetches a model.
//!
//! Shape legend: N packed tokens, B sequences, H hidden size, V vocabulary, Q query heads,
//! K key/value heads, D head dimension, L cached tokens, I intermediate size.

mod attention;
mod block;
pub mod chat_template;
mod config;
mod config_fields;
mod decoder;
mod error;
pub mod export;
mod generate;
pub mod hub;
pub mod import;
pub mod init;
mod json_file;
mod kv_cache;
mod layer;
pub mod lora;
mod packed;
pub mod peft;
mod resident;
mod rope;
mod score_head;
mod tensor_source;
pub mod tokenizer;

pub use block::{BlockKind, BlockSpec, ParamSpec};
pub use chat_template::ChatTemplate;
pub use config::{Architecture, ModelConfig};
pub use decoder::Decoder;
pub use error::ModelError;
pub use generate::{BatchShape, Span};
pub use init::{derive_seed, random_blocks, score_head as new_score_head};
pub use kv_cache::KvCache;
pub use lora::{LayerAdapter, LoraConfig, LoraTarget};
pub use packed::{Layout, Packed, Tree};
pub use resident::{MissingHead, Weights};
pub use rope::{Rope, RopeScaling};
pub use score_head::{HeadSpec, ScoreHead};
pub use tensor_source::TensorSource;
pub use tokenizer::Tokenizer;
