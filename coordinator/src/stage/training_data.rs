//! The rows of stages that train on a data set: read from files or taken from a `label` stage,
//! encoded by the trainer, and cut to what fits.
//!
//! Everything that knows where rows come from stands here.

use plumb_config::{PtxConfig, Recipe, Stage};
use plumb_data::{DataError, PreferencePair};
use plumb_domain::ChatMessage;
use plumb_proto::actor::{AnswerPair, Dialogue, Message, PairSafety, TargetText, TextPair};

use super::label::Pairs;
use super::{Figures, Outputs, StageContext};
use crate::fleet::trainer::Trainer;
use crate::job::error::{JobError, chain};

/// A pair with token ids, and what is known of its answers' safety.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodedPair {
    /// Its answers, under their prompt.
    pub answers: AnswerPair,
    /// Whether the better and the worse answer are safe.
    pub safe: Option<[bool; 2]>,
}

impl EncodedPair {
    /// The pair as two whole texts.
    #[must_use]
    pub fn texts(&self) -> TextPair {
        let a = &self.answers;
        let text = |answer: &[u32]| [a.prompt_ids.as_slice(), answer].concat();
        TextPair {
            id: a.id.clone(),
            better_ids: text(&a.better_ids),
            worse_ids: text(&a.worse_ids),
            safe: self.safe.map(|[better, worse]| PairSafety { better, worse }),
        }
    }

    fn longest(&self) -> usize {
        let a = &self.answers;
        a.prompt_ids.len() + a.better_ids.len().max(a.worse_ids.len())
    }

    fn tokens(&self) -> usize {
        let a = &self.answers;
        a.prompt_ids.len() + a.better_ids.len() + a.worse_ids.len()
    }
}

/// Rows to train on and rows that only measure.
#[derive(Debug, Default)]
pub(super) struct Split<Row> {
    /// To train on.
    pub(super) train: Vec<Row>,
    /// Held out.
    pub(super) heldout: Vec<Row>,
    /// What became of rows that are too long.
    pub(super) figures: Figures,
}

/// Where a stage's pairs are.
pub(super) struct PairSource<'a> {
    /// The stage's name.
    pub(super) stage: &'a str,
    /// A `label` stage.
    pub(super) pairs: Option<&'a str>,
    /// A file to train on.
    pub(super) train: Option<&'a str>,
    /// A file that only measures.
    pub(super) heldout: Option<&'a str>,
    /// Longest prompt with its answer.
    pub(super) max_tokens: Option<u32>,
    /// Whether every pair must say which of its answers are safe.
    pub(super) needs_safety: bool,
}

/// Reads every file of rows that a recipe names, so that a bad row is told before anything costs
/// time.
///
/// # Errors
/// The recipe key, the file, the line, and what is wrong with it.
pub(super) fn check(context: &StageContext) -> Result<(), JobError> {
    if let Some(ptx) = &context.recipe.algorithm.ptx {
        dialogues(context, PTX_KEY, Some(&ptx.train))?;
    }
    for (index, stage) in context.recipe.stage.iter().enumerate() {
        let key = |name: &str| format!("stage[{index}].{name}");
        let (train, heldout) = match stage {
            Stage::Sft(s) => {
                dialogues(context, &key("train"), Some(&s.train))?;
                dialogues(context, &key("heldout"), s.heldout.as_deref())?;
                continue;
            }
            Stage::RewardModel(s) => (s.train.as_deref(), s.heldout.as_deref()),
            Stage::CostModel(s) => (s.train.as_deref(), s.heldout.as_deref()),
            Stage::Dpo(s) => (s.train.as_deref(), s.heldout.as_deref()),
            _ => continue,
        };
        let needs_safety = matches!(stage, Stage::CostModel(s) if s.sign_terms);
        pairs(context, &key("train"), train, needs_safety)?;
        pairs(context, &key("heldout"), heldout, needs_safety)?;
    }
    Ok(())
}

/// The dialogues of the PTX loss, encoded and cut to `max_tokens`.
pub(super) async fn encoded_ptx(
    context: &StageContext,
    encoder: &Trainer,
    ptx: &PtxConfig,
) -> Result<Vec<TargetText>, JobError> {
    let most = ptx.max_tokens.unwrap_or(context.recipe.engine.micro_batch_tokens) as usize;
    let rows = dialogues(context, PTX_KEY, Some(&ptx.train))?;
    let texts = encoder.encode(&rows).await?;
    let texts: Vec<_> = texts.into_iter().filter_map(|text| cut_to(text, most)).collect();
    not_empty(PTX_KEY, texts.is_empty(), rows.len(), most)?;
    Ok(texts)
}

