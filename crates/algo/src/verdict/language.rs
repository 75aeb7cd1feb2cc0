//! A response thinks and answers in the language of its question.

use std::sync::LazyLock;

use plumb_domain::text::{has_chinese, is_blank, is_chinese, strip};
use regex::Regex;

use crate::AlgoError;
use crate::rule::text::after_thinking;

const START: &str = "<|im_start|>";
const END: &str = "<|im_end|>";

/// Runs of letters, digits and underscores of any script.
static WORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").ok());
/// A role and the end of its line.
static ROLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[\p{L}\p{N}_]+\n").ok());
/// English words: `A`, `I`, or at least two letters, after which digits may stand before more
/// letters.
static ENGLISH: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^(?:A|I|[a-zA-Z]{2,}(?:\d*[a-zA-Z]+)?)$").ok());

/// `ideographs / (ideographs + English words)`, 0 where there are neither.
///
/// Source: SafeWork-R1 `rule_reward_func`.
#[must_use]
pub fn chinese_share(text: &str) -> f64 {
    let ideographs = text.chars().filter(|c| is_chinese(*c)).count();
    let english = WORD.as_ref().zip(ENGLISH.as_ref()).map_or(0, |(word, english)| {
        word.find_iter(text).filter(|found| english.is_match(found.as_str())).count()
    });
    match ideographs + english {
        0 => 0.0,
        all => ideographs as f64 / all as f64,
    }
}

/// 1 where a ChatML chat's last turn thinks before it answers, and the question, the last thinking
/// block and the answer are in one language; else 0.
///
/// The last turn must match `.*<think>.+?</think>\s*\S+`. A question is Chinese when
/// [`chinese_share`] is above one half, thinking and answer when they hold any ideograph; all else
/// is English. The question is that of the last `user` turn, the answer that of the last
/// `assistant` turn after its last `</think>`.
///
/// Source: SafeWork-R1 `rule_reward_func`.
///
/// # Errors
/// [`AlgoError::Empty`] where no turn is closed by `<|im_end|>`.
pub fn format_language_reward(chat: &str) -> Result<f64, AlgoError> {
    let last = between(chat, START, END)
        .last()
        .ok_or(AlgoError::Empty { function: "format_language_reward", what: "the chat" })?;
    let (mut question, mut answer) = ("", "");
    for (role, said) in turns(chat) {
        match role {
            "user" => question = strip(said),
            "assistant" if said.contains("<think>") => answer = strip(after_thinking(said)),
            "assistant" => answer = strip(said),
            _ => {}
        }
    }
    let thinking = between(chat, "<think>", "</think>").last().unwrap_or_default();
    let chinese = chinese_share(question) > 0.5;
    let one_language = has_chinese(thinking) == chinese && has_chinese(answer) == chinese;
    Ok(f64::from(thinks_then_answers(last) && one_language))
}

/// `.*<think>.+?</think>\s*\S+`: the block holds at least one character (it may be a closing tag),
/// and something that is not blank follows a closing tag after it.
#[must_use]
pub fn thinks_then_answers(text: &str) -> bool {
    let Some((_, block)) = text.split_once("<think>") else { return false };
    let Some(first) = block.chars().next() else { return false };
    let Some((_, rest)) = block[first.len_utf8()..].split_once("</think>") else { return false };
    rest.contains(|c| !is_blank(c))
}

/// What stands between each `open` and the next `close`, from left to right without overlap.
fn between<'a>(
    text: &'a str,
    open: &'static str,
    close: &'static str,
) -> impl Iterator<Item = &'a str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (inner, after) = rest.split_once(open)?.1.split_once(close)?;
        rest = after;
        Some(inner)
    })
}

/// Turns `<|im_start|>role` newline text `<|im_end|>`, from left to right without overlap. A start
/// without a role is passed over.
fn turns(chat: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = chat;
    std::iter::from_fn(move || {
        loop {
            let (_, turn) = rest.split_once(START)?;
            rest = turn;
            let Some(role) = ROLE.as_ref()?.find(turn) else { continue };
            let (said, after) = turn[role.end()..].split_once(END)?;
            rest = after;
            return Some((role.as_str().trim_end(), said));
        }
    })
}
