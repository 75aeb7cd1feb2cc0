//! Tiny models, groups of threads, and the plain computation that the engine must equal.

use std::path::Path;

use plumb_collective::{Collective, in_process, solo};
use plumb_model::export::{DEFAULT_SHARD_BYTES, Writer};
use plumb_model::{Decoder, HeadSpec, ModelConfig, Packed, random_blocks};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

use crate::{
    AdamWSettings, EngineSettings, LoadPlan, Offload, PolicySample, Precision, ResponseSample,
    ShardedModel,
};

/// Llama with grouped-query attention; three layers, 29 tokens, 16 wide.
pub(super) struct TinyModel {
    pub(super) folder: TempDir,
    pub(super) decoder: Decoder,
}

impl TinyModel {
    pub(super) fn new(tied: bool, seed: u64) -> Self {
        let text = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 29,
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
                "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
                "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                "tie_word_embeddings": {tied}}}"#
        );
        let config = ModelConfig::from_json(&text, Path::new("config.json")).unwrap();
        let decoder = Decoder::new(config).unwrap();
        let specs = decoder.blocks(&HeadSpec::CausalLm);
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(
            &folder.path().join("model"),
            decoder.config(),
            &HeadSpec::CausalLm,
            &specs,
            None,
            Kind::Float,
            DEFAULT_SHARD_BYTES,
        )
        .unwrap();
        for (spec, params) in specs.iter().zip(random_blocks(&specs, seed).unwrap()) {
            for (param, tensor) in spec.params.iter().zip(params) {
                // Matrices ten times larger than usual, so that gradients matter.
                let tensor = if param.shape.len() > 1 { tensor * 10.0 } else { tensor };
                writer.tensor(&param.name, &tensor).unwrap();
            }
        }
        writer.finish().unwrap();
        Self { folder, decoder }
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("model")
    }

    pub(super) fn load(&self, plan: LoadPlan, comm: Box<dyn Collective>) -> ShardedModel {
        ShardedModel::load(&self.path(), plan, comm).unwrap()
    }
}

pub(crate) fn settings() -> EngineSettings {
    EngineSettings {
        compute: Precision::Fp32,
        reduce: Precision::Fp32,
        recompute: true,
        reshard_after_forward: true,
        micro_batch_tokens: 1000,
        one_sample_a_pass: false,
        frozen_layers: 0,
        device: Device::Cpu,
        offload: Offload::default(),
    }
}

/// A large epsilon makes a step nearly proportional to the gradient, so that a wrong gradient
/// cannot hide behind AdamW's normalisation.
pub(super) fn adamw() -> AdamWSettings {
    AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 0.1,
        weight_decay: 0.01,
        max_grad_norm: 0.5,
        ..AdamWSettings::default()
    }
}

pub(super) fn plan(settings: EngineSettings) -> LoadPlan {
    LoadPlan {
        head: HeadSpec::CausalLm,
        head_seed: 0,
        settings,
        optimizer: Some(adamw()),
        lora: None,
        ema: None,
    }
}