/// The recipe key of the PTX loss's dialogues.
const PTX_KEY: &str = "algorithm.ptx.train";

/// A stage's dialogues, encoded and cut to `max_tokens`.
pub(super) async fn encoded_dialogues(
    context: &StageContext,
    trainer: &Trainer,
    stage: &plumb_config::SftStage,
) -> Result<Split<TargetText>, JobError> {
    let most = stage.max_tokens.unwrap_or(context.recipe.engine.micro_batch_tokens) as usize;
    let train = dialogues(context, "train", Some(&stage.train))?;
    let heldout = dialogues(context, "heldout", stage.heldout.as_deref())?;
    let mut split = Split::default();
    let (mut cut, mut dropped) = (0usize, 0usize);
    for (rows, kept) in [(train, &mut split.train), (heldout, &mut split.heldout)] {
        for text in trainer.encode(&rows).await? {
            let long = text.ids.len() > most;
            match cut_to(text, most) {
                Some(text) => kept.push(text),
                None => dropped += 1,
            }
            cut += usize::from(long);
        }
    }
    // Those of which nothing is left were cut, too.
    split.figures = [
        ("dialogues".to_owned(), split.train.len() as f64),
        ("cut_dialogues".to_owned(), (cut - dropped) as f64),
        ("dropped_dialogues".to_owned(), dropped as f64),
    ]
    .into();
    not_empty(&stage.name, split.train.is_empty(), dropped, most)?;
    Ok(split)
}

/// A stage's pairs with token ids; those that are too long are left out and counted.
pub(super) async fn encoded_pairs(
    context: &StageContext,
    trainer: &Trainer,
    source: &PairSource<'_>,
    outputs: &Outputs,
) -> Result<Split<EncodedPair>, JobError> {
    let all = match source.pairs {
        Some(name) => outputs.pairs.get(name).cloned().ok_or_else(|| JobError::Stage {
            stage: source.stage.to_owned(),
            problem: format!("stage {name} left no pairs"),
        })?,
        None => {
            let train = pairs(context, "train", source.train, source.needs_safety)?;
            let heldout = pairs(context, "heldout", source.heldout, source.needs_safety)?;
            Pairs {
                train: encode_pairs(context, trainer, &train).await?,
                heldout: encode_pairs(context, trainer, &heldout).await?,
            }
        }
    };
    let budget = context.recipe.engine.micro_batch_tokens as usize;
    let most = source.max_tokens.map_or(budget, |most| most as usize);
    let fits = |pair: &EncodedPair| pair.longest() <= most && pair.tokens() <= budget;
    let rows = all.train.len() + all.heldout.len();
    let train: Vec<_> = all.train.into_iter().filter(fits).collect();
    let heldout: Vec<_> = all.heldout.into_iter().filter(fits).collect();
    let dropped = rows - train.len() - heldout.len();
    not_empty(source.stage, train.is_empty(), dropped, most)?;
    let figures =
        [("pairs".to_owned(), train.len() as f64), ("dropped_pairs".to_owned(), dropped as f64)];
    Ok(Split { train, heldout, figures: figures.into() })
}

fn not_empty(stage: &str, empty: bool, dropped: usize, most: usize) -> Result<(), JobError> {
    match empty {
        false => Ok(()),
        true => Err(JobError::Stage {
            stage: stage.to_owned(),
            problem: format!(
                "no row to train on is left: {dropped} have more than {most} tokens; raise \
                 max_tokens and engine.micro_batch_tokens"
            ),
        }),
    }
}

/// The first `most` tokens, if a target is among them.
fn cut_to(mut text: TargetText, most: usize) -> Option<TargetText> {
    text.ids.truncate(most);
    let end = text.ids.len() as u32;
    text.targets.retain(|span| span.first < end);
    for span in &mut text.targets {
        span.end = span.end.min(end);
    }
    (!text.targets.is_empty()).then_some(text)
}

fn dialogues(
    context: &StageContext,
    key: &str,
    name: Option<&str>,
) -> Result<Vec<Dialogue>, JobError> {
    let Some(name) = name else { return Ok(Vec::new()) };
    let rows = plumb_data::read_dialogues(&context.base_dir.join(name));
    let rows =
        rows.map_err(|e| unreadable(key, name, &e, "id and messages, or prompt and answer"))?;
    let row = |row: plumb_data::Dialogue| wire(&context.recipe, row.id, &row.messages, None);
    Ok(rows.into_iter().map(row).collect())
}

