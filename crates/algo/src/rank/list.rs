//! Reads a recommendation list, one `title (year)` a line, from a response.

use serde_json::Value;

use super::characters::{digit, is_space, strip};
use super::film::Film;
use super::text::{collapse_spaces, without_format, without_quotes};
use super::title::clean_title;
use crate::AlgoError;

/// What the parser makes of `<solution>` tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Solution {
    /// Only the text of the first closed `<solution>...</solution>` counts; without one, all of it
    /// (Safe-Rank-GRPO).
    #[default]
    First,
    /// Tags are text like any other (Rank-GRPO).
    CompatIgnored,
}

/// The items of a response, in order.
///
/// A line is stripped of spaces, marks, list numbers and quotes; it counts if it then starts with
/// `title (YYYY)`, whatever follows; the title is cleaned by [`clean_title`]. Other lines are left
/// out, so an item's rank is its place among the items, not its line. Titles may come out empty.
/// The year's four digits may be of any script. Time is linear in the text.
///
/// Source: Safe-Rank-GRPO `process_rec_raw`; its two forms are the variants of [`Solution`].
#[must_use]
pub fn parse_list(text: &str, solution: Solution) -> Vec<Film> {
    let text = match solution {
        Solution::First => first_solution(text).unwrap_or(text),
        Solution::CompatIgnored => text,
    };
    text.split('\n').filter_map(item).collect()
}

/// [`parse_list`] of a row's field.
///
/// # Errors
/// [`AlgoError::WrongType`] when it is no text.
pub fn parse_list_json(value: &Value, solution: Solution) -> Result<Vec<Film>, AlgoError> {
    let text = value.as_str().ok_or_else(|| AlgoError::WrongType {
        function: "parse_list_json",
        argument: "value",
        expected: "text",
        got: value.to_string(),
    })?;
    Ok(parse_list(text, solution))
}

fn first_solution(text: &str) -> Option<&str> {
    let (_, body) = text.split_once("<solution>")?;
    Some(body.split_once("</solution>")?.0)
}

fn item(line: &str) -> Option<Film> {
    let line = collapse_spaces(line);
    let (title, year) = split_year(without_quotes(without_format(&line)))?;
    Some(Film::new(clean_title(title), year))
}

/// The text before the first `(YYYY)` that follows a character and white space, and the year.
fn split_year(line: &str) -> Option<(&str, i64)> {
    line.match_indices('(').find_map(|(at, _)| {
        let year = year_in_brackets(&line[at..])?;
        let title = line[..at].trim_end_matches(is_space);
        let first = line.chars().next().map_or(0, char::len_utf8);
        let end = title.len().max(first);
        (end < at).then(|| (&line[..end], year))
    })
}

/// The year, if the text starts with `(YYYY)`.
fn year_in_brackets(text: &str) -> Option<i64> {
    let mut chars = text.strip_prefix('(')?.chars();
    let mut year = 0;
    for _ in 0..4 {
        year = year * 10 + i64::from(digit(chars.next()?)?);
    }
    (chars.next()? == ')').then_some(year)
}

/// A title and its year, if the text is `title (YYYY)` from start to end; else all of it as the
/// title.
///
/// Source: Safe-Rank-GRPO `SafetyFilter.parse_movie_string`.
#[must_use]
pub fn parse_film(text: &str) -> (&str, Option<i64>) {
    let text = strip(text);
    let split = || {
        let at = text.strip_suffix(')')?.rfind('(')?;
        let title = text[..at].trim_end_matches(is_space);
        let year = year_in_brackets(&text[at..])?;
        let whole = text[at..].chars().count() == "(YYYY)".len();
        (whole && !title.is_empty() && !title.contains('\n')).then_some((title, Some(year)))
    };
    split().unwrap_or((text, None))
}
