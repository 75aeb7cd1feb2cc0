//! `label`: preference pairs by a rule that anyone can read. Every answer's score and every pair
//! goes to `pairs/`, so that the labels can be audited without running anything.

use std::collections::BTreeMap;

use plumb_algo::rule::Rule;
use plumb_config::LabelStage;
use plumb_proto::actor::AnswerPair;
use plumb_telemetry::JsonLines;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::training_data::EncodedPair;
use super::{Figures, Outputs, StageContext};
use crate::job::error::JobError;
use crate::ports::PlainSample;

/// Pairs to train on, and pairs to measure accuracy on; no prompt is in both.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pairs {
    /// To train on.
    pub train: Vec<EncodedPair>,
    /// Held out.
    pub heldout: Vec<EncodedPair>,
}

/// One line of `pairs/<stage>.jsonl`.
#[derive(Serialize)]
struct PairLine<'a> {
    id: &'a str,
    prompt_id: &'a str,
    split: &'a str,
    question: &'a str,
    better: &'a str,
    better_score: f64,
    worse: &'a str,
    worse_score: f64,
}

/// A sample and what the rule made of it.
struct Scored<'a> {
    sample: &'a PlainSample,
    score: f64,
}

pub(super) fn run(
    stage: &LabelStage,
    context: &StageContext,
    outputs: &mut Outputs,
) -> Result<Figures, JobError> {
    let fail = |problem: String| JobError::Stage { stage: stage.name.clone(), problem };
    let rule = parse_rule(&stage.rule).map_err(&fail)?;
    let samples = outputs
        .samples
        .get(&stage.samples)
        .ok_or_else(|| fail(format!("stage {} left no samples", stage.samples)))?;
    let mut by_prompt: BTreeMap<&str, Vec<Scored<'_>>> = BTreeMap::new();
    for sample in samples {
        let score = rule
            .score(&sample.answer())
            .map_err(|error| fail(format!("sample {}: {error}", sample.id)))?;
        by_prompt.entry(sample.prompt_id.as_str()).or_default().push(Scored { sample, score });
    }
    let folder = context.folder.path("pairs");
    std::fs::create_dir_all(&folder).map_err(|source| JobError::Io {
        what: "made",
        path: folder.clone(),
        source,
    })?;
    let mut file = JsonLines::create(folder.join(format!("{}.jsonl", stage.name)))?;
    let mut pairs = Pairs::default();
    let heldout =
        heldout_prompts(by_prompt.keys().copied(), stage.heldout_share, context.recipe.seed);
    let mut mean = 0.0;
    for (prompt, mut scored) in by_prompt {
        mean += scored.iter().map(|s| s.score).sum::<f64>();
        let held = heldout.contains(&prompt);
        let split = if held { "heldout" } else { "train" };
        for (number, (better, worse)) in choose(&mut scored, stage).into_iter().enumerate() {
            let id = format!("{prompt}/{number}");
            file.append(&PairLine {
                id: &id,
                prompt_id: prompt,
                split,
                question: &better.sample.question,
                better: &better.sample.response,
                better_score: better.score,
                worse: &worse.sample.response,
                worse_score: worse.score,
            })?;
            let answers = AnswerPair {
                id,
                prompt_ids: better.sample.prompt_ids.clone(),
                better_ids: better.sample.response_ids.clone(),
                worse_ids: worse.sample.response_ids.clone(),
                ..AnswerPair::default()
            };
            let pair = EncodedPair { answers, safe: None };
            if held { pairs.heldout.push(pair) } else { pairs.train.push(pair) }
        }
    }
    if pairs.train.is_empty() {
        return Err(fail(format!(
            "the rule tells no two of {} samples apart by {}; lower min_gap, or draw more answers \
             to a prompt",
            samples.len(),
            stage.min_gap
        )));
    }
    let figures = [
        ("pairs".to_owned(), pairs.train.len() as f64),
        ("heldout_pairs".to_owned(), pairs.heldout.len() as f64),
        ("mean_score".to_owned(), mean / samples.len().max(1) as f64),
    ];
    outputs.artefacts.insert("pairs".to_owned(), format!("pairs/{}.jsonl", stage.name));
    outputs.pairs.insert(stage.name.clone(), pairs);
    Ok(figures.into())
}

