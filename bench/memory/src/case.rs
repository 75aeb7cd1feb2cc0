//! What is measured, and what is predicted for it.

use std::path::Path;

use plumb_config::Dtype;
use plumb_config::memory::{DecoderShape, EngineShape, Head, PhaseMemory, Trained};

use crate::model::Size;
use crate::rank::{Orders, Peaks};

/// Rows of a batch.
const ROWS: u64 = 16;
/// Tokens of a row.
const ROW_TOKENS: u64 = 256;

/// One layout of ranks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) size: Size,
    pub(crate) ranks: usize,
    pub(crate) micro_batch_tokens: usize,
}

impl Case {
    /// Its name in the report.
    pub(crate) fn name(&self) -> String {
        let size = match self.size {
            Size::M10 => "10M",
            Size::M50 => "50M",
        };
        let micro_batch = self.micro_batch_tokens;
        format!("{size}-bf16-{ROWS}x{ROW_TOKENS}-micro{micro_batch}-{}-rank", self.ranks)
    }

    /// The whole model in fp32.
    pub(crate) fn model_bytes(&self) -> u64 {
        4 * shape(self.size).parameters(&Head::LanguageModel)
    }

    /// What a rank is told.
    pub(crate) fn orders(
        &self,
        rank: usize,
        model: &Path,
        store: &Path,
        steps: usize,
        verbose: bool,
    ) -> Orders {
        Orders {
            model: model.to_owned(),
            store: store.to_owned(),
            rank,
            ranks: self.ranks,
            micro_batch_tokens: self.micro_batch_tokens,
            steps,
            rows: ROWS as usize,
            row_tokens: ROW_TOKENS as usize,
            vocabulary: self.size.vocabulary() as u32,
            verbose,
        }
    }

    /// What `plumb explain` says of the same recipe.
    pub(crate) fn predicted(&self) -> Peaks {
        let ranks = self.ranks as u64;
        let shape = EngineShape {
            model: shape(self.size),
            head: Head::LanguageModel,
            ranks,
            compute: Dtype::Bf16,
            reduce: Dtype::Fp32,
            recompute: true,
            reshard_after_forward: true,
            micro_batch_tokens: self.micro_batch_tokens as u64,
            step_tokens: ROWS / ranks * ROW_TOKENS,
            longest_tokens: ROW_TOKENS,
            trained: Trained::Above(0),
            state_bytes: 8.0,
            offload_optimizer: false,
            offload_parameters: false,
            ema: false,
            cpu: true,
        };
        let phases = shape.phases();
        let update = phases.iter().skip(1).map(PhaseMemory::bytes).max().unwrap_or(0);
        Peaks { start: 0, load: shape.load().bytes(), update }
    }
}

fn shape(size: Size) -> DecoderShape {
    let widths = size.widths();
    DecoderShape {
        hidden: widths.hidden,
        intermediate: widths.intermediate,
        layers: widths.layers,
        heads: widths.heads,
        kv_heads: widths.kv_heads,
        head_width: widths.hidden / widths.heads,
        vocabulary: size.vocabulary(),
        tied: true,
        qkv_bias: true,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
    }
}
