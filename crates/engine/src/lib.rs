//! Block-wise sharded training of decoder language models.
//!
//! A model is a list of blocks: embedding, layers, head. Each rank owns an even share (a shard)
//! of every block's flat parameter in fp32, and the optimiser state of that share. A block is
//! gathered in the compute type while it runs and freed afterwards. World size 1 is the same
//! code without communication.
//!
//! Where to start reading:
//! - [`ShardedModel::load`] reads a Hugging Face folder slice by slice.
//! - [`policy_update`] is the training step, written like the box of a paper.
//! - `passes` is the loop over blocks; `flat` what a block's shard, gathered copy and gradient
//!   are; [`head`] how log-probs come without `[N, V]`.
//! - `optimizer` steps on shards; `parameter_rules` says on which parameters and how fast, `moments`
//!   and `eight_bit` how AdamW's state is kept, `ema` is the moving average, `placement` what lives
//!   in host memory.
//! - `adapters` are low-rank adapters beside frozen layers ([`LoraPlan`]).
//! - [`value_training`] is the critic's part of the step.
//! - [`supervised_training`], [`reward_training`], [`preference_training`], [`log_probs()`],
//!   [`publish`], [`checkpoint`], `export` are what else a
//!   worker asks of a model.
//!
//! Legend: N packed tokens, M response tokens, H hidden, V vocabulary, P elements of a block with
//! padding, S elements of a shard. `logp_m` is a tensor `[M]`.

mod adapters;
mod agreement;
pub mod checkpoint;
mod eight_bit;
mod ema;
mod error;
mod export;
pub mod flat;
pub mod head;
mod lm_head;
mod load;
pub mod log_probs;
pub mod micro_batch;
pub mod mismatch;
mod moments;
mod optimizer;
mod parameter_rules;
mod passes;
mod placement;
pub mod policy_update;
mod preference_batch;
mod preference_objective;
pub mod preference_training;
pub mod publish;
pub mod response_batch;
pub mod reward_training;
mod settings;
mod shard_file;
mod sharded_model;
mod stored_moments;
pub mod supervised_training;
mod token_scores;
mod trained_runs;
pub mod value_training;

pub use adapters::LoraPlan;
pub use ema::EmaSettings;
pub use error::{EngineError, Result};
pub use log_probs::{ResponseLogProbs, log_probs, response_logps};
pub use optimizer::{AdamW, OptimizerStep};
pub use parameter_rules::ParameterGroup;
pub use passes::Trace;
pub use placement::{Offload, Placement};
pub use policy_update::{Metrics, OldLogProbs, PolicySample, PolicyUpdate, update_policy};
pub use preference_batch::{AnswerLogProbs, AnswerPair};
pub use preference_objective::{PairMargin, PreferenceObjective};
pub use preference_training::{answer_log_probs, measure_preferences, train_preferences};
pub use response_batch::ResponseSample;
pub use reward_training::{PairScores, ScoreLoss, TextPair, score_pairs, train_pairs};
pub use settings::{AdamWSettings, EngineSettings, MomentState, Precision};
pub use shard_file::FileDigest;
pub use sharded_model::{LoadPlan, ShardedModel};
pub use supervised_training::{TargetText, measure_texts, train_texts, train_weighted_texts};
pub use value_training::{ResponseValues, ValueSample, ValueUpdate, update_values, values};

#[cfg(test)]
mod tests;
