//! The RPCs of a critic: values of responses, and learning from what came of them.

use plumb_engine::{ValueSample, ValueUpdate};
use plumb_loss::value::ValueLoss;
use plumb_proto::actor::{MetricsResponse, UpdateValuesRequest, ValuesRequest, ValuesResponse};
use plumb_proto::object::{ValueBatch, Values};
use plumb_proto::worker::CallContext;
use tonic::Status;

use crate::convert::invalid;
use crate::samples::{fetch_log_probs, fetch_samples, take};
use crate::service::ActorCalls;
use crate::signal::Signal;

impl ActorCalls {
    pub(crate) async fn values(
        &self,
        call: CallContext,
        request: ValuesRequest,
    ) -> Result<ValuesResponse, Status> {
        let all = fetch_samples(&self.context, &request.samples).await?;
        let rows = self
            .on_model(move |model| {
                let rows = plumb_engine::values(model, &all)?;
                let row = |row: plumb_engine::ResponseValues| Values {
                    sample_id: all[row.index].id.clone(),
                    values: row.values,
                };
                Ok(rows.into_iter().map(row).collect::<Vec<_>>())
            })
            .await?;
        let samples = rows.len() as u32;
        let name = format!("{}/{}/{}/values", call.phase, call.shard, call.attempt);
        let batch = ValueBatch { rows };
        let values = self.context.objects().put_message(call.step, &name, &batch)?;
        Ok(ValuesResponse { values: Some(values), samples })
    }

    pub(crate) async fn update_values(
        &self,
        _: CallContext,
        request: UpdateValuesRequest,
    ) -> Result<MetricsResponse, Status> {
        let update = value_update(&request)?;
        let signal = request.signal.as_ref().ok_or_else(|| invalid("signal", "is missing"))?;
        let signal = Signal::new(signal)?;
        let (samples, sums) = self.learnt(&request, &signal).await?;
        let count = samples.len().max(1) as f64;
        let mut metrics = self
            .on_model(move |model| {
                let metrics = plumb_engine::update_values(model, &samples, &update);
                plumb_torch::allocator::give_back();
                metrics
            })
            .await?;
        metrics.insert("advantage_mean".to_owned(), sums.advantage / sums.tokens.max(1.0));
        metrics.insert("score_with_kl_mean".to_owned(), sums.reward / count);
        Ok(MetricsResponse { metrics: metrics.into_iter().collect() })
    }

    /// The samples that count, with their old values and returns.
    async fn learnt(
        &self,
        request: &UpdateValuesRequest,
        signal: &Signal,
    ) -> Result<(Vec<ValueSample>, Sums), Status> {
        let mut values = signal.fetch_values(&self.context).await?;
        let mut reference = fetch_log_probs(&self.context, &request.reference_logps).await?;
        let (mut learnt, mut sums) = (Vec::new(), Sums::default());
        for sample in fetch_samples(&self.context, &request.samples).await? {
            if signal.score_of(&sample.id).is_none() {
                continue;
            }
            let needs_reference = signal.needs_reference();
            let reference = take(&mut reference, &sample, "reference_logps", needs_reference)?;
            let old_values = take(&mut values, &sample, "signal.values", true)?;
            let old_values = old_values.unwrap_or_default();
            let tokens = signal.of_tokens(&sample, reference.as_deref(), &old_values)?;
            sums.reward += tokens.reward_sum;
            sums.advantage += tokens.advantages.iter().sum::<f64>();
            sums.tokens += tokens.advantages.len() as f64;
            let returns = tokens.returns.into_iter().map(|value| value as f32).collect();
            learnt.push(ValueSample { sample, old_values, returns });
        }
        Ok((learnt, sums))
    }
}

/// Over the samples of all ranks: each of them computes all token rewards.
#[derive(Default)]
struct Sums {
    reward: f64,
    advantage: f64,
    tokens: f64,
}

#[allow(clippy::result_large_err)]
fn value_update(request: &UpdateValuesRequest) -> Result<ValueUpdate, Status> {
    let spec = request.loss.as_ref().ok_or_else(|| invalid("loss", "is missing"))?;
    if !(spec.clip >= 0.0 && spec.clip.is_finite()) {
        return Err(invalid("loss.clip", format!("{}; expected 0 or more", spec.clip)));
    }
    let aggregation =
        spec.aggregation.parse().map_err(|error| invalid("loss.aggregation", error))?;
    Ok(ValueUpdate {
        loss: ValueLoss { clip: (spec.clip > 0.0).then_some(spec.clip), aggregation },
        norm_tokens: spec.norm_tokens,
        mini_batches: request.mini_batches as usize,
        epochs: request.epochs as usize,
        learning_rate: request.learning_rate,
    })
}

#[cfg(test)]
mod tests {
    use plumb_loss::aggregate::Aggregation;
    use plumb_proto::actor::ValueLossSpec;

    use super::*;

    fn request(clip: f64, aggregation: &str) -> UpdateValuesRequest {
        let aggregation = aggregation.to_owned();
        UpdateValuesRequest {
            loss: Some(ValueLossSpec { clip, aggregation, norm_tokens: 7.0 }),
            mini_batches: 2,
            epochs: 3,
            learning_rate: 1e-4,
            ..UpdateValuesRequest::default()
        }
    }

    #[test]
    fn an_update_keeps_every_setting_and_a_wrong_one_is_named() {
        let update = value_update(&request(0.2, "token-mean")).unwrap();
        let loss = ValueLoss { clip: Some(0.2), aggregation: Aggregation::TokenMean };
        assert_eq!((update.loss, update.norm_tokens), (loss, 7.0));
        assert_eq!((update.mini_batches, update.epochs, update.learning_rate), (2, 3, 1e-4));
        assert_eq!(value_update(&request(0.0, "token-mean")).unwrap().loss.clip, None);
        let refused =
            |request: &UpdateValuesRequest| value_update(request).unwrap_err().message().to_owned();
        assert!(refused(&request(-1.0, "token-mean")).contains("loss.clip"));
        assert!(refused(&request(0.2, "mean")).contains("loss.aggregation"));
    }
}
