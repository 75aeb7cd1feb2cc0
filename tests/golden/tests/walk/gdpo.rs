//! GDPO, in its TRL and its verl form.

use plumb_algo::advantage::{self, Component, Gdpo, Grpo, Missing};
use plumb_algo::group::Groups;
use plumb_golden::{Case, Failure, encode_all};
use serde_json::{Value, json};

use crate::verl_advantage::{groups, rows_like, scores};
use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] =
    &[("gdpo/gdpo_trl", Check::Result(trl)), ("gdpo/gdpo_verl", Check::Result(verl))];

fn trl(case: &Case) -> Result<Value, Failure> {
    let rows = case.inputs.matrix("rewards_per_func")?;
    let weights = case.params.vector("reward_weights")?;
    let spec = Gdpo {
        epsilon: case.params.number_or("eps", Gdpo::default().epsilon)?,
        missing: Missing::CompatZero,
    };
    // The reference reads as many columns as there are weights.
    let columns = (0..weights.len()).map(|c| {
        let column = rows.iter().map(|row| row.get(c).copied());
        column
            .collect::<Option<Vec<f64>>>()
            .ok_or_else(|| Failure::refused(format!("no scores of component {c}")))
    });
    let columns: Vec<Vec<f64>> = columns.collect::<Result<_, Failure>>()?;
    let components: Vec<Component<'_>> = columns
        .iter()
        .zip(&weights)
        .map(|(scores, weight)| Component { weight: *weight, scores })
        .collect();
    let groups = Groups::adjacent(case.params.count("num_generations")?, rows.len())
        .map_err(Failure::refused)?;
    let got = advantage::gdpo(&spec, &components, &groups).map_err(Failure::refused)?;
    Ok(json!({ "pre_bn": encode_all(&got.sums), "advantages": encode_all(&got.advantages) }))
}

fn verl(case: &Case) -> Result<Value, Failure> {
    let spec = Grpo { epsilon: case.params.number_or("epsilon", 1e-6)?, ..Grpo::default() };
    let correctness = scores(case, "token_level_scores_correctness")?;
    let format = scores(case, "token_level_scores_format")?;
    let components = [
        Component { weight: 1.0, scores: &correctness },
        Component { weight: 1.0, scores: &format },
    ];
    let mask = case.inputs.mask("response_mask")?;
    let width = mask.first().map_or(0, Vec::len);
    let groups = groups(case, "uid")?;
    let got = advantage::gdpo_tokens(&spec, &components, &groups, &mask.concat(), width)
        .map_err(Failure::refused)?;
    Ok(rows_like(&mask, &got))
}
