//! The forward pass over resident weights: whole sequences, and steps of generation.

use plumb_torch::paged::{BLOCK_TOKENS, PagedRows};
use tch::Tensor;

use crate::attention;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::kv_cache::KvCache;
use crate::layer::LayerParams;
use crate::packed::{Layout, Packed};
use crate::resident::Weights;

/// New tokens of one sequence: a prompt or a part of it, or the token drawn last.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The tokens, at least one.
    pub ids: &'a [u32],
    /// Position of the first of them; what stands before is in the cache.
    pub first_position: usize,
    /// The sequence's blocks in order, up to the last of these tokens at least.
    pub blocks: &'a [u32],
    /// Whether the logits after the last token are wanted.
    pub wants_logits: bool,
}

/// How the rows of a step meet the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BatchShape {
    /// All rows at once; whole prompts attend to themselves by the packed kernel. Results differ
    /// in the last bits with what else is in the batch.
    #[default]
    Ragged,
    /// Exactly this many rows at a time, the last ones filled up. A row's result is the same to
    /// the bit whatever else is in the batch and however its sequence was cut into steps.
    Fixed(usize),
}

impl Decoder {
    /// Normalised hidden states `[N, H]` of whole sequences, without gradients or cache.
    ///
    /// # Errors
    /// If ids or lengths do not fit the model.
    pub fn forward(&self, weights: &Weights, packed: &Packed) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let packed = packed.to_device(weights.device());
        let layout = self.layout(&packed, weights.kind())?;
        let mut hidden_nh = self.embed(first_block(weights)?, &packed.input_ids)?;
        for (index, layer) in weights.layers().iter().enumerate() {
            hidden_nh = self.packed_layer(index, layer, None, &hidden_nh, &layout)?;
        }
        self.final_norm(weights.head_params(), &hidden_nh)
    }

    /// Scores `[B]` f32, one per sequence at its last token, by the weights' score head.
    ///
    /// # Errors
    /// If the weights are a language model's, or ids or lengths do not fit.
    pub fn score_sequences(&self, weights: &Weights, packed: &Packed) -> Result<Tensor> {
        let head = weights.score_head()?;
        let _no_grad = tch::no_grad_guard();
        let hidden_nh = self.forward(weights, packed)?;
        let last = packed.last_indices().f_to_device(hidden_nh.device())?;
        self.score(head, weights.head_params(), &hidden_nh.f_index_select(0, &last)?)
    }

    /// Logits `[N, V]` in the compute dtype from normalised hidden states.
    ///
    /// # Errors
    /// If the weights have a score head.
    pub fn output(&self, weights: &Weights, hidden_nh: &Tensor) -> Result<Tensor> {
        self.logits(weights.output_weight()?, hidden_nh)
    }

    /// Runs new tokens of several sequences, any mixture of prompts, parts of prompts and single
    /// tokens, and stores their keys and values. Returns the logits after the last token of each
    /// span that wants them, `[S, V]` in the order of the spans; `None` where none does.
    ///
    /// A sequence may have one span in a step, and nobody else may hold the blocks it writes.
    ///
    /// # Errors
    /// If a span is empty, has too few blocks, or ids or positions do not fit the model.
    pub fn step(
        &self,
        weights: &Weights,
        spans: &[Span<'_>],
        cache: &mut KvCache,
        shape: BatchShape,
    ) -> Result<Option<Tensor>> {
        let _no_grad = tch::no_grad_guard();
        self.check_spans(weights, spans, cache)?;
        let hidden_sh = match shape {
            BatchShape::Ragged => self.ragged_step(weights, spans, cache)?,
            BatchShape::Fixed(rows) => self.fixed_step(weights, spans, cache, rows.max(1))?,
        };
        let Some(hidden_sh) = hidden_sh else { return Ok(None) };
        let BatchShape::Fixed(rows) = shape else {
            return Ok(Some(self.output(weights, &hidden_sh)?));
        };
        let (count, rows) = (hidden_sh.size()[0], rows.max(1) as i64);
        let padding = (rows - count % rows) % rows;
        let hidden_sh = hidden_sh.f_constant_pad_nd([0, 0, 0, padding])?;
        let parts = hidden_sh.f_split(rows, 0)?;
        let parts = parts.iter().map(|part| self.output(weights, part));
        let logits = Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(Some(logits.f_narrow(0, 0, count)?))
    }

    /// Spans that continue a sequence come first, row by row; whole prompts follow, packed.
    fn ragged_step(
        &self,
        weights: &Weights,
        spans: &[Span<'_>],
        cache: &mut KvCache,
    ) -> Result<Option<Tensor>> {
        let whole = |span: &Span<'_>| span.first_position == 0 && span.ids.len() > 1;
        let mut order: Vec<usize> = (0..spans.len()).collect();
        order.sort_by_key(|index| whole(&spans[*index]));
        let ordered: Vec<&Span<'_>> = order.iter().map(|index| &spans[*index]).collect();
        let (continued, fresh) = ordered.split_at(ordered.partition_point(|span| !whole(span)));
        let first_fresh: usize = continued.iter().map(|span| span.ids.len()).sum();
        let layout = if fresh.is_empty() {
            None
        } else {
            let ids: Vec<&[u32]> = fresh.iter().map(|span| span.ids).collect();
            let packed = Packed::new(&ids)?.to_device(weights.device());
            Some(self.layout(&packed, weights.kind())?)
        };
        let fresh = layout.as_ref().map(|layout| (first_fresh as i64, layout));
        let hidden_nh = self.run_rows(weights, &ordered, &rows_of(&ordered), cache, fresh)?;
        // Back to the order of the spans.
        let (mut end, mut last) = (0, vec![0; spans.len()]);
        for index in order {
            end += spans[index].ids.len() as i64;
            last[index] = end - 1;
        }
        let wanted = spans.iter().zip(last).filter(|(span, _)| span.wants_logits);
        let wanted: Vec<i64> = wanted.map(|(_, last)| last).collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let wanted = Tensor::f_from_slice(&wanted)?.f_to_device(hidden_nh.device())?;
        Ok(Some(hidden_nh.f_index_select(0, &wanted)?))
    }

    /// The same rows, a fixed number at a time.
    fn fixed_step(
        &self,
        weights: &Weights,
        spans: &[Span<'_>],
        cache: &mut KvCache,
        count: usize,
    ) -> Result<Option<Tensor>> {
        let ordered: Vec<&Span<'_>> = spans.iter().collect();
        let rows = rows_of(&ordered);
        let mut wanted = Vec::new();
        for part in rows.chunks(count) {
            let mut filled = part.to_vec();
            filled.resize(count, Row::FILLER);
            let hidden_nh = self.run_rows(weights, &ordered, &filled, cache, None)?;
            let lasts: Vec<i64> =
                (0..).zip(part).filter(|(_, row)| row.wanted).map(|(at, _)| at).collect();
            if !lasts.is_empty() {
                let lasts = Tensor::f_from_slice(&lasts)?.f_to_device(hidden_nh.device())?;
                wanted.push(hidden_nh.f_index_select(0, &lasts)?);
            }
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        Ok(Some(Tensor::f_cat(&wanted, 0)?))
    }

    /// All layers over these rows; `fresh` says from which row on sequences attend only to
    /// themselves, and how they lie. Returns normalised hidden states `[N, H]`.
    fn run_rows(
        &self,
        weights: &Weights,
        spans: &[&Span<'_>],
        rows: &[Row],
        cache: &mut KvCache,
        fresh: Option<(i64, &Layout)>,
    ) -> Result<Tensor> {
        let (kind, device) = cache.options();
        let to_tensor = |values: Vec<i64>| Tensor::f_from_slice(&values)?.f_to_device(device);
        let ids_n = to_tensor(rows.iter().map(|row| i64::from(row.id)).collect())?;
        let position_n = to_tensor(rows.iter().map(|row| row.position).collect())?;
        let (cos_n1d, sin_n1d) = self.rope_tables(&position_n, kind)?;
        let places = places(spans, rows)?;
        let by_row = fresh.map_or(rows.len() as i64, |(first, _)| first);
        let seen = PagedRows {
            tables_sw: places.tables_sw.shallow_clone(),
            sequence_n: places.sequence_n.f_narrow(0, 0, by_row)?,
            position_n: places.position_n.f_narrow(0, 0, by_row)?,
        };
        let config = self.config();
        let mut hidden_nh = self.embed(first_block(weights)?, &ids_n)?;
        for (index, layer) in weights.layers().iter().enumerate() {
            let layer: &LayerParams = layer;
            let window = config.windows.get(index).copied().flatten();
            let (q, k, v) = layer.qkv(config, &hidden_nh, &cos_n1d, &sin_n1d, None)?;
            cache.write(index, &places, &k, &v)?;
            let part = |x: &Tensor, from: i64, to: i64| x.f_narrow(0, from, to - from);
            let total = rows.len() as i64;
            let mut attended = Vec::with_capacity(2);
            if by_row > 0 {
                attended.push(cache.attend(index, &seen, &part(&q, 0, by_row)?, window)?);
            }
            if let Some((first, layout)) = fresh {
                let (q, k, v) =
                    (part(&q, first, total)?, part(&k, first, total)?, part(&v, first, total)?);
                attended.push(attention::packed(&q, &k, &v, layout, window)?);
            }
            let attended = match attended.as_slice() {
                [one] => one.shallow_clone(),
                several => Tensor::f_cat(several, 0)?,
            };
            hidden_nh = layer.finish(config, &hidden_nh, &attended, None)?;
        }
        self.final_norm(weights.head_params(), &hidden_nh)
    }

    fn check_spans(&self, weights: &Weights, spans: &[Span<'_>], cache: &KvCache) -> Result<()> {
        if cache.options() != (weights.kind(), weights.device()) {
            return Err(ModelError::input(format!(
                "KV cache of {:?} for weights of {:?}",
                cache.options(),
                (weights.kind(), weights.device())
            )));
        }
        if spans.is_empty() {
            return Err(ModelError::input("a step without a span"));
        }
        for (index, span) in spans.iter().enumerate() {
            let end = span.first_position + span.ids.len();
            if span.ids.is_empty() {
                return Err(ModelError::input(format!("span {index} has no tokens")));
            }
            self.check_position(end as i64 - 1)?;
            if span.blocks.len() < end.div_ceil(BLOCK_TOKENS) {
                return Err(ModelError::input(format!(
                    "span {index} ends at position {} but has {} blocks of {BLOCK_TOKENS} tokens",
                    end - 1,
                    span.blocks.len()
                )));
            }
            span.ids.iter().try_for_each(|id| self.check_id(*id))?;
            span.blocks.iter().try_for_each(|block| cache.check_block(*block))?;
        }
        Ok(())
    }
}

/// One token of a step.
#[derive(Debug, Clone, Copy)]
struct Row {
    id: u32,
    position: i64,
    /// Index of its span; -1 for one that only fills the batch.
    span: i32,
    /// Whether the hidden state after it is wanted.
    wanted: bool,
}

impl Row {
    const FILLER: Self = Self { id: 0, position: 0, span: -1, wanted: false };
}

fn rows_of(spans: &[&Span<'_>]) -> Vec<Row> {
    let mut rows = Vec::with_capacity(spans.iter().map(|span| span.ids.len()).sum());
    for (span, number) in spans.iter().zip(0..) {
        let last = span.ids.len() - 1;
        rows.extend(span.ids.iter().enumerate().map(|(at, id)| Row {
            id: *id,
            position: (span.first_position + at) as i64,
            span: number,
            wanted: span.wants_logits && at == last,
        }));
    }
    rows
}

/// Where the rows stand in the cache.
fn places(spans: &[&Span<'_>], rows: &[Row]) -> Result<PagedRows> {
    let width = spans.iter().map(|span| span.blocks.len()).max().unwrap_or(1);
    let mut tables = vec![0i32; spans.len() * width];
    for (table, span) in tables.chunks_mut(width).zip(spans) {
        table.iter_mut().zip(span.blocks).for_each(|(to, block)| *to = *block as i32);
    }
    let sequence: Vec<i32> = rows.iter().map(|row| row.span).collect();
    let position: Vec<i32> = rows.iter().map(|row| row.position as i32).collect();
    Ok(PagedRows {
        tables_sw: Tensor::f_from_slice(&tables)?.f_view([spans.len() as i64, width as i64])?,
        sequence_n: Tensor::f_from_slice(&sequence)?,
        position_n: Tensor::f_from_slice(&position)?,
    })
}

fn first_block(weights: &Weights) -> Result<&[Tensor]> {
    weights
        .blocks
        .first()
        .map(Vec::as_slice)
        .ok_or_else(|| ModelError::input("weights without blocks"))
}