/// Runs `work` on every rank of a group of threads; world size 1 runs without a group.
pub(super) fn ranks<T: Send>(
    world_size: usize,
    work: impl Fn(Box<dyn Collective>) -> T + Sync,
) -> Vec<T> {
    if world_size == 1 {
        return vec![work(Box::new(solo()))];
    }
    let work = &work;
    std::thread::scope(|scope| {
        let members = in_process::group(world_size).into_iter();
        let threads: Vec<_> =
            members.map(|comm| scope.spawn(move || work(Box::new(comm)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// All parameters of the model, block by block, without padding.
pub(super) fn weights(model: &ShardedModel) -> Vec<f32> {
    let mut all = Vec::new();
    for block in &model.blocks {
        let flat_p = block.gather_master(model.collective()).unwrap();
        let flat = flat_p.narrow(0, 0, block.layout.elements).to_kind(Kind::Float);
        all.extend(Vec::<f32>::try_from(flat).unwrap());
    }
    all
}

pub(super) fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths differ");
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: largest difference {worst:e}");
}

/// Responses of unequal lengths with made-up sampler log-probs and advantages.
pub(super) fn samples() -> Vec<PolicySample> {
    let lengths = [(3, 5), (2, 1), (4, 9), (1, 3), (6, 7), (6, 4), (5, 2)];
    let value = |seed: usize| ((seed * 7919 + 13) % 101) as f32 / 101.0;
    let sample = |(index, &(prompt, response)): (usize, &(usize, usize))| {
        // The sixth sample answers the fifth one's prompt.
        let group = if index == 5 { 4 } else { index };
        let prompt_token = |position: usize| ((group * 31 + position * 17 + 5) % 29) as u32;
        let token = |position: usize| ((index * 31 + position * 17 + 5) % 29) as u32;
        let per_token = |salt: usize, scale: f32, shift: f32| -> Vec<f32> {
            (0..response).map(|t| value(index * 100 + t * 3 + salt) * scale + shift).collect()
        };
        PolicySample {
            sample: ResponseSample {
                id: format!("0/p-{index}/0"),
                prompt_ids: (0..prompt).map(prompt_token).collect(),
                response_ids: (prompt..prompt + response).map(token).collect(),
                rollout_logps: per_token(1, 1.0, -3.8),
            },
            advantages: vec![value(index) * 4.0 - 2.0; response],
            old_logps: Some(per_token(2, 1.0, -3.8)),
            reference_logps: Some(per_token(3, 1.5, -4.0)),
        }
    };
    lengths.iter().enumerate().map(sample).collect()
}

/// Every parameter of the folder as a leaf, block by block.
pub(super) fn leaves(tiny: &TinyModel, head: &HeadSpec) -> Vec<Vec<Tensor>> {
    let source = plumb_model::TensorSource::open(&tiny.path()).unwrap();
    let read = |name: &str| source.tensor(name).unwrap().set_requires_grad(true);
    let specs = tiny.decoder.blocks(head);
    let known = specs.iter().map(|spec| {
        let params = spec.params.iter().filter(|param| source.contains(&param.name));
        params.map(|param| read(&param.name)).collect()
    });
    known.collect()
}

/// Hidden states after the last layer by plain autograd, `[N, H]`.
pub(super) fn plain_hidden(tiny: &TinyModel, params: &[Vec<Tensor>], packed: &Packed) -> Tensor {
    let layout = tiny.decoder.layout(packed, Kind::Float).unwrap();
    let mut hidden_nh = tiny.decoder.embed(&params[0], &packed.input_ids).unwrap();
    for (index, layer) in params[1..params.len() - 1].iter().enumerate() {
        hidden_nh = tiny.decoder.layer(index, layer, &hidden_nh, &layout).unwrap();
    }
    hidden_nh
}

/// log p of each token of a text but the first, given those before it, by plain autograd:
/// `[T - 1]`.
pub(super) fn plain_logps(tiny: &TinyModel, params: &[Vec<Tensor>], ids: &[u32]) -> Tensor {
    let hidden = plain_hidden(tiny, params, &Packed::new(&[ids]).unwrap());
    let head = params.last().unwrap();
    let normed = tiny.decoder.final_norm(head, &hidden).unwrap();
    let tied = tiny.decoder.config().tie_word_embeddings;
    let weight = if tied { &params[0][0] } else { &head[1] };
    let logp = tiny.decoder.logits(weight, &normed).unwrap().log_softmax(1, Kind::Float);
    let targets: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).collect();
    let predicting = logp.narrow(0, 0, targets.len() as i64);
    predicting.gather(1, &Tensor::from_slice(&targets).unsqueeze(1), false).squeeze_dim(1)
}

/// One clipped AdamW step on leaves, by the textbook; returns the norm before clipping.
/// `moments` holds both moments per parameter and grows on first use.
pub(super) fn plain_step(
    params: &mut [Vec<Tensor>],
    loss: &Tensor,
    moments: &mut Vec<(Tensor, Tensor)>,
    step: i32,
    learning_rate: f64,
) -> f64 {
    let adamw = adamw();
    let flat: Vec<Tensor> = params.iter().flatten().map(Tensor::shallow_clone).collect();
    let grads = Tensor::run_backward(&[loss], &flat, false, false);
    let norm = grads.iter().map(|g| g.norm().double_value(&[]).powi(2)).sum::<f64>().sqrt();
    let scale = (adamw.max_grad_norm / (norm + 1e-6)).min(1.0);
    if moments.is_empty() {
        moments.extend(grads.iter().map(|g| (g.zeros_like(), g.zeros_like())));
    }
    let _guard = tch::no_grad_guard();
    for ((param, grad), (first, second)) in flat.iter().zip(grads).zip(moments) {
        let grad = grad * scale;
        *first = &*first * adamw.beta1 + &grad * (1.0 - adamw.beta1);
        *second = &*second * adamw.beta2 + grad.square() * (1.0 - adamw.beta2);
        let first_hat = &*first / (1.0 - adamw.beta1.powi(step));
        let second_hat = &*second / (1.0 - adamw.beta2.powi(step));
        let decayed = param * (1.0 - learning_rate * adamw.weight_decay);
        let updated = decayed - first_hat / (second_hat.sqrt() + adamw.eps) * learning_rate;
        param.detach().copy_(&updated);
    }
    norm
}

/// Leaves end to end, as [`weights`] gives them.
pub(super) fn concatenated(params: &[Vec<Tensor>]) -> Vec<f32> {
    let flat = params.iter().flatten().map(|param| param.detach().reshape([-1]));
    Vec::<f32>::try_from(Tensor::cat(&flat.collect::<Vec<_>>(), 0)).unwrap()
}
