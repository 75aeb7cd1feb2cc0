//! Sampling parameters on the wire.

use plumb_domain::{SamplingError, SamplingParams};

use crate::rollout;

impl From<SamplingParams> for rollout::SamplingParams {
    fn from(params: SamplingParams) -> Self {
        Self {
            max_new_tokens: params.max_new_tokens,
            min_new_tokens: params.min_new_tokens,
            temperature: params.temperature,
            top_p: params.top_p,
            // Above the largest vocabulary there is nothing left to cut.
            top_k: params.top_k.map_or(0, |k| i32::try_from(k).unwrap_or(i32::MAX)),
            min_p: params.min_p,
            repetition_penalty: Some(params.repetition_penalty),
            logit_bias: params.logit_bias.into_iter().collect(),
            allowed_tokens: params.allowed_tokens.into_iter().collect(),
            top_logps: params.top_logps,
            stop: params.stop,
            ignore_eos: params.ignore_eos,
        }
    }
}

impl TryFrom<rollout::SamplingParams> for SamplingParams {
    type Error = SamplingError;

    fn try_from(given: rollout::SamplingParams) -> Result<Self, SamplingError> {
        Self {
            max_new_tokens: given.max_new_tokens,
            min_new_tokens: given.min_new_tokens,
            temperature: given.temperature,
            top_p: given.top_p,
            top_k: u32::try_from(given.top_k).ok().filter(|k| *k > 0),
            min_p: given.min_p,
            repetition_penalty: given.repetition_penalty.unwrap_or(1.0),
            logit_bias: given.logit_bias.into_iter().collect(),
            allowed_tokens: given.allowed_tokens.into_iter().collect(),
            top_logps: given.top_logps,
            stop: given.stop,
            ignore_eos: given.ignore_eos,
        }
        .validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_crosses_the_wire() {
        let params = SamplingParams {
            max_new_tokens: 9,
            min_new_tokens: 2,
            temperature: 0.7,
            top_p: 0.9,
            top_k: Some(5),
            min_p: 0.05,
            repetition_penalty: 1.2,
            logit_bias: [(3, -1.5), (4, 2.0)].into(),
            allowed_tokens: [1, 3, 4].into(),
            top_logps: 6,
            stop: vec!["end".into()],
            ignore_eos: true,
        };
        let wire = rollout::SamplingParams::from(params.clone());
        assert_eq!(SamplingParams::try_from(wire).unwrap(), params);
    }

    #[test]
    fn fields_that_an_older_sender_leaves_out_are_off() {
        let wire = rollout::SamplingParams {
            max_new_tokens: 8,
            temperature: 1.0,
            top_p: 1.0,
            top_k: -1,
            ..rollout::SamplingParams::default()
        };
        let plain = SamplingParams { max_new_tokens: 8, ..SamplingParams::default() };
        assert_eq!(SamplingParams::try_from(wire).unwrap(), plain);
    }
}
