//! DAPO's soft penalty on answers that come near the length limit.

use serde::{Deserialize, Serialize};

use crate::AlgoError;
use crate::error::parameter;

/// Settings of the penalty.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlong {
    /// Longest response, in tokens.
    pub max_new_tokens: u32,
    /// The penalty begins this many tokens before the limit. LightRFT: 1024.
    pub buffer_tokens: u32,
    /// The penalty at the limit. Default 1.
    #[serde(default = "one")]
    pub factor: f64,
}

fn one() -> f64 {
    1.0
}

impl Overlong {
    /// `min(0, -(length - (max_new_tokens - buffer)) / buffer * factor)`, to be added to the
    /// reward before groups are compared. Not bounded below: a response past the limit (which the
    /// rollout does not make) would be penalised further.
    ///
    /// Source: DAPO, eq. 13; LightRFT `_process_experiences` and verl `DAPORewardManager`.
    ///
    /// # Errors
    /// [`AlgoError::Parameter`] for a buffer of 0 or above the limit, or a negative factor.
    pub fn penalty(&self, response_tokens: usize) -> Result<f64, AlgoError> {
        const F: &str = "Overlong::penalty";
        let buffer = f64::from(self.buffer_tokens);
        let limit = f64::from(self.max_new_tokens);
        let fits = buffer > 0.0 && buffer <= limit;
        parameter(F, "buffer_tokens", buffer, fits, "above 0 and at most max_new_tokens")?;
        parameter(F, "factor", self.factor, self.factor >= 0.0, "at least 0")?;
        let over = response_tokens as f64 - (limit - buffer);
        Ok((-over / buffer * self.factor).min(0.0))
    }
}
