//! From requests to the engine's types, checked.

use std::path::PathBuf;

use plumb_engine::{
    AdamWSettings, EmaSettings, EngineSettings, LoadPlan, LoraPlan, Offload, OldLogProbs,
    ParameterGroup, PolicyUpdate,
};
use plumb_model::{HeadSpec, LoraConfig, LoraTarget, ScoreHead};
use plumb_proto::actor::{
    EmaSpec, EngineSpec, LoadRequest, LoraSpec, OptimizerSpec, ScoreHeadSpec, UpdateRequest,
};
use tch::Device;
use tonic::Status;

use crate::loss;

/// A refusal that names the field.
pub(crate) fn invalid(field: &str, problem: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {problem}"))
}

/// `cpu` or `cuda:<index>`.
///
/// # Errors
/// Names what was given.
pub(crate) fn device(name: &str) -> anyhow::Result<Device> {
    match name.strip_prefix("cuda:") {
        _ if name == "cpu" => Ok(Device::Cpu),
        Some(index) => match index.parse() {
            Ok(index) => Ok(Device::Cuda(index)),
            Err(_) => anyhow::bail!("device {name:?}: expected cuda:<index>, for example cuda:0"),
        },
        None => anyhow::bail!("device {name:?}: expected cpu or cuda:<index>"),
    }
}

/// What to load.
#[allow(clippy::result_large_err)]
pub(crate) fn load_plan(request: &LoadRequest, device: Device) -> Result<LoadPlan, Status> {
    let engine = request.engine.as_ref().ok_or_else(|| invalid("engine", "is missing"))?;
    let head = match &request.score_head {
        None => HeadSpec::CausalLm,
        Some(spec) => HeadSpec::Score(score_head(spec)?),
    };
    Ok(LoadPlan {
        head,
        head_seed: request.score_head.as_ref().map_or(0, |spec| spec.init_seed),
        settings: engine_settings(engine, device)?,
        optimizer: request.optimizer.as_ref().map(optimizer).transpose()?,
        lora: request.lora.as_ref().map(lora).transpose()?,
        ema: request.optimizer.as_ref().and_then(|spec| spec.ema.as_ref()).map(ema),
    })
}

#[allow(clippy::result_large_err)]
fn engine_settings(spec: &EngineSpec, device: Device) -> Result<EngineSettings, Status> {
    let precision = |field, name: &str| name.parse().map_err(|error| invalid(field, error));
    Ok(EngineSettings {
        compute: precision("engine.compute_dtype", &spec.compute_dtype)?,
        reduce: precision("engine.reduce_dtype", &spec.reduce_dtype)?,
        recompute: spec.recompute,
        reshard_after_forward: spec.reshard_after_forward,
        micro_batch_tokens: spec.micro_batch_tokens as usize,
        one_sample_a_pass: spec.one_sample_a_pass,
        frozen_layers: spec.frozen_layers as usize,
        device,
        offload: offload(spec, device)?,
    })
}

/// Refuses to offload from the CPU, where it would have no effect.
#[allow(clippy::result_large_err)]
fn offload(spec: &EngineSpec, device: Device) -> Result<Offload, Status> {
    let offload =
        Offload { optimizer: spec.offload_optimizer, parameters: spec.offload_parameters };
    match device {
        Device::Cpu if offload != Offload::default() => {
            let problem = "this worker computes on the CPU, whose memory is the host's; give its \
                           group a GPU, or leave engine.offload out";
            Err(invalid("engine.offload", problem))
        }
        _ => Ok(offload),
    }
}

#[allow(clippy::result_large_err)]
fn lora(spec: &LoraSpec) -> Result<LoraPlan, Status> {
    let targets = spec.targets.iter().map(|name| name.parse::<LoraTarget>());
    let targets = targets.collect::<Result<Vec<_>, _>>().map_err(|e| invalid("lora.targets", e))?;
    let config = LoraConfig::new(i64::from(spec.rank), spec.alpha, spec.dropout, &targets)
        .map_err(|error| invalid("lora", error))?;
    let folder = (!spec.adapter_path.is_empty()).then(|| PathBuf::from(&spec.adapter_path));
    Ok(LoraPlan { config, seed: spec.seed, folder })
}

fn ema(spec: &EmaSpec) -> EmaSettings {
    EmaSettings { decay: spec.decay, interval: spec.interval }
}

fn group(group: &plumb_proto::actor::ParameterGroup) -> ParameterGroup {
    ParameterGroup {
        pattern: group.pattern.clone(),
        learning_rate_scale: group.learning_rate_scale,
        weight_decay: group.weight_decay,
    }
}

#[allow(clippy::result_large_err)]
fn optimizer(spec: &OptimizerSpec) -> Result<AdamWSettings, Status> {
    Ok(AdamWSettings {
        beta1: spec.beta1,
        beta2: spec.beta2,
        eps: spec.eps,
        weight_decay: spec.weight_decay,
        max_grad_norm: spec.max_grad_norm,
        max_skipped_steps: spec.max_skipped_steps,
        freeze: spec.freeze.clone(),
        groups: spec.groups.iter().map(group).collect(),
        state: spec.state.parse().map_err(|error| invalid("optimizer.state", error))?,
    })
}

#[allow(clippy::result_large_err)]
fn score_head(spec: &ScoreHeadSpec) -> Result<ScoreHead, Status> {
    match spec.kind.as_str() {
        "linear" => Ok(ScoreHead::Linear),
        "mlp" if spec.hidden_dims.is_empty() || spec.hidden_dims.contains(&0) => {
            let dims = &spec.hidden_dims;
            Err(invalid("score_head.hidden_dims", format!("{dims:?}; expected widths above 0")))
        }
        "mlp" => Ok(ScoreHead::Mlp {
            hidden_dims: spec.hidden_dims.iter().map(|&dim| i64::from(dim)).collect(),
        }),
        other => Err(invalid("score_head.kind", format!("{other:?}; expected linear or mlp"))),
    }
}

