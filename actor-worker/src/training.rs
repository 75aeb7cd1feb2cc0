//! The RPCs of supervised and preference training, and those that prepare their data.

use std::path::PathBuf;

use plumb_domain::ChatMessage;
use plumb_engine::{
    AnswerLogProbs, AnswerPair, Metrics, PairMargin, PairScores, PreferenceObjective, ScoreLoss,
    TargetText, TextPair,
};
use plumb_loss::preference::{Cost, Pairwise, Pop, PopFixed};
use plumb_proto::actor::{
    self, AnswerLogProbsRequest, AnswerLogProbsResponse, EncodeRequest, EncodeResponse,
    MeasurePreferencesRequest, MeasureTextsRequest, MetricsResponse, PairScore, PairValues,
    PreferenceLossSpec, ScorePairsRequest, ScorePairsResponse, TokenSpan, TrainPairsRequest,
    TrainPairsResponse, TrainPreferencesRequest, TrainTextsRequest,
};
use plumb_proto::worker::CallContext;
use tonic::Status;

use crate::convert::invalid;
use crate::service::ActorCalls;

impl ActorCalls {
    pub(crate) async fn encode(
        &self,
        _: CallContext,
        request: EncodeRequest,
    ) -> Result<EncodeResponse, Status> {
        let loaded = self.dialogues.clone();
        let encode = move || {
            let dialogues = loaded.of(&PathBuf::from(request.model_path))?;
            let texts = request.dialogues.into_iter().map(|dialogue| {
                let message = |m: actor::Message| ChatMessage { role: m.role, content: m.content };
                let messages: Vec<_> = dialogue.messages.into_iter().map(message).collect();
                let (ids, targets) = dialogues.encode(&dialogue.id, &messages)?;
                let span = |range: std::ops::Range<usize>| TokenSpan {
                    first: range.start as u32,
                    end: range.end as u32,
                };
                let targets = targets.into_iter().map(span).collect();
                Ok(actor::TargetText { id: dialogue.id, ids, targets })
            });
            texts.collect::<Result<Vec<_>, crate::dialogue::DialogueError>>()
        };
        let texts = tokio::task::spawn_blocking(encode)
            .await
            .map_err(|error| Status::internal(format!("encoding dialogues: {error}")))?
            .map_err(|error| Status::invalid_argument(plumb_runtime::chain(&error)))?;
        Ok(EncodeResponse { texts })
    }

    pub(crate) async fn train_texts(
        &self,
        _: CallContext,
        request: TrainTextsRequest,
    ) -> Result<MetricsResponse, Status> {
        let (texts, rate) = (target_texts(request.texts), request.learning_rate);
        let weight = request.weight.unwrap_or(1.0);
        let train =
            move |model: &mut _| plumb_engine::train_weighted_texts(model, &texts, weight, rate);
        Ok(response(self.on_model(train).await?))
    }

    pub(crate) async fn measure_texts(
        &self,
        _: CallContext,
        request: MeasureTextsRequest,
    ) -> Result<MetricsResponse, Status> {
        let texts = target_texts(request.texts);
        let measure = move |model: &mut _| plumb_engine::measure_texts(model, &texts);
        Ok(response(self.on_model(measure).await?))
    }

    pub(crate) async fn answer_log_probs(
        &self,
        _: CallContext,
        request: AnswerLogProbsRequest,
    ) -> Result<AnswerLogProbsResponse, Status> {
        let pairs = answer_pairs(request.pairs);
        let rows = self
            .on_model(move |model| {
                let rows = plumb_engine::answer_log_probs(model, &pairs)?;
                let row = |(index, logps): (usize, AnswerLogProbs)| actor::AnswerLogProbs {
                    id: pairs[index].id.clone(),
                    logps: Some(PairValues { better: logps.better, worse: logps.worse }),
                };
                Ok(rows.into_iter().map(row).collect())
            })
            .await?;
        Ok(AnswerLogProbsResponse { rows })
    }

    pub(crate) async fn train_preferences(
        &self,
        _: CallContext,
        request: TrainPreferencesRequest,
    ) -> Result<MetricsResponse, Status> {
        let objective = preference_objective(request.loss.as_ref())?;
        let (pairs, rate) = (answer_pairs(request.pairs), request.learning_rate);
        let train =
            move |model: &mut _| plumb_engine::train_preferences(model, &pairs, &objective, rate);
        Ok(response(self.on_model(train).await?))
    }