fn pairs(
    context: &StageContext,
    key: &str,
    name: Option<&str>,
    needs_safety: bool,
) -> Result<Vec<PreferencePair>, JobError> {
    let Some(name) = name else { return Ok(Vec::new()) };
    let path = context.base_dir.join(name);
    let rows = plumb_data::read_preference_pairs(&path)
        .map_err(|e| unreadable(key, name, &e, "id, prompt or messages, better and worse"))?;
    match rows.iter().find(|row| needs_safety && row.safe.is_none()) {
        None => Ok(rows),
        Some(row) => Err(JobError::Input {
            what: format!("{key} = {name:?}"),
            problem: format!("pair {:?} does not say which of its answers are safe", row.id),
            fix: "give better_safe and worse_safe, or write sign_terms = false".to_owned(),
        }),
    }
}

fn unreadable(key: &str, name: &str, error: &DataError, fields: &str) -> JobError {
    JobError::Input {
        what: format!("{key} = {name:?}"),
        problem: chain(error),
        fix: format!("give JSON lines with {fields}"),
    }
}

async fn encode_pairs(
    context: &StageContext,
    trainer: &Trainer,
    rows: &[PreferencePair],
) -> Result<Vec<EncodedPair>, JobError> {
    let with = |answer: fn(&PreferencePair) -> &str| {
        let dialogue = |row: &PreferencePair| {
            wire(&context.recipe, row.id.clone(), &row.messages, Some(answer(row)))
        };
        rows.iter().map(dialogue).collect::<Vec<_>>()
    };
    let better = trainer.encode(&with(|row| &row.better)).await?;
    let worse = trainer.encode(&with(|row| &row.worse)).await?;
    let encoded = rows.iter().zip(better.iter().zip(&worse)).map(|(row, (better, worse))| {
        let (prompt_ids, better_ids) = last_turn(better)?;
        let (_, worse_ids) = last_turn(worse)?;
        let answers =
            AnswerPair { id: row.id.clone(), prompt_ids, better_ids, worse_ids, reference: None };
        Some(EncodedPair { answers, safe: row.safe })
    });
    encoded.collect::<Option<_>>().ok_or_else(|| {
        crate::ports::PhaseError::Failed("a pair was encoded without its answer".to_owned()).into()
    })
}

/// What stands before the last assistant's turn, and the turn.
fn last_turn(text: &TargetText) -> Option<(Vec<u32>, Vec<u32>)> {
    let span = text.targets.last()?;
    let (first, end) = (span.first as usize, span.end as usize);
    Some((text.ids.get(..first)?.to_vec(), text.ids.get(first..end)?.to_vec()))
}

/// A dialogue as the trainer takes it: with the recipe's system message where it has none, and
/// with an answer where one is given.
fn wire(recipe: &Recipe, id: String, messages: &[ChatMessage], answer: Option<&str>) -> Dialogue {
    let message =
        |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let own_system = messages.iter().any(|m| m.role == "system");
    let system = recipe.data.system_prompt.as_deref().filter(|_| !own_system);
    let messages = system
        .map(|text| message("system", text))
        .into_iter()
        .chain(messages.iter().map(|m| message(&m.role, &m.content)))
        .chain(answer.map(|text| message("assistant", text)));
    Dialogue { id, messages: messages.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plumb_proto::actor::TokenSpan;

    #[test]
    fn a_long_dialogue_keeps_the_targets_that_fit() {
        let span = |first, end| TokenSpan { first, end };
        let text = TargetText {
            id: "d".into(),
            ids: (0..10).collect(),
            targets: vec![span(2, 4), span(6, 10)],
        };
        let cut = |most| cut_to(text.clone(), most).map(|text| text.targets);
        assert_eq!(cut(10), Some(vec![span(2, 4), span(6, 10)]));
        assert_eq!(cut(8), Some(vec![span(2, 4), span(6, 8)]));
        assert_eq!(cut(6), Some(vec![span(2, 4)]));
        assert_eq!(cut(2), None);
    }

    #[test]
    fn the_last_turn_is_the_answer_without_what_follows_it() {
        let text = TargetText {
            id: "d".into(),
            ids: vec![5, 6, 7, 8, 9],
            targets: vec![TokenSpan { first: 1, end: 2 }, TokenSpan { first: 3, end: 4 }],
        };
        assert_eq!(last_turn(&text), Some((vec![5, 6, 7], vec![8])));
        let pair = EncodedPair {
            answers: AnswerPair {
                id: "p".into(),
                prompt_ids: vec![1, 2],
                better_ids: vec![3],
                worse_ids: vec![4, 5],
                reference: None,
            },
            safe: Some([true, false]),
        };
        assert_eq!((pair.longest(), pair.tokens()), (4, 5));
        let texts = pair.texts();
        assert_eq!((texts.better_ids, texts.worse_ids), (vec![1, 2, 3], vec![1, 2, 4, 5]));
        assert_eq!(texts.safe, Some(PairSafety { better: true, worse: false }));
    }
}
