//! Rows of the data sets that a recipe names: prompts, dialogues, pairs of answers.

use plumb_config::{DataSources, DpoStage, Stage};
use plumb_data::{
    DataError, MixSettings, Mixed, NamedRow, PairNeeds, PopRow, PreferenceRow, PreferredBy,
    SupervisedRow,
};
use plumb_domain::Prompt;

use super::StageContext;
use super::training_data::PTX_KEY;
use crate::job::error::{JobError, chain};

/// Prompts. `key` is the recipe's.
pub(super) fn prompts(
    context: &StageContext,
    key: &str,
    sources: &DataSources,
) -> Result<Mixed<Prompt>, JobError> {
    read(context, key, sources, plumb_data::read_prompts)
}

/// Dialogues; none where there are no sources.
pub(super) fn dialogues(
    context: &StageContext,
    key: &str,
    sources: &DataSources,
) -> Result<Mixed<NamedRow<SupervisedRow>>, JobError> {
    match sources.is_empty() {
        true => Ok(Mixed::default()),
        false => read(context, key, sources, plumb_data::read_supervised),
    }
}

/// Pairs of answers; none where there are no sources.
pub(super) fn pairs(
    context: &StageContext,
    key: &str,
    sources: &DataSources,
    needs: PairNeeds,
) -> Result<Mixed<NamedRow<PreferenceRow>>, JobError> {
    match sources.is_empty() {
        true => Ok(Mixed::default()),
        false => read(context, key, sources, |sources, settings| {
            plumb_data::read_preferences(sources, needs, settings)
        }),
    }
}

/// Pairs of pairs of answers; none where there are no sources.
pub(super) fn pops(
    context: &StageContext,
    key: &str,
    sources: &DataSources,
) -> Result<Mixed<NamedRow<PopRow>>, JobError> {
    match sources.is_empty() {
        true => Ok(Mixed::default()),
        false => read(context, key, sources, plumb_data::read_pops),
    }
}

/// What a training stage's rows are.
enum RowKind {
    Dialogues,
    Pairs(PairNeeds),
    Pops,
}

/// Reads all rows that the training stages of a recipe name, so that a bad one is told before
/// anything costs time; returns how many were left out.
///
/// # Errors
/// The recipe key, the file, the line or row, and what is wrong with it.
pub(super) fn check_training_stages(context: &StageContext) -> Result<u64, JobError> {
    let mut skipped = 0;
    if let Some(ptx) = &context.recipe.algorithm.ptx {
        skipped += reported(context, PTX_KEY, &dialogues(context, PTX_KEY, &ptx.train)?);
    }
    for (index, stage) in context.recipe.stage.iter().enumerate() {
        let Some((train, heldout, kind)) = training_sources(stage) else { continue };
        for (name, sources) in [("train", train), ("heldout", heldout)] {
            let key = format!("stage[{index}].{name}");
            skipped += match kind {
                RowKind::Dialogues => reported(context, &key, &dialogues(context, &key, sources)?),
                RowKind::Pairs(needs) => {
                    reported(context, &key, &pairs(context, &key, sources, needs)?)
                }
                RowKind::Pops => reported(context, &key, &pops(context, &key, sources)?),
            };
        }
    }
    Ok(skipped)
}

fn training_sources(stage: &Stage) -> Option<(&DataSources, &DataSources, RowKind)> {
    match stage {
        Stage::Sft(s) => Some((&s.train, &s.heldout, RowKind::Dialogues)),
        Stage::RewardModel(s) => {
            Some((&s.train, &s.heldout, RowKind::Pairs(reward_needs(s.preferred_by))))
        }
        Stage::CostModel(s) => {
            Some((&s.train, &s.heldout, RowKind::Pairs(cost_needs(s.sign_terms))))
        }
        Stage::Dpo(s) if s.loss.compares_pairs() => Some((&s.train, &s.heldout, RowKind::Pops)),
        Stage::Dpo(s) => Some((&s.train, &s.heldout, RowKind::Pairs(dpo_needs(s)))),
        _ => None,
    }
}

/// What a reward model needs of a pair.
pub(super) fn reward_needs(by: PreferredBy) -> PairNeeds {
    PairNeeds { by, ..PairNeeds::default() }
}

/// What a cost model needs: the safer answer first, and with sign terms which are safe.
pub(super) fn cost_needs(sign_terms: bool) -> PairNeeds {
    PairNeeds { by: PreferredBy::Safer, safety: sign_terms, margin: false }
}

/// What a `dpo` stage needs of a pair.
pub(super) fn dpo_needs(stage: &DpoStage) -> PairNeeds {
    PairNeeds { by: stage.preferred_by, safety: false, margin: stage.own_margins }
}

fn read<T>(
    context: &StageContext,
    key: &str,
    sources: &DataSources,
    read: impl Fn(&[String], MixSettings<'_>) -> Result<Mixed<T>, DataError>,
) -> Result<Mixed<T>, JobError> {
    let recipe = &context.recipe;
    let home = std::env::home_dir();
    let settings = MixSettings {
        base_dir: &context.base_dir,
        home: home.as_deref(),
        seed: recipe.seed,
        on_bad_row: recipe.data.on_bad_row,
        labels: &recipe.data.dataset_labels,
    };
    read(&sources.0, settings).map_err(|error| JobError::Input {
        what: format!("{key} = {sources}"),
        problem: chain(&error),
        fix: match error {
            DataError::Row { .. } => {
                "correct the row, or leave bad rows out with data.on_bad_row = \"skip\"".to_owned()
            }
            _ => "docs/data.md says what may stand here".to_owned(),
        },
    })
}

/// Tells of rows that were left out, one notice a source; returns their number.
pub(super) fn reported<T>(context: &StageContext, key: &str, mixed: &Mixed<T>) -> u64 {
    for part in mixed.parts.iter().filter(|part| part.skipped.total() > 0) {
        let (rows, skipped) = (part.rows as u64, part.skipped.total());
        let text = format!(
            "{key}, {:?}: {skipped} of {} rows left out: {}",
            part.source,
            rows + skipped,
            part.skipped
        );
        context.events.notice("warn", text);
    }
    mixed.skipped_rows()
}
