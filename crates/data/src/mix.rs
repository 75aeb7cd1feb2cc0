//! Data sets as a recipe names them, read, mixed and made into what a run needs.
//!
//! A source is a path, or `name:proportion:path` (see [`DatasetSpec`]). A text without a colon is
//! a path; its rows are of the form that belongs to the use. Paths that are not absolute start
//! from the recipe's folder.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use plumb_config::OnBadRow;
use plumb_domain::Prompt;
use serde_json::Value;

use crate::prompts::Fallback;
use crate::row::{At, Place, Row};
use crate::{
    DataError, DatasetSpec, PairNeeds, Part, PopRow, PreferenceRow, Proportion, RowFault, Schema,
    Skipped, Source, SupervisedRow, Use, merge,
};

/// How sources are read and mixed.
#[derive(Debug, Clone, Copy)]
pub struct MixSettings<'a> {
    /// Where relative paths start.
    pub base_dir: &'a Path,
    /// What `~` stands for; none leaves it as it is.
    pub home: Option<&'a Path>,
    /// Seed of the choice of samples.
    pub seed: u64,
    /// What becomes of bad rows.
    pub on_bad_row: OnBadRow,
    /// Labels of data sets whose prompts have none, by the data set's name.
    pub labels: &'a BTreeMap<String, String>,
}

/// Rows of a mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixed<T> {
    /// Source after source; within each whole copies in its own order, then a random choice.
    pub rows: Vec<T>,
    /// What was read of each source.
    pub parts: Vec<PartRead>,
}

/// A row with a name that no other row of its mixture has: `name:row` as of [`read_prompts`]. A
/// row that a proportion above 1 takes twice keeps its name.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedRow<T> {
    /// Its name.
    pub id: String,
    /// The row.
    pub row: T,
}

impl<T> Default for Mixed<T> {
    /// Nothing of nothing.
    fn default() -> Self {
        Self { rows: Vec::new(), parts: Vec::new() }
    }
}

impl<T> Mixed<T> {
    /// Bad rows of all sources.
    #[must_use]
    pub fn skipped_rows(&self) -> u64 {
        self.parts.iter().map(|part| part.skipped.total()).sum()
    }
}

/// What was read of one source.
#[derive(Debug, Clone, PartialEq)]
pub struct PartRead {
    /// The source as the recipe has it.
    pub source: String,
    /// Good rows that it has.
    pub rows: usize,
    /// Rows in the mixture.
    pub taken: usize,
    /// Bad rows.
    pub skipped: Skipped,
}

/// A source of a mixture, understood.
#[derive(Debug, Clone, PartialEq)]
struct NamedSource {
    text: String,
    schema: Schema,
    proportion: Proportion,
    path: PathBuf,
    /// The label of prompts that have none.
    label: Option<String>,
    /// What the ids of rows without one start with.
    prefix: String,
}

/// Reads prompts. Those of data sets without ids are called `name:row` (a second source of that
/// name `name:2:row`). A row that a proportion above 1 takes twice keeps its id.
///
/// # Errors
/// What is wrong with a source's text, file or rows. An id that two rows share is a bad row.
pub fn read_prompts(
    sources: &[String],
    settings: MixSettings<'_>,
) -> Result<Mixed<Prompt>, DataError> {
    let mut ids: HashMap<String, Place> = HashMap::new();
    mix(sources, settings, Use::Prompts, |source, row, fields| {
        let id = source.id(row);
        let fallback = Fallback { id: &id, label: source.label.as_deref() };
        let prompt = source.schema.prompt(fields, fallback)?;
        if let Some(first) = ids.get(prompt.id.as_str()) {
            return Err(RowFault::new(
                "an id that stands twice",
                format!("id {:?} stands in {first} too", prompt.id.as_str()),
            ));
        }
        ids.insert(prompt.id.to_string(), row.place.clone());
        Ok(prompt)
    })
}

/// Reads conversations to learn.
///
/// # Errors
/// What is wrong with a source's text, file or rows.
pub fn read_supervised(
    sources: &[String],
    settings: MixSettings<'_>,
) -> Result<Mixed<NamedRow<SupervisedRow>>, DataError> {
    mix(sources, settings, Use::Supervised, |source, row, fields| {
        Ok(NamedRow { id: source.id(row), row: source.schema.supervised(fields)? })
    })
}

/// Reads pairs of answers. A pair that lacks what is needed is a bad row.
///
/// # Errors
/// What is wrong with a source's text, file or rows.
pub fn read_preferences(
    sources: &[String],
    needs: PairNeeds,
    settings: MixSettings<'_>,
) -> Result<Mixed<NamedRow<PreferenceRow>>, DataError> {
    mix(sources, settings, Use::Preferences, |source, row, fields| {
        let pair = source.schema.preference(fields, needs.by)?;
        needs.check(&pair)?;
        Ok(NamedRow { id: source.id(row), row: pair })
    })
}