    pub(crate) async fn measure_preferences(
        &self,
        _: CallContext,
        request: MeasurePreferencesRequest,
    ) -> Result<MetricsResponse, Status> {
        let objective = preference_objective(request.loss.as_ref())?;
        let pairs = answer_pairs(request.pairs);
        let measure =
            move |model: &mut _| plumb_engine::measure_preferences(model, &pairs, &objective);
        Ok(response(self.on_model(measure).await?))
    }

    pub(crate) async fn train_pairs(
        &self,
        _: CallContext,
        request: TrainPairsRequest,
    ) -> Result<TrainPairsResponse, Status> {
        let (loss, rate) = (score_loss(&request)?, request.learning_rate);
        let pairs = text_pairs(request.pairs);
        let train = move |model: &mut _| plumb_engine::train_pairs(model, &pairs, &loss, rate);
        let metrics = self.on_model(train).await?;
        Ok(TrainPairsResponse { metrics: metrics.into_iter().collect() })
    }

    pub(crate) async fn score_pairs(
        &self,
        _: CallContext,
        request: ScorePairsRequest,
    ) -> Result<ScorePairsResponse, Status> {
        let pairs = text_pairs(request.pairs);
        let scores = self
            .on_model(move |model| {
                let rows = plumb_engine::score_pairs(model, &pairs)?;
                let score = |row: PairScores| PairScore {
                    id: pairs[row.index].id.clone(),
                    better: row.better,
                    worse: row.worse,
                };
                Ok(rows.into_iter().map(score).collect())
            })
            .await?;
        Ok(ScorePairsResponse { scores })
    }
}

fn response(metrics: Metrics) -> MetricsResponse {
    MetricsResponse { metrics: metrics.into_iter().collect() }
}

fn target_texts(texts: Vec<actor::TargetText>) -> Vec<TargetText> {
    let range = |span: TokenSpan| span.first as usize..span.end as usize;
    let convert = |text: actor::TargetText| TargetText {
        id: text.id,
        ids: text.ids,
        targets: text.targets.into_iter().map(range).collect(),
    };
    texts.into_iter().map(convert).collect()
}

fn answer_pairs(pairs: Vec<actor::AnswerPair>) -> Vec<AnswerPair> {
    pairs.into_iter().map(answer_pair).collect()
}

fn answer_pair(pair: actor::AnswerPair) -> AnswerPair {
    let reference = |logps: PairValues| AnswerLogProbs { better: logps.better, worse: logps.worse };
    // One level deep: an unpreferred pair's own is not read.
    let unpreferred =
        pair.unpreferred.map(|other| actor::AnswerPair { unpreferred: None, ..*other });
    AnswerPair {
        id: pair.id,
        prompt_ids: pair.prompt_ids,
        better_ids: pair.better_ids,
        worse_ids: pair.worse_ids,
        reference: pair.reference.map(reference),
        margin: pair.margin,
        unpreferred: unpreferred.map(answer_pair).map(Box::new),
    }
}

fn text_pairs(pairs: Vec<actor::TextPair>) -> Vec<TextPair> {
    let convert = |pair: actor::TextPair| TextPair {
        id: pair.id,
        better_ids: pair.better_ids,
        worse_ids: pair.worse_ids,
        safe: pair.safe.map(|safe| [safe.better, safe.worse]),
    };
    pairs.into_iter().map(convert).collect()
}

#[allow(clippy::result_large_err)]
fn preference_objective(spec: Option<&PreferenceLossSpec>) -> Result<PreferenceObjective, Status> {
    let spec = spec.ok_or_else(|| invalid("loss", "is missing"))?;
    let PreferenceLossSpec { beta, label_smoothing, lambda, margin_min, margin_max, .. } = *spec;
    let margin = if spec.own_margins { PairMargin::Own } else { PairMargin::Same(spec.margin) };
    match spec.kind.as_str() {
        "dpo" => Ok(PreferenceObjective::Dpo { beta, label_smoothing, margin }),
        "ipo" => Ok(PreferenceObjective::Ipo { beta }),
        "simpo" => Ok(PreferenceObjective::SimPo { beta, margin }),
        "pop" => Ok(PreferenceObjective::Pop(Pop { beta, lambda })),
        "pop_fixed" => Ok(PreferenceObjective::PopFixed(PopFixed { beta, margin_min, margin_max })),
        other => {
            let problem = format!("{other:?}; expected dpo, ipo, simpo, pop or pop_fixed");
            Err(invalid("loss.kind", problem))
        }
    }
}

