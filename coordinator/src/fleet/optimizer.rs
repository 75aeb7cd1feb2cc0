//! The optimiser as a recipe sets it, on the wire: the one place where a worker's
//! [`OptimizerSpec`] is made.

use plumb_config::{EmaConfig, OptimizerConfig, ParameterGroupConfig};
use plumb_proto::actor::{AdoptAverageRequest, EmaSpec, OptimizerSpec, ParameterGroup};

use super::RoleGroup;
use super::group::CallId;
use super::reference::client;
use crate::ports::PhaseError;

/// What every rank that trains is loaded with.
pub(super) fn optimizer_spec(config: &OptimizerConfig) -> OptimizerSpec {
    OptimizerSpec {
        learning_rate: config.learning_rate,
        beta1: config.betas[0],
        beta2: config.betas[1],
        eps: config.eps,
        weight_decay: config.weight_decay,
        max_grad_norm: config.max_grad_norm,
        max_skipped_steps: config.max_skipped_steps,
        freeze: config.freeze.clone(),
        state: config.state.as_str().to_owned(),
        groups: config.group.iter().map(|group| parameter_group(group, config)).collect(),
        ema: config.ema.as_ref().map(ema_spec),
    }
}

fn parameter_group(group: &ParameterGroupConfig, all: &OptimizerConfig) -> ParameterGroup {
    ParameterGroup {
        pattern: group.pattern.clone(),
        learning_rate_scale: group.scale(all.learning_rate),
        weight_decay: group.weight_decay,
    }
}

fn ema_spec(config: &EmaConfig) -> EmaSpec {
    EmaSpec { decay: config.decay, interval: config.interval }
}

/// Puts the moving average of a group's model in the place of its parameters.
pub(super) async fn adopt_average(group: &RoleGroup) -> Result<(), PhaseError> {
    let workers = group.workers();
    let attempt = group.fresh_attempt();
    group
        .call_all(&workers, "adopt_average", |worker, shard| {
            let id = CallId { step: 0, phase: "adopt_average", shard, attempt };
            let request = AdoptAverageRequest { context: Some(group.context(&worker, &id)) };
            async move { Ok(client(&worker).adopt_average(request).await?.into_inner()) }
        })
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_optimiser_reaches_the_wire() {
        let text = "learning_rate = 1e-4\nbetas = [0.8, 0.9]\neps = 1e-6\nweight_decay = 0.1\n\
                    max_grad_norm = 0.5\nmax_skipped_steps = 3\nstate = '8bit'\nema = { decay = 0.99, interval = 4 }\n\
                    freeze = ['embed']\n[[group]]\npattern = 'norm'\nweight_decay = 0.0\n\
                    [[group]]\npattern = 'mlp'\nlearning_rate = 2e-5";
        let spec = optimizer_spec(&toml::from_str(text).unwrap());
        let group = |pattern: &str, learning_rate_scale, weight_decay| {
            let pattern = pattern.to_owned();
            ParameterGroup { pattern, learning_rate_scale, weight_decay }
        };
        let expected = OptimizerSpec {
            learning_rate: 1e-4,
            beta1: 0.8,
            beta2: 0.9,
            eps: 1e-6,
            weight_decay: 0.1,
            max_grad_norm: 0.5,
            max_skipped_steps: 3,
            ema: Some(EmaSpec { decay: 0.99, interval: 4 }),
            state: "8bit".to_owned(),
            freeze: vec!["embed".to_owned()],
            groups: vec![group("norm", 1.0, Some(0.0)), group("mlp", 0.2, None)],
        };
        assert_eq!(spec, expected);
    }
}
