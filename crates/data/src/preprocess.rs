//! Samples as token ids, one function a kind of training.
//!
//! Source: safe-rlhf `datasets/{supervised, preference, safety_preference, prompt_only}.py`.

use crate::conversation::{PROMPT_BEGIN, push_user_turn};
use crate::{RawSample, SampleError, format_prompt};

/// Label of a token that the loss passes over.
pub const IGNORE_INDEX: i64 = -100;

/// What preprocessing asks of a tokenizer.
pub trait Tokenizer {
    /// The ids of a text, with the special tokens that a sequence starts with, cut to the longest
    /// sequence there may be.
    ///
    /// # Errors
    /// Why the text has no ids, in words.
    fn encode(&self, text: &str) -> Result<Vec<u32>, String>;

    /// The text of the token that ends an answer.
    fn eos_token(&self) -> &str;
}

/// A sequence to learn by heart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupervisedSample {
    /// `[T]`.
    pub input_ids: Vec<u32>,
    /// `[T]`; the ids, or [`IGNORE_INDEX`] for tokens of the prompt and of the user.
    pub labels: Vec<i64>,
}

/// The better and the worse answer, each with the prompt before it and eos after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceSample {
    /// `[T_b]`.
    pub better_input_ids: Vec<u32>,
    /// `[T_w]`.
    pub worse_input_ids: Vec<u32>,
}

/// The safer and the less safe answer, each with the prompt before it and eos after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetySample {
    /// `[T_s]`.
    pub safer_input_ids: Vec<u32>,
    /// 1 if the safer answer is safe, else -1.
    pub safer_sign: i8,
    /// `[T_u]`.
    pub unsafer_input_ids: Vec<u32>,
    /// 1 if the less safe answer is safe, else -1; at most `safer_sign`.
    pub unsafer_sign: i8,
}

/// From `input` (a question) and `answer`, or from a `dialogue`.
///
/// A question's labels begin after as many tokens as the prompt has on its own. In a dialogue the
/// text up to each turn is tokenised on its own; what the user's turns add is masked. The last turn
/// may be the user's, and a dialogue without turns has no tokens.
///
/// # Errors
/// [`SampleError::NoInput`], [`SampleError::InputAndDialogue`], [`SampleError::Missing`] without
/// `answer`, [`SampleError::FieldType`] for an `input` of several turns,
/// [`SampleError::Tokenizer`].
pub fn supervised<T: Tokenizer + ?Sized>(
    sample: &RawSample,
    tokenizer: &T,
) -> Result<SupervisedSample, SampleError> {
    let question = match (&sample.input, &sample.dialogue) {
        (None, None) => return Err(SampleError::NoInput),
        (Some(_), Some(_)) => return Err(SampleError::InputAndDialogue),
        (None, Some(lines)) => return dialogue(lines, tokenizer),
        (Some(crate::Input::Question(question)), None) => question,
        (Some(crate::Input::Turns(turns)), None) => {
            return Err(SampleError::FieldType {
                field: "input",
                expected: "a string",
                got: format!("a list of {} turns", turns.len()),
            });
        }
    };
    let prompt = format_prompt(&[question], tokenizer.eos_token())?;
    let answer = field("answer", sample.answer.as_deref())?;
    let input_ids = encode(tokenizer, &format!("{prompt}{answer}{}", tokenizer.eos_token()))?;
    let mut labels = as_labels(&input_ids);
    let masked = encode(tokenizer, &prompt)?.len().min(labels.len());
    labels[..masked].fill(IGNORE_INDEX);
    Ok(SupervisedSample { input_ids, labels })
}

fn dialogue<T: Tokenizer + ?Sized>(
    lines: &[String],
    tokenizer: &T,
) -> Result<SupervisedSample, SampleError> {
    let mut text = PROMPT_BEGIN.to_owned();
    let (mut input_ids, mut ends) = (Vec::new(), Vec::new());
    for (index, line) in lines.iter().enumerate() {
        if index.is_multiple_of(2) {
            push_user_turn(&mut text, line);
        } else {
            text.push_str(line);
            text.push_str(tokenizer.eos_token());
        }
        input_ids = encode(tokenizer, &text)?;
        ends.push(input_ids.len());
    }
    let mut labels = as_labels(&input_ids);
    let mut begin = 0;
    for (index, end) in ends.iter().enumerate() {
        let end = (*end).min(labels.len());
        if index.is_multiple_of(2) && begin < end {
            labels[begin..end].fill(IGNORE_INDEX);
        }
        begin = end;
    }
    Ok(SupervisedSample { input_ids, labels })
}

