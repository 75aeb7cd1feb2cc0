//! Samples that cannot be used.

/// What is wrong with a sample.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A field that this kind of sample needs.
    #[error("no field {field:?}")]
    Missing {
        /// Its name.
        field: &'static str,
    },
    /// A field of another type.
    #[error("field {field:?} is {got}, expected {expected}")]
    FieldType {
        /// Its name.
        field: &'static str,
        /// What would be right.
        expected: &'static str,
        /// Its value, cut to 200 characters.
        got: String,
    },
    /// Not an object at all.
    #[error("a sample is {got}, expected an object")]
    NotAnObject {
        /// What it is, cut to 200 characters.
        got: String,
    },
    /// A prompt that does not end with the user.
    #[error("{turns} turns, expected an odd number: a prompt ends with the user's")]
    EvenTurns {
        /// How many there are.
        turns: usize,
    },
    /// A sample of both forms.
    #[error("both input and dialogue, expected one of them")]
    InputAndDialogue,
    /// A sample of neither form.
    #[error("neither input nor dialogue, expected one of them")]
    NoInput,
    /// Answers that the tokenizer cannot tell apart.
    #[error("both answers have the same {tokens} token ids")]
    SameAnswers {
        /// How many.
        tokens: usize,
    },
    /// Flags that contradict each other.
    #[error("the safer answer is marked unsafe, the other one safe")]
    SaferIsUnsafe,
    /// A conversation that does not split into a prompt and a response.
    #[error("{text:?} has no text before or after {split_token:?}")]
    NoResponse {
        /// Where it was to be split.
        split_token: String,
        /// The conversation, cut to 200 characters.
        text: String,
    },
    /// The tokenizer refused a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}
