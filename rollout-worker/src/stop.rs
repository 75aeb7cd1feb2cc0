//! When a response ends, and what of it is the answer.

/// Turns tokens into text. The tokenizer, seen from the engine.
pub trait Detokenizer: Send {
    /// Text of `ids` without special tokens. Bytes that do not yet form a character show as
    /// U+FFFD.
    fn text(&self, ids: &[u32]) -> String;
}

/// What ends the responses of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopRules {
    /// End-of-sequence tokens; empty when the request ignores them.
    pub eos_ids: Vec<u32>,
    /// Stop strings that are single special tokens. These have no text, so they are met as ids.
    pub token_ids: Vec<u32>,
    /// Stop strings, met in the text.
    pub strings: Vec<String>,
    /// Response tokens before which a stop string does not count: one that is complete earlier is
    /// part of the answer.
    pub min_tokens: usize,
}

impl StopRules {
    /// The answer of a finished response: its text, cut before the first stop string.
    #[must_use]
    pub fn answer(&self, detokenizer: &dyn Detokenizer, response_ids: &[u32]) -> String {
        let mut text = detokenizer.text(response_ids);
        let exempt = self.min_tokens.saturating_sub(1).min(response_ids.len());
        let exempt = if exempt == 0 || self.strings.is_empty() {
            0
        } else {
            detokenizer.text(&response_ids[..exempt]).trim_end_matches('\u{FFFD}').len()
        };
        if let Some(at) = self.first_ending_after(&text, exempt) {
            text.truncate(at);
        }
        text
    }

    /// Byte offset of the earliest stop string in `text` that ends behind the first `before` bytes.
    fn first_ending_after(&self, text: &str, before: usize) -> Option<usize> {
        let first = |stop: &String| {
            let mut start = (before + 1).saturating_sub(stop.len());
            while !text.is_char_boundary(start) {
                start += 1;
            }
            text.get(start..)?.find(stop.as_str()).map(|at| start + at)
        };
        self.strings.iter().filter_map(first).min()
    }
}

/// Follows the text of one response token by token.
///
/// A token's text depends on its neighbours (bytes of one character in two tokens, spaces that a
/// tokenizer drops at the start), so a short window of tokens is decoded with and without the new
/// ones, and the difference is the new text. A text that ends inside a character is held back.
#[derive(Debug, Clone, Default)]
pub struct StopScanner {
    text: String,
    window_start: usize,
    read: usize,
}

impl StopScanner {
    /// Takes the response up to its newest token; true once a stop string is in the text.
    pub fn scan(
        &mut self,
        rules: &StopRules,
        detokenizer: &dyn Detokenizer,
        response_ids: &[u32],
    ) -> bool {
        let (Some(before), Some(window)) =
            (response_ids.get(self.window_start..self.read), response_ids.get(self.window_start..))
        else {
            return false;
        };
        let before = detokenizer.text(before);
        let window = detokenizer.text(window);
        if window.ends_with('\u{FFFD}') || window.len() <= before.len() {
            return false;
        }
        let Some(new) = window.get(before.len()..) else { return false };
        let before = self.text.len();
        self.text.push_str(new);
        self.window_start = self.read;
        self.read = response_ids.len();
        response_ids.len() >= rules.min_tokens
            && rules.first_ending_after(&self.text, before).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of byte strings, as byte-level BPE has them.
    struct Bytes(Vec<&'static [u8]>);

    impl Detokenizer for Bytes {
        fn text(&self, ids: &[u32]) -> String {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| self.0[*id as usize].to_vec()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }

    fn stops_at(rules: &StopRules, detokenizer: &Bytes, ids: &[u32]) -> Option<usize> {
        let mut scanner = StopScanner::default();
        (1..=ids.len()).find(|n| scanner.scan(rules, detokenizer, &ids[..*n]))
    }

    fn strings(list: &[&str]) -> StopRules {
        StopRules {
            strings: list.iter().map(|s| (*s).to_owned()).collect(),
            ..StopRules::default()
        }
    }

    #[test]
    fn a_stop_string_over_three_tokens_is_met_at_the_last() {
        let words = Bytes(vec![b"Hello", b"\n", b"Us", b"er", b": no"]);
        let rules = strings(&["\nUser:"]);
        assert_eq!(stops_at(&rules, &words, &[0, 1, 2, 3, 4]), Some(5));
        assert_eq!(rules.answer(&words, &[0, 1, 2, 3, 4]), "Hello");
        assert_eq!(stops_at(&rules, &words, &[0, 1, 2, 0, 4]), None);
    }

    #[test]
    fn the_earliest_of_several_stop_strings_cuts_the_answer() {
        let words = Bytes(vec![b"one ", b"two ", b"three"]);
        let rules = strings(&["three", "two"]);
        assert_eq!(rules.answer(&words, &[0, 1, 2]), "one ");
        assert_eq!(stops_at(&rules, &words, &[0, 1, 2]), Some(2));
    }

    #[test]
    fn half_a_character_is_held_back_until_it_is_whole() {
        // "é" is C3 A9; the stop string needs both tokens.
        let words = Bytes(vec![b"caf", b"\xC3", b"\xA9", b"s"]);
        let rules = strings(&["fé"]);
        assert_eq!(stops_at(&rules, &words, &[0, 1, 2, 3]), Some(3));
        assert_eq!(rules.answer(&words, &[0, 1, 2, 3]), "ca");
    }

    #[test]
    fn an_overlap_next_to_wide_characters_does_not_split_one() {
        let words = Bytes(vec!["日本".as_bytes(), "語".as_bytes(), b"ab"]);
        assert_eq!(stops_at(&strings(&["本語a"]), &words, &[0, 1, 2]), Some(3));
    }

    #[test]
    fn a_stop_string_before_the_minimum_is_part_of_the_answer() {
        let words = Bytes(vec![b"a", b"\n", b"b"]);
        let rules = StopRules { min_tokens: 4, ..strings(&["\n"]) };
        assert_eq!(stops_at(&rules, &words, &[0, 1, 2, 0, 1]), Some(5));
        assert_eq!(rules.answer(&words, &[0, 1, 2, 0, 1]), "a\nba");
        // Begun before the minimum and complete with it.
        let rules = StopRules { min_tokens: 3, ..strings(&["\nb"]) };
        assert_eq!(stops_at(&rules, &words, &[0, 1, 2, 0]), Some(3));
        assert_eq!(rules.answer(&words, &[0, 1, 2]), "a");
    }

    #[test]
    fn without_stop_strings_the_answer_is_the_whole_text() {
        let words = Bytes(vec![b"a", b"b"]);
        assert_eq!(StopRules::default().answer(&words, &[0, 1, 1]), "abb");
        assert_eq!(stops_at(&StopRules::default(), &words, &[0, 1, 1]), None);
    }
}