/// From `input`, `answer`, `other_answer` and `better`.
///
/// # Errors
/// [`SampleError::Missing`]; [`SampleError::EvenTurns`]; [`SampleError::SameAnswers`] for answers
/// that no loss can tell apart; [`SampleError::Tokenizer`].
pub fn preference<T: Tokenizer + ?Sized>(
    sample: &RawSample,
    tokenizer: &T,
) -> Result<PreferenceSample, SampleError> {
    let answer_first = field("better", sample.better)?;
    let (better_input_ids, worse_input_ids) = pair(sample, tokenizer, answer_first)?;
    Ok(PreferenceSample { better_input_ids, worse_input_ids })
}

/// From `input`, `answer`, `other_answer`, `safer`, `is_safe` and `is_other_safe`.
///
/// # Errors
/// As [`preference`]; [`SampleError::SaferIsUnsafe`] when the safer answer is the unsafe one of the
/// two.
pub fn safety_preference<T: Tokenizer + ?Sized>(
    sample: &RawSample,
    tokenizer: &T,
) -> Result<SafetySample, SampleError> {
    let answer_first = field("safer", sample.safer)?;
    let sign = |safe: bool| if safe { 1 } else { -1 };
    let own = sign(field("is_safe", sample.is_safe)?);
    let other = sign(field("is_other_safe", sample.is_other_safe)?);
    let (safer_sign, unsafer_sign) = if answer_first { (own, other) } else { (other, own) };
    if safer_sign < unsafer_sign {
        return Err(SampleError::SaferIsUnsafe);
    }
    let (safer_input_ids, unsafer_input_ids) = pair(sample, tokenizer, answer_first)?;
    Ok(SafetySample { safer_input_ids, safer_sign, unsafer_input_ids, unsafer_sign })
}

/// From `input` alone: the ids of a prompt to answer, `[T]`.
///
/// # Errors
/// [`SampleError::Missing`], [`SampleError::EvenTurns`], [`SampleError::Tokenizer`].
pub fn prompt_only<T: Tokenizer + ?Sized>(
    sample: &RawSample,
    tokenizer: &T,
) -> Result<Vec<u32>, SampleError> {
    encode(tokenizer, &prompt_of(sample, tokenizer)?)
}

/// The ids of both answers after the prompt: the preferred one, then the other.
fn pair<T: Tokenizer + ?Sized>(
    sample: &RawSample,
    tokenizer: &T,
    answer_first: bool,
) -> Result<(Vec<u32>, Vec<u32>), SampleError> {
    let prompt = prompt_of(sample, tokenizer)?;
    let own = field("answer", sample.answer.as_deref())?;
    let other = field("other_answer", sample.other_answer.as_deref())?;
    let (first, second) = if answer_first { (own, other) } else { (other, own) };
    let whole =
        |answer: &str| encode(tokenizer, &format!("{prompt}{answer}{}", tokenizer.eos_token()));
    let (first, second) = (whole(first)?, whole(second)?);
    if first == second {
        return Err(SampleError::SameAnswers { tokens: first.len() });
    }
    Ok((first, second))
}

fn prompt_of<T: Tokenizer + ?Sized>(
    sample: &RawSample,
    tokenizer: &T,
) -> Result<String, SampleError> {
    let input = sample.input.as_ref().ok_or(SampleError::Missing { field: "input" })?;
    format_prompt(&input.turns(), tokenizer.eos_token())
}

fn encode<T: Tokenizer + ?Sized>(tokenizer: &T, text: &str) -> Result<Vec<u32>, SampleError> {
    tokenizer.encode(text).map_err(SampleError::Tokenizer)
}

fn field<T>(field: &'static str, value: Option<T>) -> Result<T, SampleError> {
    value.ok_or(SampleError::Missing { field })
}

fn as_labels(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|id| i64::from(*id)).collect()
}
