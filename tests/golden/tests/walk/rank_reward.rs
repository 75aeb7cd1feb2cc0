//! Rank-GRPO: rewards and metrics of lists.

use std::collections::HashSet;

use plumb_algo::AlgoError;
use plumb_algo::metric::{
    catalog_match_ratio, dcg_at, ndcg_at, ranking_at, recall_at, sensitivity_at,
};
use plumb_algo::rank::list::parse_list_json;
use plumb_algo::rank::{
    Catalog, CountReward, Film, PenaltyDiscount, Relevance, SafetyPenalty, Solution, Wanted,
    discounts as rank_discounts, hits,
};
use plumb_golden::{Case, Failure, Fields, encode, encode_all};
use serde_json::{Value, json};

use crate::rank_list::{constraints, films, oracle};
use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("rank_grpo/discounts", Check::Result(discounts)),
    ("rank_grpo/evaluate_direct_match_aligned", Check::Result(evaluate_direct_match_aligned)),
    ("rank_grpo/rank_rewards", Check::Result(rank_rewards)),
    ("rank_grpo/recall_dcg_ndcg_at_k", Check::Result(recall_dcg_ndcg_at_k)),
    ("rank_grpo/recall_ndcg", Check::Result(recall_ndcg)),
    ("rank_grpo/catalog_match_ratio", Check::Result(catalog_match)),
    ("rank_grpo/sensitivity", Check::Result(sensitivity)),
];

/// A count; one below 0 is refused.
fn count(fields: &Fields, key: &str) -> Result<usize, Failure> {
    let number = fields.number(key)?;
    usize::try_from(number as i64).map_err(Failure::refused)
}

/// What a list is held against.
struct Against {
    truth: Vec<Film>,
    seen: HashSet<String>,
    catalog: Catalog,
}

impl Against {
    fn read(truth: &[Value], seen: &[Value], catalog: &[Value]) -> Result<Self, Failure> {
        Ok(Self {
            truth: films(truth)?,
            seen: seen.iter().filter_map(|title| title.as_str().map(str::to_owned)).collect(),
            catalog: Catalog::new(films(catalog)?),
        })
    }

    fn of(inputs: &Fields) -> Result<Self, Failure> {
        Self::read(
            inputs.list("groundtruth")?,
            inputs.list("seen_titles")?,
            inputs.list("catalog")?,
        )
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted { truth: &self.truth, seen: &self.seen, catalog: &self.catalog }
    }
}

fn discounts(case: &Case) -> Result<Value, Failure> {
    Ok(encode_all(&rank_discounts(count(&case.inputs, "rec_num")?)))
}

fn evaluate_direct_match_aligned(case: &Case) -> Result<Value, Failure> {
    let against = Against::of(&case.inputs)?;
    let recs = films(case.inputs.list("recs")?)?;
    let tolerance = case.params.number_or("year_tolerance", 2.0)? as i64;
    let hits = hits(&recs, &against.wanted(), count(&case.params, "rec_num")?, tolerance);
    Ok(hits.into_iter().map(u8::from).collect())
}