/// A rule as it stands in a recipe.
pub(super) fn parse_rule(table: &toml::Table) -> Result<Rule, String> {
    let json = serde_json::to_string(table).map_err(|e| e.to_string())?;
    Rule::from_json(&json).map_err(|e| crate::job::error::chain(&e))
}

/// The pairs of one prompt: best against worst, then second best against second worst, as long
/// as the gap lasts.
fn choose<'a, 'b>(
    scored: &'b mut [Scored<'a>],
    stage: &LabelStage,
) -> Vec<(&'b Scored<'a>, &'b Scored<'a>)> {
    // Ties keep the order of sample ids, so that the same samples give the same pairs.
    scored.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.sample.id.cmp(&b.sample.id)));
    let scored: &'b [Scored<'a>] = scored;
    let half = scored.len() / 2;
    scored[..half]
        .iter()
        .zip(scored.iter().rev())
        .filter(|(better, worse)| better.score - worse.score >= stage.min_gap)
        .filter(|(better, worse)| {
            !better.sample.response_ids.is_empty() && !worse.sample.response_ids.is_empty()
        })
        .take(stage.pairs_per_prompt)
        .collect()
}

/// Which prompts are held out: a seeded share of them.
fn heldout_prompts<'a>(
    prompts: impl Iterator<Item = &'a str>,
    share: f64,
    seed: u64,
) -> Vec<&'a str> {
    let mut prompts: Vec<&str> = prompts.collect();
    prompts.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let count = (prompts.len() as f64 * share).round() as usize;
    prompts.truncate(count);
    prompts
}

#[cfg(test)]
mod tests {
    use super::*;
    use plumb_domain::{Label, PromptId};

    fn sample(id: usize) -> PlainSample {
        PlainSample {
            id: format!("0/p/{id}"),
            prompt_id: PromptId::new("p").unwrap(),
            label: Label::new("safety").unwrap(),
            prompt_ids: vec![1],
            response_ids: vec![2],
            question: "q".into(),
            response: format!("answer {id}"),
            reference: None,
            finish: "eos",
            policy_version: 0,
        }
    }

    fn stage(min_gap: f64, pairs_per_prompt: usize) -> LabelStage {
        LabelStage {
            name: "label".into(),
            samples: "sample".into(),
            rule: toml::Table::new(),
            min_gap,
            pairs_per_prompt,
            heldout_share: 0.25,
        }
    }

    fn chosen(scores: &[f64], stage: &LabelStage) -> Vec<(f64, f64)> {
        let samples: Vec<PlainSample> = (0..scores.len()).map(sample).collect();
        let mut scored: Vec<Scored<'_>> = samples
            .iter()
            .zip(scores)
            .map(|(sample, score)| Scored { sample, score: *score })
            .collect();
        choose(&mut scored, stage).iter().map(|(b, w)| (b.score, w.score)).collect()
    }

    #[test]
    fn the_best_meets_the_worst_and_no_answer_meets_itself() {
        assert_eq!(chosen(&[0.0, 1.0, 0.5, 0.2], &stage(0.1, 9)), [(1.0, 0.0), (0.5, 0.2)]);
        assert_eq!(chosen(&[0.0, 1.0, 0.5], &stage(0.1, 9)), [(1.0, 0.0)]);
    }

    #[test]
    fn gap_and_number_bound_the_pairs() {
        assert_eq!(chosen(&[0.0, 1.0, 0.5, 0.2], &stage(0.5, 9)), [(1.0, 0.0)]);
        assert_eq!(chosen(&[0.0, 0.0, 1.0, 1.0], &stage(0.5, 1)), [(1.0, 0.0)]);
        assert!(chosen(&[1.0, 1.0], &stage(0.5, 1)).is_empty());
    }

    #[test]
    fn held_out_prompts_are_a_seeded_share() {
        let ids = ["a", "b", "c", "d"];
        let first = heldout_prompts(ids.into_iter(), 0.5, 1);
        assert_eq!(first.len(), 2);
        assert_eq!(first, heldout_prompts(ids.into_iter(), 0.5, 1));
        assert!(heldout_prompts(ids.into_iter(), 0.0, 1).is_empty());
    }
}
