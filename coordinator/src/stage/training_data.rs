//! The rows of stages that train on a data set: read from data sets or taken from a `label`
//! stage, encoded by the trainer, and cut to what fits.

use plumb_config::{DataSources, PtxConfig, Recipe};
use plumb_data::{Mixed, NamedRow, PairNeeds, PreferenceRow, SupervisedRow};
use plumb_domain::ChatMessage;
use plumb_proto::actor::{AnswerPair, Dialogue, Message, PairSafety, TargetText, TextPair};

use super::label::Pairs;
use super::{Figures, Outputs, StageContext, rows};
use crate::fleet::trainer::Trainer;
use crate::job::error::JobError;

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

    /// Tokens of the longest prompt with its answer.
    fn longest(&self) -> usize {
        let longest =
            |a: &AnswerPair| a.prompt_ids.len() + a.better_ids.len().max(a.worse_ids.len());
        self.single_pairs().map(longest).max().unwrap_or(0)
    }

    /// Tokens that a micro-batch must hold.
    fn tokens(&self) -> usize {
        let tokens = |a: &AnswerPair| a.prompt_ids.len() + a.better_ids.len() + a.worse_ids.len();
        self.single_pairs().map(tokens).sum()
    }

    /// The pair, and its unpreferred one.
    fn single_pairs(&self) -> impl Iterator<Item = &AnswerPair> {
        std::iter::once(&self.answers).chain(self.answers.unpreferred.as_deref())
    }
}

/// Rows to train on and rows that only measure.
#[derive(Debug, Default)]
pub(super) struct Split<Row> {
    /// To train on.
    pub(super) train: Vec<Row>,
    /// Held out.
    pub(super) heldout: Vec<Row>,
    /// How many there are, and what became of others.
    pub(super) figures: Figures,
}

/// Where a stage's pairs are.
pub(super) struct PairSource<'a> {
    /// The stage's name.
    pub(super) stage: &'a str,
    /// A `label` stage.
    pub(super) pairs: Option<&'a str>,
    /// Sources to train on.
    pub(super) train: &'a DataSources,
    /// Sources that only measure.
    pub(super) heldout: &'a DataSources,
    /// Longest prompt with its answer.
    pub(super) max_tokens: Option<u32>,
    /// What every pair must say beside its answers.
    pub(super) needs: PairNeeds,
    /// Whether a row is two pairs, of which one is preferred.
    pub(super) pops: bool,
}

/// The dialogues of the PTX loss, encoded and cut to `max_tokens`.
pub(super) async fn encoded_ptx(
    context: &StageContext,
    encoder: &Trainer,
    ptx: &PtxConfig,
) -> Result<Vec<TargetText>, JobError> {
    let most = ptx.max_tokens.unwrap_or(context.recipe.engine.micro_batch_tokens) as usize;
    let mixed = rows::dialogues(context, PTX_KEY, &ptx.train)?;
    let texts = encoder.encode(&wired(&context.recipe, &mixed)).await?;
    let texts: Vec<_> = texts.into_iter().filter_map(|text| cut_to(text, most)).collect();
    not_empty(PTX_KEY, texts.is_empty(), mixed.rows.len(), most)?;
    Ok(texts)
}

/// The recipe key of the PTX loss's dialogues.
pub(super) const PTX_KEY: &str = "algorithm.ptx.train";