#[allow(clippy::result_large_err)]
fn score_loss(request: &TrainPairsRequest) -> Result<ScoreLoss, Status> {
    let TrainPairsRequest { regularization, sign_terms, token_wise, .. } = *request;
    let (reward, cost) = (Pairwise { regularization }, Cost { regularization, sign_terms });
    match (request.loss.as_str(), token_wise) {
        ("reward", false) => Ok(ScoreLoss::Reward(reward)),
        ("reward", true) => Ok(ScoreLoss::RewardTokens(reward)),
        ("cost", false) => Ok(ScoreLoss::Cost(cost)),
        ("cost", true) => Ok(ScoreLoss::CostTokens(cost)),
        (other, _) => Err(invalid("loss", format!("{other:?}; expected reward or cost"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_keep_their_settings_and_wrong_names_are_told() {
        let spec = |kind: &str| PreferenceLossSpec {
            kind: kind.into(),
            beta: 0.2,
            label_smoothing: 0.1,
            margin: 0.5,
            own_margins: false,
            margin_min: 0.0,
            margin_max: 10.0,
            lambda: 2.0,
        };
        let objective = |kind: &str| preference_objective(Some(&spec(kind)));
        let margin = PairMargin::Same(0.5);
        let (beta, label_smoothing) = (0.2, 0.1);
        let dpo = PreferenceObjective::Dpo { beta, label_smoothing, margin };
        assert_eq!(objective("dpo").unwrap(), dpo);
        assert_eq!(objective("ipo").unwrap(), PreferenceObjective::Ipo { beta });
        assert_eq!(objective("simpo").unwrap(), PreferenceObjective::SimPo { beta, margin });
        let own = PreferenceLossSpec { own_margins: true, ..spec("simpo") };
        let simpo = PreferenceObjective::SimPo { beta, margin: PairMargin::Own };
        assert_eq!(preference_objective(Some(&own)).unwrap(), simpo);
        let pop = PreferenceObjective::Pop(Pop { beta, lambda: 2.0 });
        assert_eq!(objective("pop").unwrap(), pop);
        let fixed = PopFixed { beta, margin_min: 0.0, margin_max: 10.0 };
        assert_eq!(objective("pop_fixed").unwrap(), PreferenceObjective::PopFixed(fixed));
        assert!(objective("orpo").unwrap_err().message().contains("orpo"));
        let request = |loss: &str, token_wise| TrainPairsRequest {
            loss: loss.into(),
            regularization: 0.1,
            sign_terms: true,
            token_wise,
            ..TrainPairsRequest::default()
        };
        let cost = Cost { regularization: 0.1, sign_terms: true };
        assert_eq!(score_loss(&request("cost", false)).unwrap(), ScoreLoss::Cost(cost));
        assert_eq!(score_loss(&request("cost", true)).unwrap(), ScoreLoss::CostTokens(cost));
        let reward = Pairwise { regularization: 0.1 };
        assert_eq!(score_loss(&request("reward", false)).unwrap(), ScoreLoss::Reward(reward));
        assert_eq!(score_loss(&request("reward", true)).unwrap(), ScoreLoss::RewardTokens(reward));
        assert!(score_loss(&request("", false)).unwrap_err().message().contains("reward or cost"));
    }

    #[test]
    fn a_pair_keeps_its_unpreferred_one_and_no_more() {
        let plain = |id: &str| actor::AnswerPair {
            id: id.into(),
            prompt_ids: vec![1],
            reference: Some(PairValues { better: -1.0, worse: -2.0 }),
            margin: Some(0.5),
            ..actor::AnswerPair::default()
        };
        let within = actor::AnswerPair { unpreferred: Some(Box::new(plain("c"))), ..plain("b") };
        let whole = actor::AnswerPair { unpreferred: Some(Box::new(within)), ..plain("a") };
        let pair = answer_pairs(vec![whole]).remove(0);
        assert_eq!((pair.id.as_str(), pair.margin), ("a", Some(0.5)));
        let other = pair.unpreferred.unwrap();
        assert_eq!((other.id.as_str(), other.unpreferred), ("b", None));
        assert_eq!(other.reference, Some(AnswerLogProbs { better: -1.0, worse: -2.0 }));
    }
}
