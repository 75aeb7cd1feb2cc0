//! Reading a recipe: text, `--set` overrides, unknown keys.

use std::path::Path;
use std::str::FromStr;

use toml::{Table, Value};

use crate::{ConfigError, Recipe, document};

/// One `--set a.b=c`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// Key with its tables; an index counts into an array (`stage.4.samples_per_prompt`).
    pub path: Vec<String>,
    /// The value, as TOML; what is not TOML is a string.
    pub value: Value,
}

impl FromStr for Override {
    type Err = ConfigError;

    fn from_str(given: &str) -> Result<Self, ConfigError> {
        let fail =
            |problem: &str| ConfigError::Override { given: given.into(), problem: problem.into() };
        let (path, text) = given.split_once('=').ok_or_else(|| fail("there is no `=`"))?;
        let path: Vec<String> = path.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(fail("the key has an empty part"));
        }
        let text = text.trim();
        let value = format!("value = {text}")
            .parse::<Table>()
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_owned()));
        Ok(Self { path, value })
    }
}

impl Override {
    fn apply(&self, recipe: &mut Table) -> Result<(), ConfigError> {
        let fail = |problem: String| ConfigError::Override { given: self.path.join("."), problem };
        let Some((last, tables)) = self.path.split_last() else { return Ok(()) };
        let mut place = recipe;
        let mut walked: Vec<&str> = Vec::new();
        let mut parts = tables.iter();
        while let Some(part) = parts.next() {
            walked.push(part);
            let next = place.entry(part.clone()).or_insert_with(|| Value::Table(Table::new()));
            place = match next {
                Value::Table(table) => table,
                Value::Array(items) => {
                    let index = parts.next().map(String::as_str).unwrap_or_default();
                    let count = items.len();
                    index
                        .parse::<usize>()
                        .ok()
                        .and_then(|i| items.get_mut(i))
                        .and_then(Value::as_table_mut)
                        .ok_or_else(|| {
                            fail(format!(
                                "`{}` has {count} entries; `{index}` is not one of 0 to {}",
                                walked.join("."),
                                count.saturating_sub(1)
                            ))
                        })?
                }
                _ => return Err(fail(format!("`{}` is not a table", walked.join(".")))),
            };
        }
        place.insert(last.clone(), self.value.clone());
        Ok(())
    }
}

impl Recipe {
    /// Reads a recipe file and applies overrides in order.
    ///
    /// # Errors
    /// [`ConfigError`]: the file, the key, the value, and what would be right.
    pub fn read(path: &Path, overrides: &[Override]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::from_toml(&text, path, overrides)
    }

    /// Parses and validates recipe text; `path` stands in errors.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn from_toml(text: &str, path: &Path, overrides: &[Override]) -> Result<Self, ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string(),
        };
        let mut table: Table = text.parse().map_err(syntax)?;
        for over in overrides {
            over.apply(&mut table)?;
        }
        name_rules(&mut table, path)?;
        let recipe: Self =
            table.clone().try_into().map_err(|error| value_error(&error, &table, path))?;
        recipe.check(path)?;
        Ok(recipe)
    }

    /// The recipe as TOML, overrides applied and defaults written out.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when a value has no TOML form (a number above 2^63).
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|error| ConfigError::Value {
            path: self.name.clone().into(),
            message: error.to_string(),
        })
    }
}

/// Turns serde's words for an unknown field into the key's full path and its nearest neighbour.
fn value_error(error: &toml::de::Error, table: &Table, path: &Path) -> ConfigError {
    let message = error.message();
    let quoted: Vec<String> = message.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    match quoted.split_first() {
        Some((field, known)) if message.starts_with("unknown field") => ConfigError::UnknownKey {
            path: path.to_owned(),
            key: locate(table, field, known, stated_place(&error.to_string())),
            nearest: nearest(field, known),
            known: known.to_vec(),
        },
        _ => ConfigError::Value {
            path: path.to_owned(),
            message: error.to_string().trim().replace('\n', " "),
        },
    }
}

/// Puts `[rules.NAME]` where `rule = "NAME"` stands: in components, stages and measures.
fn name_rules(recipe: &mut Table, path: &Path) -> Result<(), ConfigError> {
    let rules = recipe.get("rules").and_then(Value::as_table).cloned().unwrap_or_default();
    let put = |place: &mut Table| match place.get("rule") {
        Some(Value::String(name)) => match rules.get(name) {
            Some(rule) => {
                place.insert("rule".to_owned(), rule.clone());
                Ok(())
            }
            None => {
                let known: Vec<&str> = rules.keys().map(String::as_str).collect();
                Err(ConfigError::Value {
                    path: path.to_owned(),
                    message: format!(
                        "rule = {name:?} names no [rules.{name}]; there are: {}",
                        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                    ),
                })
            }
        },
        _ => Ok(()),
    };
    fn tables(value: Option<&mut Value>) -> impl Iterator<Item = &mut Table> {
        value.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_table_mut)
    }
    if let Some(reward) = recipe.get_mut("reward").and_then(Value::as_table_mut) {
        tables(reward.get_mut("component")).try_for_each(put)?;
    }
    for stage in tables(recipe.get_mut("stage")) {
        put(stage)?;
        tables(stage.get_mut("measure")).try_for_each(put)?;
    }
    Ok(())
}

