//! HH-RLHF's transcripts: `\n\nHuman: ...\n\nAssistant: ...`, in one text.

use crate::RowFault;

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// Who speaks.
#[derive(Clone, Copy, PartialEq)]
enum Speaker {
    Human,
    Assistant,
}

/// The turns of a transcript, stripped; they alternate, the human's first, and end with the
/// assistant's.
///
/// # Errors
/// A transcript that is none.
pub(crate) fn turns(transcript: &str) -> Result<Vec<String>, RowFault> {
    let mut turns = Vec::new();
    // A transcript whose leading line breaks were stripped is one too.
    let framed = format!("\n\n{}", transcript.trim_start());
    let mut rest = framed.as_str();
    let mut due = Speaker::Human;
    while let Some((speaker, after)) = opening(rest) {
        if speaker != due {
            let problem = match turns.len() {
                0 => "the assistant speaks first, expected \"Human:\" first".to_owned(),
                n => format!("turns {n} and {} are of one speaker, expected turns by both", n + 1),
            };
            return Err(RowFault::new("turns of a transcript that do not alternate", problem));
        }
        let end = next_opening(after).unwrap_or(after.len());
        turns.push(after[..end].trim().to_owned());
        rest = &after[end..];
        due = if due == Speaker::Human { Speaker::Assistant } else { Speaker::Human };
    }
    if turns.is_empty() || due != Speaker::Human {
        return Err(RowFault::new(
            "a transcript without the assistant's last word",
            format!(
                "{} turns, expected \"Human:\" first and \"Assistant:\" last, each after an empty \
                 line",
                turns.len()
            ),
        ));
    }
    Ok(turns)
}

/// The turns before the last answer, and both last answers.
///
/// # Errors
/// As [`turns`]; transcripts that differ earlier.
pub(crate) fn answers(
    chosen: &str,
    rejected: &str,
) -> Result<(Vec<String>, String, String), RowFault> {
    let (mut chosen, mut rejected) = (turns(chosen)?, turns(rejected)?);
    let last = (chosen.pop().unwrap_or_default(), rejected.pop().unwrap_or_default());
    if chosen != rejected {
        let at = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
        return Err(RowFault::new(
            "transcripts that differ before their last answer",
            format!("chosen and rejected differ from turn {} on, expected the last only", at + 1),
        ));
    }
    Ok((chosen, last.0, last.1))
}

fn opening(text: &str) -> Option<(Speaker, &str)> {
    let human = text.strip_prefix(HUMAN).map(|rest| (Speaker::Human, rest));
    human.or_else(|| text.strip_prefix(ASSISTANT).map(|rest| (Speaker::Assistant, rest)))
}

fn next_opening(text: &str) -> Option<usize> {
    let ends = [text.find(HUMAN), text.find(ASSISTANT)];
    ends.into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_cut_at_empty_lines_with_a_speaker_only() {
        let text = "\n\nHuman: a\n\nb Human: c\n\nAssistant: d\n\nHuman: e\n\nAssistant:";
        assert_eq!(turns(text).unwrap(), ["a\n\nb Human: c", "d", "e", ""]);
    }

    #[test]
    fn what_does_not_alternate_or_end_is_refused() {
        for (text, cause) in [
            ("hello", "0 turns"),
            ("\n\nAssistant: a", "speaks first"),
            ("\n\nHuman: a", "1 turns"),
            ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "turns 1 and 2"),
        ] {
            assert!(turns(text).unwrap_err().problem.contains(cause), "{text:?}");
        }
    }

    #[test]
    fn answers_share_all_turns_before_them() {
        let one = "\n\nHuman: a\n\nAssistant: b";
        assert_eq!(
            answers(one, "\n\nHuman: a\n\nAssistant: c").unwrap(),
            (vec!["a".to_owned()], "b".to_owned(), "c".to_owned())
        );
        let fault = answers(one, "\n\nHuman: x\n\nAssistant: c").unwrap_err();
        assert!(fault.problem.contains("from turn 1 on"), "{fault}");
    }
}
