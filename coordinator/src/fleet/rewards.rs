//! Scoring by the reward group.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use plumb_config::{ComponentKind, Recipe};
use plumb_domain::Epoch;
use plumb_proto::reward::reward_service_client::RewardServiceClient;
use plumb_proto::reward::{
    Component, LabelMix, LoadRequest, Rule, ScoreRequest, SequenceClassifier, component,
};

use super::RoleGroup;
use super::group::CallId;
use crate::cluster::Worker;
use crate::ports::{Answer, Generation, PhaseError, PhaseKey, Rewards, SampleScores};

/// The reward group with its components loaded.
pub struct RewardFleet {
    group: Arc<RoleGroup>,
    components: Vec<Component>,
    mixes: Vec<LabelMix>,
    loaded: Mutex<BTreeMap<String, Epoch>>,
}

impl RewardFleet {
    /// Loads the recipe's components into every reward worker. `model_path` turns a recipe's
    /// model name into a folder.
    ///
    /// # Errors
    /// A worker was lost or refused a component.
    pub async fn load(
        group: Arc<RoleGroup>,
        recipe: &Recipe,
        model_path: impl Fn(&str) -> PathBuf,
    ) -> Result<Self, PhaseError> {
        let components = recipe
            .reward
            .component
            .iter()
            .map(|c| component(c, recipe, &model_path))
            .collect::<Result<Vec<_>, _>>()?;
        let fleet =
            Self { group, components, mixes: label_mixes(recipe), loaded: Mutex::default() };
        fleet.load_missing().await?;
        Ok(fleet)
    }

    /// The workers.
    #[must_use]
    pub fn group(&self) -> &Arc<RoleGroup> {
        &self.group
    }

    /// Loads the components into workers whose current epoch does not have them.
    ///
    /// # Errors
    /// As [`RewardFleet::load`].
    pub async fn load_missing(&self) -> Result<(), PhaseError> {
        let missing: Vec<Worker> = {
            let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let has = |w: &Worker| loaded.get(w.id().as_str()) == Some(&w.epoch());
            self.group.workers().into_iter().filter(|w| !has(w)).collect()
        };
        let attempt = self.group.fresh_attempt();
        self.group
            .call_all(&missing, "load", |worker, shard| {
                let id = CallId { step: 0, phase: "load", shard, attempt };
                let request = LoadRequest {
                    context: Some(self.group.context(&worker, &id)),
                    components: self.components.clone(),
                };
                async move { client(&worker).load(request).await.map(tonic::Response::into_inner) }
            })
            .await?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        for worker in missing {
            loaded.insert(worker.id().to_string(), worker.epoch());
        }
        Ok(())
    }

    async fn scores(
        &self,
        key: PhaseKey,
        generation: &Generation,
    ) -> Result<Vec<SampleScores>, PhaseError> {
        let objects = generation.objects();
        let workers = self.group.workers();
        let busy: Vec<Worker> = workers.iter().take(objects.len()).cloned().collect();
        let answers = self
            .group
            .call_all(&busy, key.phase.as_str(), |worker, shard| {
                let id = CallId {
                    step: key.step.0,
                    phase: key.phase.as_str(),
                    shard,
                    attempt: key.attempt,
                };
                let mine = objects.iter().skip(shard as usize).step_by(busy.len());
                let request = ScoreRequest {
                    context: Some(self.group.context(&worker, &id)),
                    samples: mine.cloned().collect(),
                    labels: self.mixes.clone(),
                };
                async move { client(&worker).score(request).await.map(tonic::Response::into_inner) }
            })
            .await?;
        let scores = answers.into_iter().flat_map(|a| a.scores).map(|sample| SampleScores {
            sample_id: sample.sample_id,
            scores: sample
                .scores
                .into_iter()
                .map(|s| (s.component, s.error.map_or(Ok(s.score), Err)))
                .collect(),
        });
        Ok(scores.collect())
    }
}

