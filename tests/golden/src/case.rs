//! Golden files as they lie on disk.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::order::Order;

/// One golden file: all cases of one reference function.
#[derive(Debug)]
pub struct GoldenFile {
    /// `area/name`, as the file's path says it.
    pub key: String,
    /// Its tolerance.
    pub tolerance: Tolerance,
    /// Its cases.
    pub cases: Vec<Case>,
}

/// `|got - expected| <= atol + rtol |expected|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Relative part.
    pub rtol: f64,
    /// Absolute part.
    pub atol: f64,
}

/// One call of the reference function.
#[derive(Debug)]
pub struct Case {
    /// Its name within the file (not unique).
    pub name: String,
    /// Parameters.
    pub params: Fields,
    /// Arguments.
    pub inputs: Fields,
    /// The order of the arguments' keys.
    pub order: Order,
    /// What came of it.
    pub outcome: Outcome,
}

/// What the reference did.
#[derive(Debug)]
pub enum Outcome {
    /// It returned this.
    Returned(Value),
    /// It raised an exception of this type.
    Raised(String),
}

/// Why a case has no result of ours.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Our function refused the arguments with this error.
    #[error("refused: {0}")]
    Refused(String),
    /// The golden file does not hold what the consumer needs.
    #[error("the golden file: {0}")]
    Malformed(String),
}

impl Failure {
    /// Our function refused: the variant and its figures.
    pub fn refused(error: impl std::fmt::Debug) -> Self {
        Self::Refused(format!("{error:?}"))
    }
}

/// A JSON object with typed access; errors name the key.
#[derive(Debug, Clone, Default)]
pub struct Fields(pub Value);

