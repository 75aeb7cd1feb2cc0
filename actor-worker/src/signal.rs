//! From a score per sample and a critic's values to advantages and returns per token.

use std::collections::BTreeMap;

use plumb_algo::AlgoError;
use plumb_algo::advantage::{Gae, Outside, TokenAdvantages, response_gae};
use plumb_algo::clamped_reward::{ClampedReward, Score};
use plumb_algo::constraint::Mixing;
use plumb_algo::kl::{Clamps, Kind as KlKind, of_tokens};
use plumb_algo::masked::whiten;
use plumb_engine::{PolicySample, ResponseSample};
use plumb_proto::actor::{CriticSignal, UpdateRequest};
use plumb_proto::object::ObjectRef;
use plumb_runtime::WorkerContext;
use tonic::Status;

use crate::convert::invalid;
use crate::samples::fetch_values;

/// One critic's part: the reward's, or the cost's.
pub(crate) struct Signal {
    score: Score,
    scores: BTreeMap<String, f64>,
    values: Vec<ObjectRef>,
    reward: ClampedReward,
    kl_kind: KlKind,
    gae: Gae,
}

/// Token rewards, advantages and returns of one response.
#[derive(Debug)]
pub(crate) struct SignalTokens {
    /// Score and KL of all its tokens.
    pub(crate) reward_sum: f64,
    pub(crate) advantages: Vec<f64>,
    pub(crate) returns: Vec<f64>,
}

impl Signal {
    #[allow(clippy::result_large_err)]
    pub(crate) fn new(spec: &CriticSignal) -> Result<Self, Status> {
        let score = match spec.kind.as_str() {
            "reward" => Score::Reward,
            "cost" => Score::Cost,
            other => {
                let problem = format!("{other:?}; expected reward or cost");
                return Err(invalid("critic.kind", problem));
            }
        };
        let not_negative = |field: &str, value: f64| match value >= 0.0 && value.is_finite() {
            true => Ok(value),
            false => Err(invalid(field, format!("{value}; expected 0 or more"))),
        };
        let kl_coef = not_negative("critic.kl_coef", spec.kl_coef)?;
        let clip = match not_negative("critic.clip", spec.clip)? {
            0.0 => f64::INFINITY,
            clip => clip,
        };
        let kl_kind = match kl_coef {
            0.0 => KlKind::K1,
            _ => spec.kl_kind.parse().map_err(|error| invalid("critic.kl_kind", error))?,
        };
        let pairs = spec.scores.iter().map(|s| (s.sample_id.clone(), s.score));
        Ok(Self {
            score,
            scores: pairs.collect(),
            values: spec.values.clone(),
            reward: ClampedReward { kl_coef, clip },
            kl_kind,
            gae: Gae { gamma: spec.gamma, lambda: spec.lambda, outside: Outside::Zero },
        })
    }

    /// Whether the reference's log-probs are needed.
    pub(crate) fn needs_reference(&self) -> bool {
        self.reward.kl_coef > 0.0
    }

    /// The score of a sample, if it counts.
    pub(crate) fn score_of(&self, sample_id: &str) -> Option<f64> {
        self.scores.get(sample_id).copied()
    }

    /// The critic's values by sample id.
    pub(crate) async fn fetch_values(
        &self,
        context: &WorkerContext,
    ) -> Result<BTreeMap<String, Vec<f32>>, Status> {
        fetch_values(context, &self.values).await
    }

    /// Token rewards `clamp(∓kl_coef kl_t + [t = last] score)` and GAE over them. `reference` and
    /// `values` are `[T]`.
    #[allow(clippy::result_large_err)]
    pub(crate) fn of_tokens(
        &self,
        sample: &ResponseSample,
        reference: Option<&[f32]>,
        values: &[f32],
    ) -> Result<SignalTokens, Status> {
        let (id, tokens) = (&sample.id, sample.response_ids.len());
        if tokens == 0 {
            let (advantages, returns) = Default::default();
            return Ok(SignalTokens { reward_sum: 0.0, advantages, returns });
        }
        let failed = |error: AlgoError| invalid("critic", format!("sample {id}: {error}"));
        let score = self.score_of(id);
        let score =
            score.ok_or_else(|| invalid("critic.scores", format!("hold none for sample {id}")))?;
        if values.len() != tokens {
            let problem = format!("sample {id} has {tokens} tokens but {} values", values.len());
            return Err(invalid("critic.values", problem));
        }
        let (mask, zeros) = (vec![true; tokens], vec![0.0; tokens]);
        let kl = match reference.filter(|_| self.needs_reference()) {
            None if self.needs_reference() => {
                return Err(invalid("reference_logps", "are needed for KL in the reward"));
            }
            None => zeros.clone(),
            Some(reference) => {
                let (kind, sampler) = (self.kl_kind, &sample.rollout_logps);
                of_tokens(kind, Clamps::Off, sampler, reference, &mask).map_err(failed)?
            }
        };
        // An estimate of the KL stands where safe-rlhf's own is, `logp - ref_logp`.
        let rewards = self.reward.tokens(self.score, score, &kl, &zeros, &mask).map_err(failed)?;
        let values: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
        let TokenAdvantages { advantages, returns } =
            response_gae(&self.gae, &rewards, &values, &mask, 0).map_err(failed)?;
        Ok(SignalTokens { reward_sum: rewards.iter().sum(), advantages, returns })
    }
}