impl Rewards for RewardFleet {
    fn score<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
    ) -> Answer<'a, Vec<SampleScores>> {
        Box::pin(self.scores(key, generation))
    }
}

fn client(worker: &Worker) -> RewardServiceClient<tonic::transport::Channel> {
    RewardServiceClient::new(worker.channel())
        .max_decoding_message_size(plumb_runtime::MAX_MESSAGE_BYTES)
}

/// Label -> the components that it needs: its mix, what a measure asks of it, and the cost of a
/// constraint.
fn label_mixes(recipe: &Recipe) -> Vec<LabelMix> {
    let mut mixes: BTreeMap<String, Vec<String>> = recipe
        .reward
        .mix
        .iter()
        .map(|(label, mix)| (label.clone(), mix.keys().cloned().collect()))
        .collect();
    for stage in &recipe.stage {
        let plumb_config::Stage::Evaluate(stage) = stage else { continue };
        for measure in &stage.measure {
            let Some(component) = &measure.component else { continue };
            for (label, components) in &mut mixes {
                let wanted = measure.label.as_ref().is_none_or(|l| l == label);
                if wanted && !components.contains(component) {
                    components.push(component.clone());
                }
            }
        }
    }
    // A cost is one of answers of any label.
    if let Some(lagrange) = &recipe.algorithm.lagrange {
        for components in mixes.values_mut().filter(|all| !all.contains(&lagrange.cost)) {
            components.push(lagrange.cost.clone());
        }
    }
    mixes.into_iter().map(|(label, components)| LabelMix { label, components }).collect()
}

fn component(
    config: &plumb_config::Component,
    recipe: &Recipe,
    model_path: &impl Fn(&str) -> PathBuf,
) -> Result<Component, PhaseError> {
    let kind = match config.kind {
        ComponentKind::SequenceClassifier => {
            let path: PathBuf = config.model.as_deref().map(model_path).unwrap_or_default();
            component::Kind::SequenceClassifier(classifier(config, recipe, &path))
        }
        ComponentKind::Rule => component::Kind::Rule(Rule { json: rule_json(config)? }),
    };
    Ok(Component {
        name: config.name.clone(),
        timeout_millis: (config.timeout_secs * 1e3) as u32,
        kind: Some(kind),
    })
}

fn classifier(
    config: &plumb_config::Component,
    recipe: &Recipe,
    path: &Path,
) -> SequenceClassifier {
    SequenceClassifier {
        model_path: path.display().to_string(),
        dtype: config.dtype.unwrap_or(recipe.model.dtype).as_str().to_owned(),
        transform: config.transform.unwrap_or_default().as_str().to_owned(),
        micro_batch_tokens: recipe.reward.micro_batch_tokens,
        input: config.input.unwrap_or_default().as_str().to_owned(),
    }
}

fn rule_json(config: &plumb_config::Component) -> Result<String, PhaseError> {
    let rule = config.rule.clone().unwrap_or_default();
    serde_json::to_string(&rule)
        .map_err(|e| PhaseError::Failed(format!("rule of component {:?}: {e}", config.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_needs_its_mix_and_what_is_measured_on_it() {
        let text = concat!(
            include_str!("../stage/testdata/recipe.toml"),
            "[[stage]]\nkind = \"evaluate\"\nname = \"after\"\nsamples_per_prompt = 1\n",
            "[[stage.measure]]\nname = \"m\"\nlabel = \"general\"\ncomponent = \"safe\"\n"
        );
        let recipe = Recipe::from_toml(text, Path::new("r"), &[]).unwrap();
        let mixes = label_mixes(&recipe);
        let general = mixes.iter().find(|m| m.label == "general").unwrap();
        assert_eq!(general.components, ["style", "safe"]);
        let safety = mixes.iter().find(|m| m.label == "safety").unwrap();
        assert_eq!(safety.components, ["safe", "style"]);
    }
}
