//! The token sequence of a dialogue, and which of its tokens the policy wrote.

use crate::AlgoError;

/// When a dialogue stops. A limit that is `None` does not stop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest response in tokens, the user's turns within it included.
    pub response_tokens: usize,
    /// Assistant turns after which it stops.
    pub assistant_turns: Option<usize>,
    /// User turns after which an answer is the last one; it gets no score.
    pub user_turns: Option<usize>,
}

/// What is recorded of the reply that ends a dialogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TurnEnd {
    /// Nothing: no tokens, no score, no user turn.
    #[default]
    Dropped,
    /// The empty user message's tokens and its score 0, as in the original; the 0 then is the
    /// least score of the trajectory.
    Compat,
}

/// How a dialogue without any response token is cut into prompt and response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EmptyResponse {
    /// The response is empty.
    #[default]
    Empty,
    /// The response repeats the prompt without a mask, as in the original.
    Compat,
}

/// What the environment answered to a turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reply<'a> {
    /// Is the dialogue over?
    pub ends: bool,
    /// The score of the assistant's turn, if it has one.
    pub score: Option<f64>,
    /// Tokens of the user's message in the chat template, up to where the assistant writes on.
    pub tokens: &'a [u32],
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The policy writes a turn: [`Assembly::generated`].
    Generate,
    /// The environment answers: [`Assembly::replied`].
    Reply,
    /// Nothing: [`Assembly::finish`].
    Ended(Ending),
}

/// Why a dialogue ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The response is full.
    ResponseTokens,
    /// [`Limits::assistant_turns`].
    AssistantTurns,
    /// [`Limits::user_turns`].
    UserTurns,
    /// The environment ended it.
    Environment,
}

/// A dialogue under way. Tokens that the policy wrote have mask true; those of the user's turns
/// and of the template have mask false, so no loss falls on them.
///
/// Source: SaFeR-Steer `ToolAgentLoop` (verl/experimental/agent_loop/tool_agent_loop.py).
#[derive(Debug, Clone, PartialEq)]
pub struct Assembly {
    prompt: Vec<u32>,
    response: Vec<u32>,
    mask: Vec<bool>,
    turn_scores: Vec<f64>,
    user_turns: usize,
    assistant_turns: usize,
    limits: Limits,
    turn_end: TurnEnd,
    next: Step,
}

/// A dialogue at its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Trajectory {
    /// The tokens before the policy's first one.
    pub prompt: Vec<u32>,
    /// The tokens from there on, at most [`Limits::response_tokens`].
    pub response: Vec<u32>,
    /// Which of them the policy wrote.
    pub mask: Vec<bool>,
    /// Scores of the assistant's turns, in order; of turns beyond the cut too.
    pub turn_scores: Vec<f64>,
    /// Turns of the user within the response.
    pub user_turns: usize,
    /// Turns of the assistant.
    pub assistant_turns: usize,
}

impl Trajectory {
    /// All turns, the prompt as one of them.
    #[must_use]
    pub fn turns(&self) -> usize {
        self.user_turns + self.assistant_turns + 1
    }
}

impl Assembly {
    /// A dialogue that begins with `prompt`.
    #[must_use]
    pub fn new(prompt: &[u32], limits: Limits, turn_end: TurnEnd) -> Self {
        Self {
            prompt: prompt.to_vec(),
            response: Vec::new(),
            mask: Vec::new(),
            turn_scores: Vec::new(),
            user_turns: 0,
            assistant_turns: 0,
            limits,
            turn_end,
            next: Step::Generate,
        }
    }

    /// What comes next.
    #[must_use]
    pub fn next(&self) -> Step {
        self.next
    }

    /// The policy wrote a turn. The dialogue ends if the response is full or a limit of turns is
    /// reached, before the environment is asked: that turn has no score.
    ///
    /// # Errors
    /// [`AlgoError::OutOfTurn`] unless [`Step::Generate`] is next.
    pub fn generated(&mut self, tokens: &[u32]) -> Result<Step, AlgoError> {
        self.in_turn(Step::Generate)?;
        self.append(tokens, true);
        self.assistant_turns += 1;
        let reached = |turns: usize, limit: Option<usize>| limit.is_some_and(|most| turns >= most);
        self.next = if self.mask.len() >= self.limits.response_tokens {
            Step::Ended(Ending::ResponseTokens)
        } else if reached(self.assistant_turns, self.limits.assistant_turns) {
            Step::Ended(Ending::AssistantTurns)
        } else if reached(self.user_turns, self.limits.user_turns) {
            Step::Ended(Ending::UserTurns)
        } else {
            Step::Reply
        };
        Ok(self.next)
    }

    /// The environment answered. Its tokens may exceed the response length; [`Self::finish`] cuts.
    ///
    /// # Errors
    /// [`AlgoError::OutOfTurn`] unless [`Step::Reply`] is next; [`AlgoError::NonFinite`] for a
    /// score that is not a number.
    pub fn replied(&mut self, reply: Reply<'_>) -> Result<Step, AlgoError> {
        self.in_turn(Step::Reply)?;
        if let Some(value) = reply.score.filter(|score| score.is_nan()) {
            let index = self.turn_scores.len();
            let argument = "turn_scores";
            return Err(AlgoError::NonFinite { function: "replied", argument, index, value });
        }
        if !reply.ends || self.turn_end == TurnEnd::Compat {
            self.append(reply.tokens, false);
            self.turn_scores.extend(reply.score);
            self.user_turns += 1;
        }
        self.next = if reply.ends { Step::Ended(Ending::Environment) } else { Step::Generate };
        Ok(self.next)
    }

    /// The dialogue as it stands, its response cut to length.
    #[must_use]
    pub fn finish(mut self, empty: EmptyResponse) -> Trajectory {
        if self.response.is_empty() && empty == EmptyResponse::Compat {
            self.response.clone_from(&self.prompt);
        }
        self.response.truncate(self.limits.response_tokens);
        self.mask.truncate(self.limits.response_tokens);
        Trajectory {
            prompt: self.prompt,
            response: self.response,
            mask: self.mask,
            turn_scores: self.turn_scores,
            user_turns: self.user_turns,
            assistant_turns: self.assistant_turns,
        }
    }

    fn append(&mut self, tokens: &[u32], by_policy: bool) {
        self.response.extend_from_slice(tokens);
        self.mask.resize(self.response.len(), by_policy);
    }

    fn in_turn(&self, expected: Step) -> Result<(), AlgoError> {
        if self.next == expected {
            return Ok(());
        }
        Err(AlgoError::OutOfTurn { got: expected.name(), expected: self.next.name() })
    }
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Generate => "the policy's turn",
            Self::Reply => "the environment's turn",
            Self::Ended(_) => "the end",
        }
    }
}
