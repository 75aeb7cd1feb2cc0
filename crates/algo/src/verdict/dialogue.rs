//! Rendered chats taken apart again: what the user asked last, and what was answered.

use std::sync::LazyLock;

use plumb_domain::text::strip;
use regex::Regex;

/// Roles with what each said last, in the order in which the roles first speak.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dialogue {
    turns: Vec<(String, String)>,
}

/// Tags that mark structure and are no roles.
const STRUCTURE: [&str; 4] = ["im_start", "im_end", "begin of sentence", "end of sentence"];

impl Dialogue {
    /// Reads a chat whose turns begin with a tag `<|role|>`; the bars may be `|` or `｜` (U+FF5C).
    /// The role is lower case without blanks around it; what it says goes to the next tag, without
    /// blanks around it. A role that speaks again overwrites what it said. Of an `assistant` that
    /// thinks (`<think>` and `</think>` both occur) only what follows the last `</think>` is kept.
    /// The tags `im_start`, `im_end`, `begin of sentence` and `end of sentence` are no roles, so a
    /// ChatML chat has no turns here.
    ///
    /// Source: SafeWork-R1 `_parse_dialog`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut dialogue = Self::default();
        let mut next = tag(text, 0);
        while let Some(here) = next {
            next = tag(text, here.end);
            let role = strip(here.name).to_lowercase();
            if STRUCTURE.contains(&role.as_str()) {
                continue;
            }
            let end = next.as_ref().map_or(text.len(), |tag| tag.start);
            let mut said = strip(&text[here.end..end]);
            if role == "assistant" && said.contains("<think>") {
                said = strip(crate::rule::text::after_thinking(said));
            }
            dialogue.say(role, said.to_owned());
        }
        dialogue
    }

    fn say(&mut self, role: String, said: String) {
        match self.turns.iter_mut().find(|(known, _)| *known == role) {
            Some((_, before)) => *before = said,
            None => self.turns.push((role, said)),
        }
    }

    /// What a role said last.
    #[must_use]
    pub fn said_by(&self, role: &str) -> Option<&str> {
        self.turns.iter().find(|(known, _)| known == role).map(|(_, said)| said.as_str())
    }

    /// Roles with what each said last.
    pub fn turns(&self) -> impl Iterator<Item = (&str, &str)> {
        self.turns.iter().map(|(role, said)| (role.as_str(), said.as_str()))
    }
}

/// `<|name|>` in a text.
struct Tag<'a> {
    start: usize,
    end: usize,
    name: &'a str,
}

/// The first tag from a byte on: `<`, a bar, the shortest name, a bar, `>`. Without a bar and `>`
/// further on there is no tag at all, so a failed search ends the parse: one pass over the text.
fn tag(text: &str, from: usize) -> Option<Tag<'_>> {
    let is_bar = |c: &char| matches!(c, '|' | '｜');
    let opening = text[from..].match_indices('<').find_map(|(at, _)| {
        let bar = text[from + at + 1..].chars().next().filter(is_bar)?;
        Some((from + at, from + at + 1 + bar.len_utf8()))
    });
    let (start, name) = opening?;
    text[name..].match_indices('>').find_map(|(at, _)| {
        let inner = &text[name..name + at];
        let bar = inner.chars().next_back().filter(is_bar)?;
        Some(Tag { start, end: name + at + 1, name: &inner[..at - bar.len_utf8()] })
    })
}

/// Image placeholders of the model families: Qwen-VL, InternVL, and the plain one.
static IMAGES: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>",
        "<img>(?:<IMG_CONTEXT>)+</img>",
        "<image>",
    ]
    .iter()
    .filter_map(|pattern| Regex::new(pattern).ok())
    .collect()
});

/// The text without image placeholders: `<|vision_start|><|image_pad|>...<|vision_end|>`,
/// `<img><IMG_CONTEXT>...</img>`, `<image>`, taken out in that order, once each.
///
/// Source: SafeWork-R1 `_clean_vision_token`.
#[must_use]
pub fn without_images(text: &str) -> String {
    IMAGES.iter().fold(text.to_owned(), |text, image| image.replace_all(&text, "").into_owned())
}
