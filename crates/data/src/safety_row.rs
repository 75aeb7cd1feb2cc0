//! PKU-SafeRLHF as prompts for a reward model, and its split into training and validation.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::prompt_row::RowError;

/// Subsets of PKU-SafeRLHF that are read, in this order; a missing file is passed over. Files:
/// `data/<subset>/train.jsonl` and `test.jsonl`.
pub const SUBSETS: [&str; 3] = ["Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B"];

/// A row as verl's trainer reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SafetyRow {
    /// `PKU-SafeRLHF`.
    pub data_source: String,
    /// One message, the user's.
    pub prompt: Vec<UserMessage>,
    /// `safety`.
    pub ability: String,
    /// How the response is scored: by a model, without a reference answer.
    pub reward_model: ScoredBy,
    /// Where the row comes from, and what people said of its two responses.
    pub extra_info: ExtraInfo,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserMessage {
    /// `user`.
    pub role: String,
    /// The prompt.
    pub content: String,
}

/// How a response is scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoredBy {
    /// `model`.
    pub style: String,
    /// None.
    pub ground_truth: Option<String>,
}

/// Where a row comes from, and what people said of the two responses that the data set has. Labels
/// that the row lacks are null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExtraInfo {
    /// The split that it was read from. A row that [`split`] moves to validation keeps it.
    pub split: String,
    /// Its place within that split, from 0, before any split and shuffle.
    pub index: usize,
    /// As in the data set.
    pub is_response_0_safe: Value,
    /// As in the data set.
    pub is_response_1_safe: Value,
    /// As in the data set.
    pub safer_response_id: Value,
    /// As in the data set.
    pub better_response_id: Value,
}

/// Rows of one split, of all subsets one after another.
///
/// Source: UPS-RM `preprocess_pku_saferlhf.convert_to_verl_format`.
///
/// # Errors
/// [`RowError::Missing`] for a row without a prompt, [`RowError::NotText`] for one whose prompt is
/// no text.
pub fn safety_rows(examples: &[Value], split: &str) -> Result<Vec<SafetyRow>, RowError> {
    examples.iter().enumerate().map(|(row, example)| safety_row(example, split, row)).collect()
}

fn safety_row(example: &Value, split: &str, row: usize) -> Result<SafetyRow, RowError> {
    let label = |key: &str| example.get(key).cloned().unwrap_or_default();
    let content = match example.get("prompt") {
        None => return Err(RowError::Missing { row, key: "prompt" }),
        Some(Value::String(text)) => text.clone(),
        Some(other) => return Err(RowError::NotText(other.to_string())),
    };
    Ok(SafetyRow {
        data_source: "PKU-SafeRLHF".to_owned(),
        prompt: vec![UserMessage { role: "user".to_owned(), content }],
        ability: "safety".to_owned(),
        reward_model: ScoredBy { style: "model".to_owned(), ground_truth: None },
        extra_info: ExtraInfo {
            split: split.to_owned(),
            index: row,
            is_response_0_safe: label("is_response_0_safe"),
            is_response_1_safe: label("is_response_1_safe"),
            safer_response_id: label("safer_response_id"),
            better_response_id: label("better_response_id"),
        },
    })
}

/// How rows are divided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Split {
    /// Share of the training rows that stay where there are no test rows, from 0 to 1. Default 0.9.
    pub train_ratio: f64,
    /// Shuffle training and validation rows, each within itself. Default no.
    pub shuffle_seed: Option<u64>,
}

impl Default for Split {
    fn default() -> Self {
        Self { train_ratio: 0.9, shuffle_seed: None }
    }
}

/// Rows that cannot be divided.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SplitError {
    /// A share that is none.
    #[error("train_ratio = {0}, expected a number from 0 to 1")]
    Ratio(f64),
    /// Nothing to train on.
    #[error(
        "no training rows are left: {train} training rows, {test} test rows, train_ratio {ratio}"
    )]
    NoTrainingRows {
        /// Training rows given.
        train: usize,
        /// Test rows given.
        test: usize,
        /// The share that was to stay.
        ratio: f64,
    },
}

impl Split {
    /// Training and validation rows. Validation is `test`; where that is empty, the first
    /// `floor(train_ratio * n)` rows stay for training and the rest become validation.
    ///
    /// Rows are shuffled after they are divided, so which rows are on which side does not hang on
    /// the seed. The reference shuffles with Python's generator; the order here is another one.
    ///
    /// Source: UPS-RM `preprocess_pku_saferlhf.process_pku_saferlhf`.
    ///
    /// # Errors
    /// [`SplitError`].
    pub fn divide<T>(
        &self,
        mut train: Vec<T>,
        mut test: Vec<T>,
    ) -> Result<(Vec<T>, Vec<T>), SplitError> {
        if !(0.0..=1.0).contains(&self.train_ratio) {
            return Err(SplitError::Ratio(self.train_ratio));
        }
        let given = (train.len(), test.len());
        if test.is_empty() {
            let stay = (train.len() as f64 * self.train_ratio) as usize;
            test = train.split_off(stay);
        }
        if train.is_empty() {
            let ratio = self.train_ratio;
            return Err(SplitError::NoTrainingRows { train: given.0, test: given.1, ratio });
        }
        if let Some(seed) = self.shuffle_seed {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            train.shuffle(&mut random);
            test.shuffle(&mut random);
        }
        Ok((train, test))
    }
}
