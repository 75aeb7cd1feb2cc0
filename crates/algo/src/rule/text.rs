//! How rules cut text into words.

/// The part after the last `</think>`; all of it where there is none.
#[must_use]
pub fn after_thinking(response: &str) -> &str {
    response.rfind("</think>").map_or(response, |at| &response[at + "</think>".len()..])
}

/// Lower-case words: runs of letters, digits and apostrophes within a word. Curly apostrophes
/// become straight ones, so "Don’t" and "don't" are one word.
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '\'' | '\u{2019}');
    text.split(move |c| !inside(c)).filter_map(|word| {
        let word = word.replace('\u{2019}', "'");
        let word = word.trim_matches('\'').to_lowercase();
        (!word.is_empty()).then_some(word)
    })
}

/// The words that carry content: at least three characters and not in a list of function words,
/// each cut to its first `stem_chars` characters so that "lock", "locks" and "locked" are one for
/// `stem_chars` 4.
pub fn content_stems(text: &str, stem_chars: usize) -> impl Iterator<Item = String> + '_ {
    words(text)
        .filter(|w| w.chars().count() >= 3 && FUNCTION_WORDS.binary_search(&w.as_str()).is_err())
        .map(move |w| w.chars().take(stem_chars).collect())
}

/// English words of three letters and more that say nothing of the subject: function words, and
/// what one says when one asks. Sorted, for the binary search.
const FUNCTION_WORDS: &[&str] = &[
    "about", "above", "after", "again", "all", "also", "and", "any", "are", "because", "been",
    "before", "being", "best", "better", "between", "but", "can", "could", "did", "does", "doing",
    "down", "during", "each", "ever", "explain", "few", "for", "from", "further", "get", "give",
    "good", "had", "has", "have", "having", "help", "her", "here", "hers", "him", "his", "how",
    "into", "its", "itself", "just", "know", "like", "make", "many", "may", "mean", "meaning",
    "might", "more", "most", "much", "must", "name", "need", "new", "nor", "not", "off", "once",
    "one", "only", "other", "our", "out", "over", "own", "please", "short", "should", "simple",
    "some", "such", "suggest", "tell", "than", "that", "the", "their", "them", "then", "there",
    "these", "they", "thing", "things", "this", "those", "three", "through", "tips", "too", "two",
    "under", "until", "use", "used", "using", "very", "was", "way", "ways", "were", "what", "when",
    "where", "which", "while", "who", "whose", "why", "will", "with", "without", "word", "would",
    "write", "you", "your",
];
