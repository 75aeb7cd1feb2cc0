//! Writes a user's constraints into a conversation.

use std::collections::BTreeMap;

/// Where the sentences go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Position {
    /// Before the message.
    #[default]
    Prefix,
    /// After it, past a space.
    Suffix,
    /// Before or after it, as the draw has it.
    Inline,
}

/// Sentences that tell a trait, by trait.
pub type Templates = BTreeMap<String, Vec<String>>;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// The message with its constraints.
    pub message: String,
    /// The sentences, one a trait, as they were joined.
    pub text: String,
    /// Where they went; nothing where there were no traits.
    pub position: Option<Position>,
}

/// Puts one sentence for each trait into a message, chosen by `draw`, which is given a count and
/// returns a number below it (one that is not is taken modulo the count). A trait without templates
/// has a generic sentence. Templates end in a space where one is to follow.
///
/// Source: Safe-Rank-GRPO `ConstraintInjector.inject`; the reference draws with its language's
/// generator, here the caller brings one.
pub fn inject(
    message: &str,
    traits: &[String],
    templates: &Templates,
    position: Position,
    mut draw: impl FnMut(usize) -> usize,
) -> Injection {
    if traits.is_empty() {
        return Injection { message: message.to_owned(), text: String::new(), position: None };
    }
    let mut text = String::new();
    for name in traits {
        match templates.get(name).filter(|sentences| !sentences.is_empty()) {
            Some(sentences) => text += &sentences[draw(sentences.len()) % sentences.len()],
            None => text += &format!("Please avoid content related to {name}. "),
        }
    }
    let position = match position {
        Position::Inline if draw(2).is_multiple_of(2) => Position::Prefix,
        Position::Inline => Position::Suffix,
        fixed => fixed,
    };
    let message = match position {
        Position::Suffix => format!("{message} {text}"),
        _ => format!("{text}{message}"),
    };
    Injection { message, text, position: Some(position) }
}

/// A turn of a conversation: who speaks, and what.
pub type Turn = (String, String);

/// [`inject`]s into the first turn whose speaker is `role`. Without such a turn, or without traits,
/// nothing changes and nothing is returned.
///
/// Source: Safe-Rank-GRPO `ConstraintInjector.inject_conversation` (role `user`).
pub fn inject_into_turns(
    turns: &mut [Turn],
    role: &str,
    traits: &[String],
    templates: &Templates,
    position: Position,
    draw: impl FnMut(usize) -> usize,
) -> Option<Injection> {
    if traits.is_empty() {
        return None;
    }
    let (_, content) = turns.iter_mut().find(|(speaker, _)| speaker == role)?;
    let injection = inject(content, traits, templates, position, draw);
    content.clone_from(&injection.message);
    Some(injection)
}