fn rank_rewards(case: &Case) -> Result<Value, Failure> {
    let params = &case.params;
    let rec_num = count(params, "rec_num")?;
    let tolerance = params.number_or("year_tolerance", 2.0)?;
    let oracle = oracle(case, Some(params.number_or("risk_threshold", 0.66)?), tolerance)?;
    let penalty = SafetyPenalty {
        weight: params.number_or("lambda_safe", 1.0)?,
        penalty: params.number_or("penalty_safe", 1.0)?,
        discount: PenaltyDiscount::CompatAlways,
    };
    let by_count = CountReward {
        target: count(params, "target_count")?,
        weight: params.number_or("lambda_count", 1.0)?,
    };
    let completions = case.inputs.list("completions")?;
    let rows = |key: &'static str| -> Result<&[Value], Failure> {
        let rows = case.inputs.list(key)?;
        if rows.len() != completions.len() {
            return Err(Failure::refused(AlgoError::Length {
                function: "rank_rewards",
                argument: key,
                expected: completions.len(),
                got: rows.len(),
            }));
        }
        Ok(rows)
    };
    let truths = rows("groundtruth_with_release_year")?;
    let seen = rows("seen_titles")?;
    let wishes = rows("constraints")?;
    let catalog = case.inputs.list("catalog")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut result = json!({});
    for (b, completion) in completions.iter().enumerate() {
        let films = parse_list_json(completion, Solution::First).map_err(Failure::refused)?;
        let against = Against::read(&list(&truths[b]), &list(&seen[b]), catalog)?;
        let wishes = constraints(&wishes[b], &case.order.of("constraints").at(b))?;
        let hits = hits(&films, &against.wanted(), rec_num, tolerance as i64);
        for (name, relevance) in
            [("exp_inf", Relevance::PerRank), ("log_decay", Relevance::LogDecay)]
        {
            let wanted = relevance.rewards(&hits);
            let safe = penalty
                .rewards(&films, &wishes, &oracle, relevance, rec_num)
                .map_err(Failure::refused)?;
            let both: Vec<f64> = wanted.iter().zip(&safe).map(|(w, s)| w + s).collect();
            add(&mut result, name, &wanted);
            add(&mut result, &format!("safe_{name}"), &both);
            add(&mut result, &format!("relevance_only_{name}"), &wanted);
            add(&mut result, &format!("safety_only_{name}"), &safe);
        }
        let counted = by_count.rewards(films.len(), rec_num).map_err(Failure::refused)?;
        add(&mut result, "count", &counted);
    }
    if completions.is_empty() {
        for name in NAMES {
            result[name] = json!([]);
        }
    }
    Ok(result)
}

const NAMES: [&str; 9] = [
    "exp_inf",
    "log_decay",
    "safe_exp_inf",
    "safe_log_decay",
    "relevance_only_exp_inf",
    "relevance_only_log_decay",
    "safety_only_exp_inf",
    "safety_only_log_decay",
    "count",
];

fn add(result: &mut Value, name: &str, rewards: &[f64]) {
    if !result[name].is_array() {
        result[name] = json!([]);
    }
    if let Some(rows) = result[name].as_array_mut() {
        rows.push(encode_all(rewards));
    }
}

fn recall_dcg_ndcg_at_k(case: &Case) -> Result<Value, Failure> {
    let hits = case.inputs.vector("hits")?;
    let wanted = count(&case.inputs, "num_gt")?;
    let k = count(&case.params, "k")?;
    Ok(json!({
        "recall": encode(recall_at(&hits, wanted, k).map_err(Failure::refused)?),
        "dcg": encode(dcg_at(&hits, k)),
        "ndcg": encode(ndcg_at(&hits, wanted, k).map_err(Failure::refused)?),
    }))
}

fn recall_ndcg(case: &Case) -> Result<Value, Failure> {
    let against = Against::of(&case.inputs)?;
    let recs = films(case.inputs.list("recs")?)?;
    let ranking = ranking_at(&recs, &against.wanted(), count(&case.params, "k")?)
        .map_err(Failure::refused)?;
    Ok(json!({"recall": encode(ranking.recall), "ndcg": encode(ranking.ndcg)}))
}

fn catalog_match(case: &Case) -> Result<Value, Failure> {
    let recs = films(case.inputs.list("recs")?)?;
    let catalog = Catalog::new(films(case.inputs.list("catalog")?)?);
    let limit = if case.params.has("k") { count(&case.params, "k")? } else { 20 };
    Ok(encode(catalog_match_ratio(&recs, &catalog, limit).map_err(Failure::refused)?))
}

fn sensitivity(case: &Case) -> Result<Value, Failure> {
    let recs = films(case.inputs.list("recs")?)?;
    let oracle = oracle(case, None, case.params.number_or("year_tolerance", 2.0)?)?;
    let object = case.inputs.get("constraints")?;
    let wishes = match object {
        Value::Null => Vec::new(),
        object => constraints(object, &case.order.of("constraints"))?,
    };
    let threshold = case.params.number_or("threshold", oracle.threshold)?;
    let got = sensitivity_at(&recs, &wishes, &oracle, count(&case.params, "k")?, threshold)
        .map_err(Failure::refused)?;
    Ok(json!({
        "sensitivity_dcg": encode(got.dcg),
        "sensitive_count": got.count,
        "total": got.films,
        "ratio": encode(got.ratio),
    }))
}