/// What an update does.
#[allow(clippy::result_large_err)]
pub(crate) fn policy_update(request: &UpdateRequest) -> Result<PolicyUpdate, Status> {
    let spec = request.loss.as_ref().ok_or_else(|| invalid("loss", "is missing"))?;
    let old_logps = match request.old_logps_source.as_str() {
        "rollout" => OldLogProbs::Rollout,
        "recompute" => OldLogProbs::Recomputed,
        "current" => OldLogProbs::Current,
        other => {
            let problem = format!("{other:?}; expected rollout, recompute or current");
            return Err(invalid("old_logps_source", problem));
        }
    };
    let steps = request.mini_batches.saturating_mul(request.epochs);
    if old_logps == OldLogProbs::Current && steps > 1 {
        let problem = format!(
            "\"current\" makes every ratio 1, which is right for one optimiser step; this update \
             makes {steps}. Use rollout or recompute"
        );
        return Err(invalid("old_logps_source", problem));
    }
    let importance = loss::importance(spec)?;
    if importance.is_some() && old_logps == OldLogProbs::Rollout {
        let problem = "\"rollout\" makes every importance weight 1. Use recompute or current";
        return Err(invalid("old_logps_source", problem));
    }
    Ok(PolicyUpdate {
        objective: loss::objective(spec)?,
        importance,
        norm_tokens: spec.norm_tokens,
        old_logps,
        mini_batches: request.mini_batches as usize,
        epochs: request.epochs as usize,
        learning_rate: request.learning_rate,
        temperature: request.temperature,
    })
}

#[cfg(test)]
mod tests {
    use plumb_loss::kl::{Clamps, Kind as KlKind};
    use plumb_loss::policy::PolicyTerm;
    use plumb_proto::actor::PolicyLossSpec;

    use super::*;

    fn update() -> UpdateRequest {
        UpdateRequest {
            loss: Some(PolicyLossSpec {
                kind: "ppo_clip".into(),
                clip_low: 0.2,
                clip_high: 0.28,
                dual_clip: 3.0,
                kl_coef: 0.01,
                kl_kind: "k3".into(),
                verl_clamps: true,
                aggregation: "token-mean".into(),
                ..PolicyLossSpec::default()
            }),
            mini_batches: 2,
            epochs: 1,
            learning_rate: 1e-6,
            temperature: 1.0,
            old_logps_source: "rollout".into(),
            ..UpdateRequest::default()
        }
    }

    #[test]
    fn an_update_keeps_every_setting() {
        let converted = policy_update(&update()).unwrap();
        let PolicyTerm::PpoClip(clip) = converted.objective.policy else { panic!("another term") };
        assert_eq!(
            (clip.clip_high, clip.dual_clip, clip.log_ratio_bound),
            (0.28, Some(3.0), Some(20.0))
        );
        let kl = converted.objective.kl.unwrap();
        assert_eq!((kl.coef, kl.kind, kl.clamps), (0.01, KlKind::K3, Clamps::Verl));
        assert_eq!((converted.mini_batches, converted.old_logps), (2, OldLogProbs::Rollout));
    }

    #[test]
    fn an_adapter_keeps_every_setting_and_a_wrong_one_is_named() {
        let spec = LoraSpec {
            rank: 8,
            alpha: 16.0,
            dropout: 0.05,
            targets: vec!["v_proj".into(), "q_proj".into()],
            seed: 3,
            adapter_path: "adapter".into(),
        };
        let plan = lora(&spec).unwrap();
        assert_eq!((plan.config.rank, plan.config.scale(), plan.config.dropout), (8, 2.0, 0.05));
        assert_eq!(plan.config.targets, [LoraTarget::Q, LoraTarget::V]);
        assert_eq!((plan.seed, plan.folder), (3, Some(PathBuf::from("adapter"))));
        let wrong = LoraSpec { targets: vec!["qkv".into()], ..spec };
        let message = lora(&wrong).unwrap_err().message().to_owned();
        assert!(message.contains("lora.targets") && message.contains("qkv"), "{message}");
    }

    #[test]
    fn nothing_is_offloaded_from_the_cpu() {
        let spec = EngineSpec { offload_optimizer: true, ..EngineSpec::default() };
        let message = offload(&spec, Device::Cpu).unwrap_err().message().to_owned();
        assert!(message.contains("engine.offload") && message.contains("CPU"), "{message}");
        let offload = offload(&spec, Device::Cuda(0)).unwrap();
        assert_eq!(offload, Offload { optimizer: true, parameters: false });
        assert!(super::offload(&EngineSpec::default(), Device::Cpu).is_ok());
    }

    #[test]
    fn wrong_values_are_named() {
        let refused = |change: fn(&mut UpdateRequest)| {
            let mut request = update();
            change(&mut request);
            policy_update(&request).unwrap_err().message().to_owned()
        };
        let message = refused(|r| r.old_logps_source = "latest".into());
        assert!(message.contains("latest") && message.contains("recompute"), "{message}");
        let message = refused(|r| r.old_logps_source = "current".into());
        assert!(message.contains("makes 2"), "{message}");
        let message = refused(|r| r.loss.as_mut().unwrap().aggregation = "mean".into());
        assert!(message.contains("loss.aggregation") && message.contains("mean"), "{message}");
        assert!(device("gpu").unwrap_err().to_string().contains("gpu"));
        assert_eq!(device("cuda:1").unwrap(), Device::Cuda(1));
    }
}
