//! `{"rule": "format"}`: the response thinks, then answers.

use plumb_domain::text::is_blank;
use serde::{Deserialize, Serialize};

use super::{Answer, RuleError, check};

/// 1 when the response has an opening tag, at least one character, the closing tag, and then an
/// answer that is not blank; else 0. Text before the block is allowed.
///
/// Source: SafeWork-R1 `format_reward_fn`, the pattern `.*<think>.+?</think>\s*\S+`. There it is
/// applied to prompt and response together; here to the response alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    /// Opening tag. Default `<think>`.
    #[serde(default = "open")]
    pub open: String,
    /// Closing tag. Default `</think>`.
    #[serde(default = "close")]
    pub close: String,
    /// Instead, the first block (empty or not) must close before the first `\boxed{...}`. Default
    /// false. Source: SafeWork-R1 `geo3k_format_reward_fn`, `gsm8k_format_reward_fn`.
    #[serde(default)]
    pub boxed: bool,
}

impl Default for Format {
    fn default() -> Self {
        Self { open: open(), close: close(), boxed: false }
    }
}

fn open() -> String {
    "<think>".to_owned()
}

fn close() -> String {
    "</think>".to_owned()
}

impl Format {
    pub(super) fn validate(&self) -> Result<(), RuleError> {
        check("format", "open", "\"\"", !self.open.is_empty(), "a tag")?;
        check("format", "close", "\"\"", !self.close.is_empty(), "a tag")
    }

    pub(super) fn score(&self, answer: &Answer<'_>) -> f64 {
        f64::from(self.holds(answer.response))
    }

    fn holds(&self, response: &str) -> bool {
        let Some((_, block)) = response.split_once(self.open.as_str()) else { return false };
        if self.boxed {
            let Some(end) = block.find(self.close.as_str()) else { return false };
            let first_box = |text: &str| {
                let (_, inner) = text.split_once("\\boxed{")?;
                inner.contains('}').then_some(())
            };
            let rest = &block[end + self.close.len()..];
            let before = &response[..response.len() - rest.len()];
            return first_box(rest).is_some() && !before.contains("\\boxed{");
        }
        // The block holds at least one character, so a closing tag at its very start is content.
        let Some(first) = block.chars().next() else { return false };
        let Some((_, rest)) = block[first.len_utf8()..].split_once(self.close.as_str()) else {
            return false;
        };
        rest.contains(|c| !is_blank(c))
    }
}
