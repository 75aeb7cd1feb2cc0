//! The next question in a judge's or a tool's reply.

use std::sync::LazyLock;

use regex::Regex;

use super::JudgeError;
use crate::blank::{lines, strip};
use crate::json::{Json, first_object};
use crate::pattern::{BLANK, python_case};

/// Names under which a question may stand, in the order in which they are sought.
const NAMES: [&str; 7] = [
    "new_question",
    "optimized_question",
    "updated_question",
    "rewrite_question",
    "next_question",
    "second_question",
    "question",
];

/// The first question of a payload: of an object, the first of seven names (`new_question` ...
/// `question`) whose value is a string that is not blank; else the first found in its values, in
/// order, and so on downwards; of a list, the first found in its items. Without blanks at its ends.
///
/// Source: SaFeR-Steer `_find_question_in_payload`.
#[must_use]
pub fn question_in_payload(payload: &Json) -> Option<&str> {
    // Depth is bounded by that of `Json` text.
    match payload {
        Json::Object(fields) => NAMES
            .iter()
            .filter_map(|name| fields.get(*name)?.as_text())
            .map(strip)
            .find(|question| !question.is_empty())
            .or_else(|| fields.values().find_map(question_in_payload)),
        Json::List(items) => items.iter().find_map(question_in_payload),
        _ => None,
    }
}

/// The question in a text: that of its JSON payload; else the content of the first
/// `<new_question>` ... `<question>` block, tried name by name; else what follows `new question:`
/// (or optimized, updated, rewrite, next, second; also with a full-width colon), on one line or
/// over the line's end. `None` where all of these are blank or missing.
///
/// Source: SaFeR-Steer `_extract_new_question`, `_extract_question_from_text`.
///
/// # Errors
/// [`JudgeError::Json`] for a payload that is nested too deep or holds too long an integer.
pub fn question_in_text(text: &str) -> Result<Option<String>, JudgeError> {
    if let Some(payload) = first_object(text)?
        && let Some(question) = question_in_payload(&payload)
    {
        return Ok(Some(question.to_owned()));
    }
    let plain = PATTERNS.in_tags(text).or_else(|| PATTERNS.after_colon(text));
    Ok(plain.map(str::to_owned))
}

/// Compiled patterns of plain text.
struct Patterns {
    tags: Vec<Regex>,
    line: Regex,
    anywhere: Regex,
}

impl Patterns {
    fn in_tags<'t>(&self, text: &'t str) -> Option<&'t str> {
        self.tags.iter().find_map(|tag| group(tag, text))
    }

    fn after_colon<'t>(&self, text: &'t str) -> Option<&'t str> {
        lines(text).find_map(|line| group(&self.line, line)).or_else(|| group(&self.anywhere, text))
    }
}

/// The first match's group, if it is not blank.
fn group<'t>(pattern: &Regex, text: &'t str) -> Option<&'t str> {
    let found = pattern.captures(text)?.get(1)?;
    Some(strip(found.as_str())).filter(|content| !content.is_empty())
}

#[allow(clippy::expect_used, reason = "constant patterns, compiled in every test run")]
static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let compile = |pattern: String| Regex::new(&pattern).expect("a constant pattern");
    let tag = |name: &&str| {
        let (open, close) = (python_case(&format!("<{name}>")), python_case(&format!("</{name}>")));
        compile(format!("{open}((?s:.*?)){close}"))
    };
    let kinds = ["new", "optimized", "updated", "rewrite", "next", "second"].map(python_case);
    let heading = format!(
        "(?:{}){BLANK}+{}{BLANK}*[:\u{ff1a}]{BLANK}*",
        kinds.join("|"),
        python_case("question")
    );
    Patterns {
        tags: NAMES.iter().map(tag).collect(),
        line: compile(format!("{heading}(.*)")),
        anywhere: compile(format!("{heading}(.+)")),
    }
});
