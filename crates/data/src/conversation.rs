//! safe-rlhf's text form of a conversation: prompts as the model sees them.

use crate::SampleError;

/// What every conversation starts with.
pub const PROMPT_BEGIN: &str = "BEGINNING OF CONVERSATION: ";

/// What the assistant's turn starts with; no space follows.
pub const PROMPT_ASSISTANT: &str = "ASSISTANT:";

/// A user's turn and the start of the assistant's: `USER: {text} ASSISTANT:`.
pub(crate) fn push_user_turn(text: &mut String, line: &str) {
    text.push_str("USER: ");
    text.push_str(line);
    text.push(' ');
    text.push_str(PROMPT_ASSISTANT);
}

/// The prompt for `turns`, which alternate between user and assistant and end with the user's.
/// Each answer of the assistant is followed by `eos_token`.
///
/// Source: safe-rlhf `format_prompt`. A single question is one turn. Text is put in as it is.
///
/// # Errors
/// [`SampleError::EvenTurns`] for turns that do not end with the user's, also for none.
pub fn format_prompt<T: AsRef<str>>(turns: &[T], eos_token: &str) -> Result<String, SampleError> {
    if turns.len().is_multiple_of(2) {
        return Err(SampleError::EvenTurns { turns: turns.len() });
    }
    let mut prompt = PROMPT_BEGIN.to_owned();
    for (index, line) in turns.iter().map(AsRef::as_ref).enumerate() {
        if index.is_multiple_of(2) {
            push_user_turn(&mut prompt, line);
        } else {
            prompt.push_str(line);
            prompt.push_str(eos_token);
        }
    }
    Ok(prompt)
}

/// Cuts a conversation after the last `split_token` (usually [`PROMPT_ASSISTANT`]): the prompt,
/// which keeps the token, and the response.
///
/// Source: safe-rlhf `split_prompt_response`.
///
/// # Errors
/// [`SampleError::NoResponse`] when the token is empty or missing, or nothing stands before or
/// after it.
pub fn split_prompt_response<'a>(
    text: &'a str,
    split_token: &str,
) -> Result<(&'a str, &'a str), SampleError> {
    let refused = || SampleError::NoResponse {
        split_token: split_token.to_owned(),
        text: text.chars().take(200).collect(),
    };
    if split_token.is_empty() {
        return Err(refused());
    }
    let at = text.rfind(split_token).ok_or_else(refused)?;
    let (prompt, response) = text.split_at(at + split_token.len());
    if at == 0 || response.is_empty() {
        return Err(refused());
    }
    Ok((prompt, response))
}
