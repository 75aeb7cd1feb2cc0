//! The format of a turn's answer: one thinking block, then one answer block.

use std::sync::LazyLock;

use regex::Regex;

use crate::pattern::python_case;

/// What the check of a response found. The response must have exactly one `<thinking>` and one
/// `<answer>` block, tags in any case, the first opening before the second. Text outside of the
/// blocks is allowed, and so is an answer within the thinking.
///
/// Source: SaFeR-Steer `_check_single_thinking_answer` (saferdy_interaction.py).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThinkingAnswer {
    /// As it should be.
    Holds,
    /// No text.
    Empty,
    /// One of the four tags is missing or repeated.
    TagCount,
    /// A block is closed before it opens.
    MissingBlock,
    /// The answer opens first.
    Order,
}

impl ThinkingAnswer {
    /// Checks a response.
    #[must_use]
    pub fn check(response: &str) -> Self {
        if response.is_empty() {
            return Self::Empty;
        }
        let tags = [&TAGS[0], &TAGS[1], &TAGS[2], &TAGS[3]];
        let [Some(thinks), Some(thought), Some(answers), Some(answered)] =
            tags.map(|tag| once(tag, response))
        else {
            return Self::TagCount;
        };
        if thought < thinks || answered < answers {
            return Self::MissingBlock;
        }
        if thinks < answers { Self::Holds } else { Self::Order }
    }

    /// 1 if the format holds, else 0.
    #[must_use]
    pub fn reward(self) -> f64 {
        f64::from(self == Self::Holds)
    }

    /// The name of the finding in the original.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "ok",
            Self::Empty => "empty",
            Self::TagCount => "tag_count_mismatch",
            Self::MissingBlock => "missing_block",
            Self::Order => "order_invalid",
        }
    }
}

/// Where the only occurrence of a tag starts.
fn once(tag: &Regex, text: &str) -> Option<usize> {
    let mut found = tag.find_iter(text);
    let first = found.next()?;
    found.next().is_none().then_some(first.start())
}

#[allow(clippy::expect_used, reason = "constant patterns, compiled in every test run")]
static TAGS: LazyLock<[Regex; 4]> = LazyLock::new(|| {
    ["<thinking>", "</thinking>", "<answer>", "</answer>"]
        .map(|tag| Regex::new(&python_case(tag)).expect("a constant pattern"))
});
