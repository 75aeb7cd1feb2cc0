//! Rank-GRPO: items of tokens and their advantages.

use plumb_algo::group::Groups;
use plumb_algo::rank::segments::newlines;
use plumb_algo::rank::{Combination, LengthShaping, RankAdvantage, Segments, token_advantages};
use plumb_golden::{Case, Failure, Fields, encode_all};
use serde_json::{Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("rank_grpo/segment_items", Check::Result(segment_items)),
    ("rank_grpo/rank_advantages", Check::Result(rank_advantages)),
];

/// The items of each row, as the file's vocabulary decodes its tokens.
fn segments(case: &Case, rec_num: usize) -> Result<Vec<Segments>, Failure> {
    let vocabulary = case.inputs.get("vocab")?;
    // The reference counts 1 for the token that "\n" encodes to, if it is a single one.
    let single = match case.inputs.has("newline_token_ids") {
        true => match case.inputs.vector("newline_token_ids")?.as_slice() {
            [only] => Some(*only),
            _ => None,
        },
        false => None,
    };
    let of_token = |id: &f64| match single {
        Some(newline) if newline == *id => 1,
        _ => newlines(vocabulary.get(id.to_string()).and_then(Value::as_str).unwrap_or_default()),
    };
    let rows = case.inputs.matrix("completion_ids")?;
    let masks = case.inputs.mask("completion_mask")?;
    rows.iter()
        .zip(&masks)
        .map(|(row, mask)| {
            let newlines: Vec<usize> = row.iter().map(of_token).collect();
            Segments::of(&newlines, mask, rec_num).map_err(Failure::refused)
        })
        .collect()
}

fn segment_items(case: &Case) -> Result<Value, Failure> {
    let rows = segments(case, case.params.count("max_items")?)?;
    let column = |of: fn(&Segments) -> Value| rows.iter().map(of).collect::<Value>();
    Ok(json!({
        "item_seg_ids": column(|row| json!(row.item)),
        "item_content_mask": column(|row| json!(row.content)),
        "overflow_token_mask": column(|row| json!(row.overflow)),
    }))
}

/// `[B][F][K]` rewards.
fn rewards(case: &Case) -> Result<Vec<Vec<Vec<f64>>>, Failure> {
    let samples = case.inputs.list("rewards_per_func")?.iter();
    samples.map(|sample| Fields(json!({ "functions": sample })).matrix("functions")).collect()
}

fn rank_advantages(case: &Case) -> Result<Value, Failure> {
    let params = &case.params;
    let rec_num = params.count("rec_num")?;
    let rewards = rewards(case)?;
    let groups = Groups::adjacent(params.count("num_generations")?, rewards.len())
        .map_err(Failure::refused)?;
    let how = RankAdvantage {
        combination: match params.text("advantage_mode")? {
            "gdpo" => Combination::CompatGdpo,
            _ => Combination::SumThenCompare,
        },
        scale: params.flag("scale_rewards")?,
        epsilon: params.number_or("eps", 1e-4)?,
        weights: match params.has("reward_weights") {
            true => Some(params.vector("reward_weights")?),
            false => None,
        },
    };
    let ranks = how.of(&rewards, &groups, rec_num).map_err(Failure::refused)?;
    let shaping = LengthShaping {
        end_of_list: params.number_or("end_of_list_reward", 0.1)?,
        extra_token: params.number_or("extra_token_penalty", -0.1)?,
        early_stop: params.number_or("early_stop_penalty", -0.1)?,
    };
    let shape =
        !params.has("apply_extra_length_shaping") || params.flag("apply_extra_length_shaping")?;
    let eos = params.number("eos_token_id")?;
    let rows = segments(case, rec_num)?;
    let ids = case.inputs.matrix("completion_ids")?;
    let mut tokens = Vec::new();
    for ((ranks, row), ids) in ranks.iter().zip(&rows).zip(&ids) {
        let end = ids.iter().position(|id| *id == eos);
        let own = token_advantages(ranks, row, end, shape.then_some(&shaping));
        tokens.push(encode_all(&own.map_err(Failure::refused)?));
    }
    let flags = |mask: Vec<bool>| mask.into_iter().map(u8::from).collect::<Value>();
    Ok(json!({
        "advantages_items": ranks.iter().map(|ranks| encode_all(ranks)).collect::<Value>(),
        "advantages_tokens": tokens,
        "item_seg_ids": rows.iter().map(|row| json!(row.item)).collect::<Value>(),
        "item_token_mask": rows.iter().map(|row| flags(row.loss_mask())).collect::<Value>(),
        "items_emitted": rows.iter().map(Segments::emitted).collect::<Value>(),
    }))
}