/// The policy's advantages where there are critics.
pub(crate) struct CriticAdvantages {
    reward: Signal,
    cost: Option<(Signal, f64)>,
    whiten: bool,
}

impl CriticAdvantages {
    /// Reads the request; `None` where there is no critic.
    #[allow(clippy::result_large_err)]
    pub(crate) fn new(request: &UpdateRequest) -> Result<Option<Self>, Status> {
        let signals = request.critics.iter().map(Signal::new).collect::<Result<Vec<_>, _>>()?;
        let mut signals = signals.into_iter();
        let (reward, cost) = match (signals.next(), signals.next(), signals.next()) {
            (None, _, _) => return Ok(None),
            (Some(reward), None, None) if reward.score == Score::Reward => (reward, None),
            (Some(reward), Some(cost), None)
                if (reward.score, cost.score) == (Score::Reward, Score::Cost) =>
            {
                (reward, Some((cost, request.cost_weight)))
            }
            _ => {
                let problem = "expected the reward's, and under a constraint then the cost's";
                return Err(invalid("critics", problem));
            }
        };
        Ok(Some(Self { reward, cost, whiten: request.whiten }))
    }

    /// Whether the reference's log-probs are needed.
    pub(crate) fn needs_reference(&self) -> bool {
        self.reward.needs_reference()
    }

    /// Fetches the critics' values and gives every sample its advantages.
    pub(crate) async fn lay_on(
        &self,
        context: &WorkerContext,
        samples: &mut [PolicySample],
    ) -> Result<(), Status> {
        let rewards = self.reward.fetch_values(context).await?;
        let costs = match &self.cost {
            Some((cost, _)) => cost.fetch_values(context).await?,
            None => BTreeMap::new(),
        };
        self.advantages(samples, &rewards, &costs)
    }

