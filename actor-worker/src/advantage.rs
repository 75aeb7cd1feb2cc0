//! From one advantage per sample to one per token.

use plumb_algo::kl::{Clamps, Kind as KlKind};
use plumb_algo::returns::discounted;
use plumb_algo::token_reward::{TokenReward, token_rewards};
use plumb_proto::actor::TokenAdvantageSpec;
use tonic::Status;

use crate::convert::invalid;

/// How a sample's advantage is laid on its tokens.
///
/// Without KL in the reward and with gamma 1 every token gets the sample's advantage. Otherwise
/// the advantage is the reward of the last token, each token is charged `kl_coef * kl_t`, and a
/// token's advantage is its discounted return (LightRFT's REINFORCE family).
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenAdvantages {
    kl: Option<(f64, KlKind)>,
    gamma: f64,
}

impl TokenAdvantages {
    /// Reads the request; an absent spec is the plain case.
    #[allow(clippy::result_large_err)]
    pub(crate) fn new(spec: Option<&TokenAdvantageSpec>) -> Result<Self, Status> {
        let Some(spec) = spec else {
            return Ok(Self { kl: None, gamma: 1.0 });
        };
        let coef = spec.kl_in_reward_coef;
        let kl = match coef {
            0.0 => None,
            _ if coef < 0.0 || !coef.is_finite() => {
                let problem = format!("{coef}; expected 0 or more");
                return Err(invalid("token_advantage.kl_in_reward_coef", problem));
            }
            _ => {
                let kind = spec.kl_kind.parse();
                Some((coef, kind.map_err(|e| invalid("token_advantage.kl_kind", e))?))
            }
        };
        if !(0.0..=1.0).contains(&spec.gamma) {
            let problem = format!("{}; expected a number in [0, 1]", spec.gamma);
            return Err(invalid("token_advantage.gamma", problem));
        }
        Ok(Self { kl, gamma: spec.gamma })
    }

    /// Whether the reference's log-probs are needed.
    pub(crate) fn needs_reference(&self) -> bool {
        self.kl.is_some()
    }

    /// Advantages of a response's tokens, `[T]`. `sampler` and `reference`: log-probs `[T]`.
    #[allow(clippy::result_large_err)]
    pub(crate) fn of_tokens(
        &self,
        advantage: f64,
        sampler: &[f32],
        reference: Option<&[f32]>,
    ) -> Result<Vec<f32>, Status> {
        let tokens = sampler.len();
        if self.kl.is_none() && self.gamma == 1.0 {
            return Ok(vec![advantage as f32; tokens]);
        }
        let mask = vec![true; tokens];
        let failed = |error: plumb_algo::AlgoError| Status::invalid_argument(error.to_string());
        let (coef, kl) = match (self.kl, reference) {
            (None, _) => (0.0, vec![0.0; tokens]),
            (Some((coef, kind)), Some(reference)) => {
                let kl = plumb_algo::kl::of_tokens(kind, Clamps::Off, sampler, reference, &mask);
                (coef, kl.map_err(failed)?)
            }
            (Some(_), None) => {
                return Err(invalid("reference_logps", "are needed for KL in the reward"));
            }
        };
        let spec = TokenReward { kl_coef: coef, reward_clip: None };
        let rewards = token_rewards(&spec, advantage, &kl, &mask).map_err(failed)?;
        let mut returns = vec![0.0; tokens];
        discounted(&rewards, &mask, self.gamma, &mut returns).map_err(failed)?;
        Ok(returns.into_iter().map(|value| value as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_case_gives_every_token_the_samples_advantage() {
        let plain = TokenAdvantages::new(None).unwrap();
        assert_eq!(plain.of_tokens(-0.5, &[0.0; 3], None).unwrap(), [-0.5; 3]);
        assert!(!plain.needs_reference());
    }

    #[test]
    fn kl_in_the_reward_is_charged_from_its_token_on_backwards() {
        // d = 1, 2 with k1 and coefficient 0.1; gamma 0.5: r = -0.1, -0.2 + 1.
        let spec = TokenAdvantageSpec { kl_in_reward_coef: 0.1, kl_kind: "k1".into(), gamma: 0.5 };
        let advantages = TokenAdvantages::new(Some(&spec)).unwrap();
        let got = advantages.of_tokens(1.0, &[-1.0, -1.0], Some(&[-2.0, -3.0])).unwrap();
        assert!((got[1] - 0.8).abs() < 1e-6 && (got[0] - 0.3).abs() < 1e-6, "{got:?}");
        assert!(advantages.of_tokens(1.0, &[0.0], None).is_err());
    }

    #[test]
    fn values_out_of_range_are_named() {
        let spec = TokenAdvantageSpec { gamma: 1.5, ..TokenAdvantageSpec::default() };
        let message = TokenAdvantages::new(Some(&spec)).unwrap_err().message().to_owned();
        assert!(message.contains("gamma") && message.contains("1.5"), "{message}");
    }
}