/// Reads pairs of pairs of answers.
///
/// # Errors
/// What is wrong with a source's text, file or rows.
pub fn read_pops(
    sources: &[String],
    settings: MixSettings<'_>,
) -> Result<Mixed<NamedRow<PopRow>>, DataError> {
    mix(sources, settings, Use::Pops, |source, row, fields| {
        Ok(NamedRow { id: source.id(row), row: source.schema.pop(fields)? })
    })
}

fn mix<T: Clone>(
    sources: &[String],
    settings: MixSettings<'_>,
    wanted: Use,
    mut read: impl FnMut(&NamedSource, &Row, &Value) -> Result<T, RowFault>,
) -> Result<Mixed<T>, DataError> {
    let mut names: HashMap<String, u32> = HashMap::new();
    let parsed = sources.iter().map(|text| NamedSource::parse(text, wanted, settings, &mut names));
    let sources = parsed.collect::<Result<Vec<_>, _>>()?;
    let mut tables: Vec<Vec<T>> = Vec::new();
    let mut parts = Vec::new();
    for source in &sources {
        let file = Source::at(&source.path)?;
        let loaded = file.load(settings.on_bad_row, |row, fields| read(source, row, fields))?;
        parts.push(PartRead {
            source: source.text.clone(),
            rows: loaded.rows.len(),
            taken: 0,
            skipped: loaded.skipped,
        });
        tables.push(loaded.rows);
    }
    let sizes = sources.iter().zip(&tables).map(|(source, table)| Part {
        // A data set may stand there twice, from two files.
        name: source.text.clone(),
        size: table.len(),
        proportion: source.proportion,
    });
    let chosen = merge(&sizes.collect::<Vec<_>>(), settings.seed)?;
    let mut rows = Vec::new();
    for ((table, indices), part) in tables.into_iter().zip(&chosen).zip(&mut parts) {
        part.taken = indices.len();
        take(table, indices, &mut rows);
    }
    if rows.is_empty() {
        let sources = sources.into_iter().map(|source| source.text).collect();
        return Err(DataError::NothingTaken { sources });
    }
    Ok(Mixed { rows, parts })
}

/// Appends the rows at `indices`; what is taken once is moved.
fn take<T: Clone>(table: Vec<T>, indices: &[usize], rows: &mut Vec<T>) {
    let mut left = vec![0_u32; table.len()];
    indices.iter().for_each(|index| left[*index] += 1);
    let mut table: Vec<Option<T>> = table.into_iter().map(Some).collect();
    rows.extend(indices.iter().filter_map(|index| {
        left[*index] -= 1;
        if left[*index] == 0 { table[*index].take() } else { table[*index].clone() }
    }));
}

impl NamedSource {
    fn id(&self, row: &Row) -> String {
        let (At::Line(number) | At::Row(number)) = row.place.at;
        format!("{}:{number}", self.prefix)
    }

    /// `names` counts the sources of each name.
    fn parse(
        text: &str,
        wanted: Use,
        settings: MixSettings<'_>,
        names: &mut HashMap<String, u32>,
    ) -> Result<Self, DataError> {
        let (name, schema, spec) = if text.contains(':') {
            let spec: DatasetSpec = text.parse()?;
            let schema = named(&spec.name, wanted)?;
            if spec.path.is_none() {
                return Err(DataError::NoPath { name: spec.name });
            }
            (spec.name.clone(), schema, spec)
        } else {
            bare(text, wanted, settings)?
        };
        let home = settings.home.unwrap_or(Path::new("~"));
        let path = settings.base_dir.join(spec.path_from(home).unwrap_or_default());
        let label = settings.labels.get(&name).map(String::as_str).or(schema.own_label());
        let count = names.entry(name.clone()).or_default();
        *count += 1;
        Ok(Self {
            text: text.to_owned(),
            schema,
            proportion: spec.proportion,
            path,
            label: label.map(str::to_owned),
            prefix: if *count == 1 { name } else { format!("{name}:{count}") },
        })
    }
}

/// A path alone, with the use's own form of rows; it is called by its file.
fn bare(
    text: &str,
    wanted: Use,
    settings: MixSettings<'_>,
) -> Result<(String, Schema, DatasetSpec), DataError> {
    let path = Path::new(text);
    if Schema::named(text).is_some() && !settings.base_dir.join(path).exists() {
        return Err(DataError::NoPath { name: text.to_owned() });
    }
    let schema = match wanted {
        Use::Prompts => Schema::Prompts,
        Use::Supervised => Schema::Supervised,
        Use::Preferences => Schema::Preferences,
        Use::Pops => Schema::Pop,
    };
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (proportion, path) = (Proportion::default(), Some(text.to_owned()));
    Ok((name.clone(), schema, DatasetSpec { name, proportion, path }))
}

/// The schema of a name, if its rows give what is wanted.
fn named(name: &str, wanted: Use) -> Result<Schema, DataError> {
    let name = name.to_owned();
    let Some(schema) = Schema::named(&name) else { return Err(DataError::UnknownName { name }) };
    if schema.uses().contains(&wanted) {
        return Ok(schema);
    }
    let given: Vec<&str> = schema.uses().iter().map(|given| given.as_str()).collect();
    Err(DataError::WrongUse { name, wanted: wanted.as_str(), given: given.join(" and ") })
}