    #[allow(clippy::result_large_err)]
    fn advantages(
        &self,
        samples: &mut [PolicySample],
        rewards: &BTreeMap<String, Vec<f32>>,
        costs: &BTreeMap<String, Vec<f32>>,
    ) -> Result<(), Status> {
        let failed = |error: AlgoError| Status::invalid_argument(error.to_string());
        for PolicySample { sample, advantages, reference_logps, .. } in samples.iter_mut() {
            let reference = reference_logps.as_deref();
            let of = |signal: &Signal, values: &BTreeMap<String, Vec<f32>>| {
                let values = values.get(&sample.id).map_or(&[][..], Vec::as_slice);
                Ok::<_, Status>(signal.of_tokens(sample, reference, values)?.advantages)
            };
            let mut tokens = of(&self.reward, rewards)?;
            if let Some((cost, lambda)) = &self.cost {
                let costs = of(cost, costs)?;
                tokens = Mixing::Divided.mix(&tokens, &costs, *lambda).map_err(failed)?;
            }
            *advantages = tokens.into_iter().map(|value| value as f32).collect();
        }
        if self.whiten {
            let mut all: Vec<f32> =
                samples.iter().flat_map(|sample| &sample.advantages).copied().collect();
            let mask = vec![true; all.len()];
            whiten(&mut all, &mask, true).map_err(failed)?;
            let mut all = all.into_iter();
            for sample in samples {
                let tokens = sample.advantages.len();
                sample.advantages = all.by_ref().take(tokens).collect();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use plumb_proto::actor::SampleScore;

    use super::*;

    fn signal(kind: &str, kl_coef: f64, clip: f64) -> CriticSignal {
        CriticSignal {
            kind: kind.into(),
            scores: vec![SampleScore { sample_id: "a".into(), score: 3.0 }],
            kl_coef,
            kl_kind: "k1".into(),
            clip,
            gamma: 1.0,
            lambda: 0.5,
            ..CriticSignal::default()
        }
    }

    fn sample() -> ResponseSample {
        ResponseSample {
            id: "a".into(),
            prompt_ids: vec![1],
            response_ids: vec![2, 3],
            rollout_logps: vec![-1.0, -1.0],
        }
    }

    /// log p of the reference: the KL of the tokens is 1 and 2.
    const REFERENCE: [f32; 2] = [-2.0, -3.0];
    const VALUES: [f32; 2] = [0.5, 1.0];

    #[test]
    fn token_rewards_and_gae_by_hand() {
        // Rewards -0.1, -0.2 + 3 = 2.8. Deltas 2.8 - 1 = 1.8 and -0.1 + 1 - 0.5 = 0.4;
        // advantages 1.8 and 0.4 + 0.5 * 1.8 = 1.3; returns 2.8 and 1.8.
        let reward = Signal::new(&signal("reward", 0.1, 0.0)).unwrap();
        let got = reward.of_tokens(&sample(), Some(&REFERENCE), &VALUES).unwrap();
        let near = |got: &[f64], expected: &[f64]| {
            let near = got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-9);
            assert!(got.len() == expected.len() && near, "{got:?} vs {expected:?}");
        };
        near(&got.advantages, &[1.3, 1.8]);
        near(&got.returns, &[1.8, 2.8]);
        near(&[got.reward_sum], &[2.7]);
        // A cost goes up with the KL: 0.1, 3.2, of which at most 2 count.
        let cost = Signal::new(&signal("cost", 0.1, 2.0)).unwrap();
        let got = cost.of_tokens(&sample(), Some(&REFERENCE), &VALUES).unwrap();
        near(&[got.reward_sum], &[2.1]);
        near(&got.advantages, &[0.6 + 0.5 * 1.0, 1.0]);
    }

    #[test]
    fn two_critics_are_mixed_by_the_multiplier_and_whitened_where_asked() {
        let request = |whiten, cost_weight| UpdateRequest {
            critics: vec![signal("reward", 0.0, 0.0), signal("cost", 0.0, 0.0)],
            cost_weight,
            whiten,
            ..UpdateRequest::default()
        };
        let advantages = |request: &UpdateRequest, reward: [f32; 2], cost: [f32; 2]| {
            let critics = CriticAdvantages::new(request).unwrap().unwrap();
            let mut samples = [PolicySample { sample: sample(), ..PolicySample::default() }];
            let values = |v: [f32; 2]| [("a".to_owned(), v.to_vec())].into();
            critics.advantages(&mut samples, &values(reward), &values(cost)).unwrap();
            samples[0].advantages.clone()
        };
        // Reward: deltas 3 - 1 = 2, 1 - 0.5 = 0.5: 2, 1.5. Cost: 3 - 2 = 1, 2 - 2 = 0: 1, 0.5.
        // lambda 2: (1.5 - 1) / 3, (2 - 2) / 3.
        let got = advantages(&request(false, 2.0), VALUES, [2.0, 2.0]);
        assert!((got[0] - 1.0 / 6.0).abs() < 1e-6 && got[1].abs() < 1e-6, "{got:?}");
        // Two tokens, whitened with the unbiased variance: ±1/sqrt 2.
        let got = advantages(&request(true, 2.0), VALUES, [2.0, 2.0]);
        let half = 0.5f32.sqrt();
        assert!((got[0] - half).abs() < 1e-3 && (got[1] + half).abs() < 1e-3, "{got:?}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |spec: &CriticSignal| Signal::new(spec).err().unwrap().message().to_owned();
        assert!(refused(&signal("score", 0.0, 0.0)).contains("critic.kind"));
        assert!(refused(&signal("cost", -1.0, 0.0)).contains("critic.kl_coef"));
        assert!(refused(&signal("cost", 0.0, f64::NAN)).contains("critic.clip"));
        let reward = Signal::new(&signal("reward", 0.1, 0.0)).unwrap();
        let told = |reference: Option<&[f32]>, values: &[f32]| {
            reward.of_tokens(&sample(), reference, values).unwrap_err().message().to_owned()
        };
        assert!(told(None, &VALUES).contains("reference_logps"));
        assert!(told(Some(&REFERENCE), &VALUES[..1]).contains("2 tokens but 1 values"));
        let alone =
            UpdateRequest { critics: vec![signal("cost", 0.0, 0.0)], ..UpdateRequest::default() };
        let message = CriticAdvantages::new(&alone).err().unwrap().message().to_owned();
        assert!(message.contains("critics: expected the reward's"), "{message}");
        assert!(CriticAdvantages::new(&UpdateRequest::default()).unwrap().is_none());
    }
}