/// The table that the error says it is in, as far as serde followed it ("in `groups.policy`").
fn stated_place(error: &str) -> &str {
    error.lines().find_map(|l| l.strip_prefix("in `")?.strip_suffix('`')).unwrap_or_default()
}

/// The full path of `field`: below `place`, where it stands among the fewest other strangers.
fn locate(table: &Table, field: &str, known: &[String], place: &str) -> String {
    fn walk(
        value: &Value,
        at: &str,
        field: &str,
        found: &mut Vec<(usize, String)>,
        known: &[String],
    ) {
        let join = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
        match value {
            Value::Table(table) => {
                if table.contains_key(field) {
                    let strangers = table.keys().filter(|key| !known.contains(key)).count();
                    found.push((strangers, join(field)));
                }
                for (key, inner) in table {
                    walk(inner, &join(key), field, found, known);
                }
            }
            Value::Array(items) => {
                for (index, inner) in items.iter().enumerate() {
                    walk(inner, &format!("{at}[{index}]"), field, found, known);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(&Value::Table(table.clone()), "", field, &mut found, known);
    found.sort_by_key(|(strangers, path)| (!path.starts_with(place), *strangers));
    found.into_iter().next().map_or_else(|| field.to_owned(), |(_, path)| path)
}

/// The valid key that is fewest edits away: among the neighbours first, then in the whole schema.
fn nearest(field: &str, known: &[String]) -> Option<String> {
    let limit = (field.chars().count() / 3).max(2);
    let closest = |keys: &mut dyn Iterator<Item = (String, String)>| {
        keys.map(|(name, full)| (edits(field, &name), full))
            .filter(|(distance, _)| *distance <= limit)
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, full)| full)
    };
    closest(&mut known.iter().map(|key| (key.clone(), key.clone())))
        .or_else(|| closest(&mut document::keys().into_iter()))
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Dtype;
    use crate::validate::tests::MINIMAL;

    fn read(text: &str, set: &[&str]) -> Result<Recipe, ConfigError> {
        let overrides: Vec<Override> = set.iter().map(|s| s.parse().unwrap()).collect();
        Recipe::from_toml(text, Path::new("r.toml"), &overrides)
    }

    #[test]
    fn an_unknown_key_is_named_with_its_tables_and_its_neighbour() {
        let text = MINIMAL.replace("steps = 2", "steps = 2\nprompt_per_step = 2");
        let error = read(&text, &[]).unwrap_err().to_string();
        assert_eq!(
            error,
            "recipe r.toml: unknown key `algorithm.prompt_per_step`; did you mean \
             `prompts_per_step`?"
        );
        let error = read(MINIMAL, &["algorithm.kl.coeff=1"]).unwrap_err().to_string();
        assert!(error.contains("`algorithm.kl.coeff`; did you mean `coef`?"), "{error}");
    }

    #[test]
    fn a_key_in_the_wrong_table_is_told_where_it_belongs() {
        let error = read(MINIMAL, &["groups.policy.learning_rate=1.0"]).unwrap_err().to_string();
        assert!(error.contains("`groups.policy.learning_rate`"), "{error}");
        assert!(error.contains("optimizer.learning_rate"), "{error}");
    }

    #[test]
    fn an_unknown_key_of_a_stage_is_named() {
        let error = read(MINIMAL, &["stage.0.free_disc_mib=1"]).unwrap_err().to_string();
        assert!(error.contains("`stage[0].free_disc_mib`"), "{error}");
        assert!(error.contains("`free_disk_mib`"), "{error}");
    }

    #[test]
    fn overrides_reach_tables_arrays_and_strings() {
        let recipe = read(
            MINIMAL,
            &["seed=7", "model.dtype=bf16", "stage.0.free_disk_mib=5", "groups.rollout.threads=2"],
        )
        .unwrap();
        assert_eq!((recipe.seed, recipe.model.dtype), (7, Dtype::Bf16));
        assert_eq!(recipe.groups.rollout.threads, 2);
        let error = read(MINIMAL, &["stage.9.name=x"]).unwrap_err().to_string();
        assert!(error.contains("`9` is not one of 0 to"), "{error}");
        assert!("seed".parse::<Override>().is_err());
    }

    #[test]
    fn a_named_rule_stands_for_its_table() {
        let set = ["reward.component.0.rule=short", "rules.short={ rule = \"length\", max = 3 }"];
        let recipe = read(MINIMAL, &set).unwrap();
        let rule = recipe.reward.component[0].rule.as_ref().unwrap();
        assert_eq!(rule["max"].as_integer(), Some(3));
        let error = read(MINIMAL, &set[..1]).unwrap_err().to_string();
        assert!(error.contains("names no [rules.short]; there are: none"), "{error}");
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let recipe = read(MINIMAL, &[]).unwrap();
        assert_eq!(read(&recipe.to_toml().unwrap(), &[]).unwrap(), recipe);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_an_error_that_shows_where() {
        let error = read(MINIMAL, &["model.dtype=fp64"]).unwrap_err().to_string();
        assert!(error.contains("fp64") && error.contains("dtype"), "{error}");
        assert!(read("name = ", &[]).unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn edit_distance_by_hand() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }
}