/// A stage's dialogues, encoded and cut to `max_tokens`.
pub(super) async fn encoded_dialogues(
    context: &StageContext,
    trainer: &Trainer,
    stage: &plumb_config::SftStage,
) -> Result<Split<TargetText>, JobError> {
    let most = stage.max_tokens.unwrap_or(context.recipe.engine.micro_batch_tokens) as usize;
    let train = rows::dialogues(context, &format!("{}: train", stage.name), &stage.train)?;
    let heldout = rows::dialogues(context, &format!("{}: heldout", stage.name), &stage.heldout)?;
    let skipped = train.skipped_rows() + heldout.skipped_rows();
    let mut split = Split::default();
    let (mut cut, mut dropped) = (0usize, 0usize);
    for (mixed, kept) in [(train, &mut split.train), (heldout, &mut split.heldout)] {
        for text in trainer.encode(&wired(&context.recipe, &mixed)).await? {
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
        ("skipped_rows".to_owned(), skipped as f64),
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
    let mut skipped = 0;
    let all = match source.pairs {
        Some(name) => outputs.pairs.get(name).cloned().ok_or_else(|| JobError::Stage {
            stage: source.stage.to_owned(),
            problem: format!("stage {name} left no pairs"),
        })?,
        None => {
            let (train, train_skipped) =
                read_and_encode(context, trainer, source, "train", source.train).await?;
            let (heldout, heldout_skipped) =
                read_and_encode(context, trainer, source, "heldout", source.heldout).await?;
            skipped = train_skipped + heldout_skipped;
            Pairs { train, heldout }
        }
    };
    let budget = context.recipe.engine.micro_batch_tokens as usize;
    let most = source.max_tokens.map_or(budget, |most| most as usize);
    let fits = |pair: &EncodedPair| pair.longest() <= most && pair.tokens() <= budget;
    let count = all.train.len() + all.heldout.len();
    let train: Vec<_> = all.train.into_iter().filter(fits).collect();
    let heldout: Vec<_> = all.heldout.into_iter().filter(fits).collect();
    let dropped = count - train.len() - heldout.len();
    not_empty(source.stage, train.is_empty(), dropped, most)?;
    let figures = [
        ("pairs".to_owned(), train.len() as f64),
        ("dropped_pairs".to_owned(), dropped as f64),
        ("skipped_rows".to_owned(), skipped as f64),
    ];
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

fn wired(recipe: &Recipe, mixed: &Mixed<NamedRow<SupervisedRow>>) -> Vec<Dialogue> {
    let dialogue =
        |named: &NamedRow<SupervisedRow>| wire(recipe, named.id.clone(), &named.row.messages, None);
    mixed.rows.iter().map(dialogue).collect()
}

/// A source's pairs, and how many rows were left out.
async fn read_and_encode(
    context: &StageContext,
    trainer: &Trainer,
    source: &PairSource<'_>,
    name: &str,
    sources: &DataSources,
) -> Result<(Vec<EncodedPair>, u64), JobError> {
    let key = format!("{}: {name}", source.stage);
    if !source.pops {
        let mixed = rows::pairs(context, &key, sources, source.needs)?;
        let pairs: Vec<_> = mixed.rows.iter().map(|named| (&named.id, &named.row)).collect();
        return Ok((encode_pairs(context, trainer, &pairs).await?, mixed.skipped_rows()));
    }
    let mixed = rows::pops(context, &key, sources)?;
    let preferred = mixed.rows.iter().map(|named| (&named.id, &named.row.preferred));
    let unpreferred = mixed.rows.iter().map(|named| (&named.id, &named.row.unpreferred));
    let mut pairs = encode_pairs(context, trainer, &preferred.collect::<Vec<_>>()).await?;
    let others = encode_pairs(context, trainer, &unpreferred.collect::<Vec<_>>()).await?;
    for (pair, other) in pairs.iter_mut().zip(others) {
        pair.answers.unpreferred = Some(Box::new(other.answers));
    }
    Ok((pairs, mixed.skipped_rows()))
}

async fn encode_pairs(
    context: &StageContext,
    trainer: &Trainer,
    pairs: &[(&String, &PreferenceRow)],
) -> Result<Vec<EncodedPair>, JobError> {
    let with = |answer: fn(&PreferenceRow) -> &str| {
        let dialogue = |&(id, row): &(&String, &PreferenceRow)| {
            wire(&context.recipe, id.clone(), &row.prompt, Some(answer(row)))
        };
        pairs.iter().map(dialogue).collect::<Vec<_>>()
    };
    let better = trainer.encode(&with(|row| &row.chosen)).await?;
    let worse = trainer.encode(&with(|row| &row.rejected)).await?;
    let encoded =
        pairs.iter().zip(better.iter().zip(&worse)).map(|((id, row), (better, worse))| {
            let (prompt_ids, better_ids) = last_turn(better)?;
            let (_, worse_ids) = last_turn(worse)?;
            let answers = AnswerPair {
                id: (*id).clone(),
                prompt_ids,
                better_ids,
                worse_ids,
                margin: row.margin,
                ..AnswerPair::default()
            };
            let safe = row.chosen_safe.zip(row.rejected_safe);
            Some(EncodedPair { answers, safe: safe.map(|(better, worse)| [better, worse]) })
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
                ..AnswerPair::default()
            },
            safe: Some([true, false]),
        };
        assert_eq!((pair.longest(), pair.tokens()), (4, 5));
        let other = AnswerPair { prompt_ids: vec![1; 9], ..pair.answers.clone() };
        let mut both = pair.clone();
        both.answers.unpreferred = Some(Box::new(other));
        assert_eq!((both.longest(), both.tokens()), (11, 17));
        let texts = pair.texts();
        assert_eq!((texts.better_ids, texts.worse_ids), (vec![1, 2, 3], vec![1, 2, 4, 5]));
        assert_eq!(texts.safe, Some(PairSafety { better: true, worse: false }));
    }
}