impl GoldenFile {
    /// Every `<root>/<area>/<name>.json`, sorted.
    ///
    /// # Errors
    /// [`Failure::Malformed`] names the file or folder.
    pub fn all(root: &Path) -> Result<Vec<Self>, Failure> {
        let mut files = Vec::new();
        for area in entries(root)?.into_iter().filter(|path| path.is_dir()) {
            for file in entries(&area)? {
                if file.extension().is_some_and(|e| e == "json") {
                    files.push(Self::read(&file)?);
                }
            }
        }
        Ok(files)
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let malformed = |what: &dyn std::fmt::Display| {
            Failure::Malformed(format!("{}: {what}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|e| malformed(&e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| malformed(&e))?;
        let fields = Fields(json);
        let part = |p: Option<&std::ffi::OsStr>| {
            p.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let area = part(path.parent().and_then(Path::file_name));
        let key = format!("{area}/{}", part(path.file_stem()));
        let tolerance = Tolerance { rtol: fields.number("rtol")?, atol: fields.number("atol")? };
        let cases = match fields.get("cases")? {
            Value::Array(cases) => {
                let order: Order = serde_json::from_str(&text).map_err(|e| malformed(&e))?;
                let order = order.of("cases");
                let read = |(at, case)| Case::read(case, order.at(at).of("inputs"));
                cases.iter().enumerate().map(read).collect::<Result<_, _>>()?
            }
            _ => return Err(malformed(&"cases is not a list")),
        };
        Ok(Self { key, tolerance, cases })
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let malformed = |e: std::io::Error| Failure::Malformed(format!("{}: {e}", folder.display()));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(malformed)? {
        paths.push(entry.map_err(malformed)?.path());
    }
    paths.sort();
    Ok(paths)
}

impl Case {
    fn read(json: &Value, order: Order) -> Result<Self, Failure> {
        let fields = Fields(json.clone());
        let outcome = match (json.get("error"), json.get("expected")) {
            (Some(error), _) => Outcome::Raised(error.as_str().unwrap_or_default().to_owned()),
            (None, Some(expected)) => Outcome::Returned(expected.clone()),
            (None, None) => return Err(Failure::Malformed("a case without expected".into())),
        };
        Ok(Self {
            name: fields.text("name")?.to_owned(),
            params: Fields(fields.get("params")?.clone()),
            inputs: Fields(fields.get("inputs")?.clone()),
            order,
            outcome,
        })
    }
}

impl Fields {
    /// The value of a key.
    ///
    /// # Errors
    /// [`Failure::Malformed`], here and below: the key is missing or of another type.
    pub fn get(&self, key: &str) -> Result<&Value, Failure> {
        self.0.get(key).ok_or_else(|| Failure::Malformed(format!("no {key:?}")))
    }

    /// Is there a value that is not null?
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|v| !v.is_null())
    }

    /// A string.
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn text(&self, key: &str) -> Result<&str, Failure> {
        self.get(key)?.as_str().ok_or_else(|| wrong(key, "a string"))
    }

    /// A number (also `"NaN"`, `"inf"`, `"-inf"`).
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn number(&self, key: &str) -> Result<f64, Failure> {
        decode(self.get(key)?).ok_or_else(|| wrong(key, "a number"))
    }

    /// A number, or `default` where the key is missing or null.
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64, Failure> {
        if self.has(key) { self.number(key) } else { Ok(default) }
    }

    /// A count.
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn count(&self, key: &str) -> Result<usize, Failure> {
        let whole = self.get(key)?.as_u64().ok_or_else(|| wrong(key, "a whole number"))?;
        Ok(whole as usize)
    }

    /// True or false.
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn flag(&self, key: &str) -> Result<bool, Failure> {
        self.get(key)?.as_bool().ok_or_else(|| wrong(key, "true or false"))
    }

    /// A list.
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn list(&self, key: &str) -> Result<&[Value], Failure> {
        self.get(key)?.as_array().map(Vec::as_slice).ok_or_else(|| wrong(key, "a list"))
    }

    /// A list of strings.
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn texts(&self, key: &str) -> Result<Vec<&str>, Failure> {
        self.list(key)?.iter().map(|v| v.as_str().ok_or_else(|| wrong(key, "strings"))).collect()
    }

    /// A list of numbers; true and false are 1 and 0.
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn vector(&self, key: &str) -> Result<Vec<f64>, Failure> {
        let row = self.list(key)?;
        row.iter().map(|v| decode(v).ok_or_else(|| wrong(key, "numbers"))).collect()
    }

    /// A list of rows of numbers.
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn matrix(&self, key: &str) -> Result<Vec<Vec<f64>>, Failure> {
        let rows = self.list(key)?.iter();
        rows.map(|row| Fields(serde_json::json!({ key: row })).vector(key)).collect()
    }

    /// A matrix of flags (non-zero means true).
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn mask(&self, key: &str) -> Result<Vec<Vec<bool>>, Failure> {
        let rows = self.matrix(key)?;
        Ok(rows.into_iter().map(|row| row.into_iter().map(|m| m != 0.0).collect()).collect())
    }

    /// All numbers of a nested list of any depth, in order, and its shape (that of the first
    /// entries).
    ///
    /// # Errors
    /// See [`Fields::get`].
    pub fn flat(&self, key: &str) -> Result<(Vec<f64>, Vec<i64>), Failure> {
        let (mut numbers, mut shape) = (Vec::new(), Vec::new());
        let mut inner = self.get(key)?;
        while let Value::Array(items) = inner {
            shape.push(items.len() as i64);
            let Some(first) = items.first() else { break };
            inner = first;
        }
        gather(self.get(key)?, &mut numbers).ok_or_else(|| wrong(key, "numbers"))?;
        Ok((numbers, shape))
    }
}

fn wrong(key: &str, expected: &str) -> Failure {
    Failure::Malformed(format!("{key:?} is not {expected}"))
}

fn gather(value: &Value, into: &mut Vec<f64>) -> Option<()> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| gather(item, into)),
        other => {
            into.push(decode(other)?);
            Some(())
        }
    }
}

/// A number as golden files write it.
pub(crate) fn decode(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(flag) => Some(f64::from(*flag)),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "inf" => Some(f64::INFINITY),
            "-inf" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// A number as golden files write it.
#[must_use]
pub fn encode(number: f64) -> Value {
    if number.is_nan() {
        "NaN".into()
    } else if number.is_infinite() {
        if number > 0.0 { "inf".into() } else { "-inf".into() }
    } else {
        number.into()
    }
}

/// A list of numbers as golden files write them.
#[must_use]
pub fn encode_all(numbers: &[f64]) -> Value {
    Value::Array(numbers.iter().map(|n| encode(*n)).collect())
}
