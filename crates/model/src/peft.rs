//! Adapter folders in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::block::{BlockSpec, ParamSpec};
use crate::error::{ModelError, Result};
use crate::export::{
    check_target, dtype_name, export_error, io_error, put_in_place, sync_folder, temporary_beside,
    write_synced,
};
use crate::lora::{LoraConfig, LoraTarget};
use crate::tensor_source::TensorSource;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The module that is trained whole beside an adapter.
const SCORE: &str = "score";

/// The name of a parameter that is saved whole beside an adapter.
#[must_use]
pub fn whole_name(parameter: &str) -> String {
    format!("base_model.model.{parameter}")
}

/// A folder that PEFT or [`write()`] wrote.
#[derive(Debug)]
pub struct AdapterSource {
    config: LoraConfig,
    layers: Option<Vec<usize>>,
    tensors: TensorSource,
    path: PathBuf,
}

impl AdapterSource {
    /// Opens a folder.
    ///
    /// # Errors
    /// A file that is missing or malformed, or an adapter of a kind that is not supported (named
    /// by its key).
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = fs::read_to_string(&path).map_err(|source| io_error("read", &path, source))?;
        let json: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|source| ModelError::Json { path: path.clone(), source })?;
        let keys = Keys { path: &path, json: &json };
        let config = keys.config()?;
        let layers = keys.layers()?;
        let tensors = TensorSource::open_file(&folder.join(WEIGHTS))?;
        Ok(Self { config, layers, tensors, path })
    }

    /// Shape and strength.
    #[must_use]
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Refuses an adapter that is not exactly of these blocks (see [`LoraConfig::block`]) and
    /// `whole` parameters, named as in the model.
    ///
    /// # Errors
    /// Names the first layer or tensor that does not fit.
    pub fn check(&self, adapters: &[BlockSpec], whole: &[ParamSpec]) -> Result<()> {
        let wanted: Vec<usize> = adapters.iter().filter_map(layer_index).collect();
        if let Some(layers) = &self.layers
            && *layers != wanted
        {
            return Err(ModelError::Config {
                path: self.path.clone(),
                key: "layers_to_transform".to_owned(),
                found: format!("{layers:?}"),
                expected: format!("{wanted:?}, the layers that are trained"),
            });
        }
        let mut specs = adapters.to_vec();
        if let Some(last) = specs.last_mut() {
            let named = |param: &ParamSpec| ParamSpec {
                name: whole_name(&param.name),
                shape: param.shape.clone(),
            };
            last.params.extend(whole.iter().map(named));
        }
        self.tensors.check(&specs, false)
    }

    /// `elements` values of a tensor from element `start`, in the file's dtype, on the CPU.
    ///
    /// # Errors
    /// If the tensor is missing, the range does not lie in it, or it cannot be read.
    pub fn slice(&self, name: &str, start: i64, elements: i64) -> Result<Tensor> {
        self.tensors.slice(name, start, elements)
    }
}

fn layer_index(block: &BlockSpec) -> Option<usize> {
    match block.kind {
        crate::block::BlockKind::Layer(index) => Some(index),
        _ => None,
    }
}

/// The keys of `adapter_config.json`.
struct Keys<'a> {
    path: &'a Path,
    json: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn refuse<T>(&self, key: &str, expected: &str) -> Result<T> {
        Err(ModelError::Config {
            path: self.path.to_owned(),
            key: key.to_owned(),
            found: self.json.get(key).map_or("missing".to_owned(), Value::to_string),
            expected: expected.to_owned(),
        })
    }

    fn config(&self) -> Result<LoraConfig> {
        if self.json.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return self.refuse("peft_type", "LORA");
        }
        self.only_plain()?;
        let number = |key: &str| match self.json.get(key).and_then(Value::as_f64) {
            Some(value) => Ok(value),
            None => self.refuse(key, "a number"),
        };
        let Some(rank) = self.json.get("r").and_then(Value::as_i64) else {
            return self.refuse("r", "a whole number");
        };
        let dropout =
            if self.json.contains_key("lora_dropout") { number("lora_dropout")? } else { 0.0 };
        LoraConfig::new(rank, number("lora_alpha")?, dropout, &self.targets()?)
    }

    /// Refuses what changes the arithmetic in ways that are not implemented.
    fn only_plain(&self) -> Result<()> {
        let off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        let flags = [
            "use_rslora",
            "use_dora",
            "fan_in_fan_out",
            "lora_bias",
            "rank_pattern",
            "alpha_pattern",
            "layer_replication",
            "megatron_config",
            "use_qalora",
            "exclude_modules",
            "trainable_token_indices",
            "target_parameters",
        ];
        for key in flags {
            if self.json.get(key).is_some_and(|value| !off(value)) {
                return self.refuse(key, "absent, false or empty; plain LoRA is supported");
            }
        }
        if self.json.get("bias").is_some_and(|bias| bias != "none") {
            return self.refuse("bias", "\"none\"");
        }
        match self.json.get("modules_to_save") {
            None | Some(Value::Null) => Ok(()),
            Some(modules) if *modules == json!([SCORE]) => Ok(()),
            Some(_) => self.refuse("modules_to_save", "null or [\"score\"]"),
        }
    }

    fn targets(&self) -> Result<Vec<LoraTarget>> {
        const EXPECTED: &str = "a list of module names such as \"q_proj\"";
        let Some(names) = self.json.get("target_modules").and_then(Value::as_array) else {
            return self.refuse("target_modules", EXPECTED);
        };
        let target = |name: &Value| match name.as_str() {
            Some(name) => name.parse(),
            None => self.refuse("target_modules", EXPECTED),
        };
        names.iter().map(target).collect()
    }

    fn layers(&self) -> Result<Option<Vec<usize>>> {
        const EXPECTED: &str = "null, a layer or a list of layers";
        let index = |value: &Value| value.as_u64().map(|index| index as usize);
        match self.json.get("layers_to_transform") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => match list.iter().map(index).collect::<Option<Vec<_>>>() {
                Some(mut layers) => {
                    layers.sort_unstable();
                    Ok(Some(layers))
                }
                None => self.refuse("layers_to_transform", EXPECTED),
            },
            Some(value) => match index(value) {
                Some(layer) => Ok(Some(vec![layer])),
                None => self.refuse("layers_to_transform", EXPECTED),
            },
        }
    }
}

/// What [`write()`] says about an adapter beside its tensors.
#[derive(Debug, Clone)]
pub struct AdapterDescription<'a> {
    /// Shape and strength.
    pub config: &'a LoraConfig,
    /// The model that the adapter belongs to, as PEFT looks it up.
    pub base_model: &'a str,
    /// Adapted layers; `None`: all.
    pub layers: Option<Vec<usize>>,
    /// Whether a score head is saved whole beside the adapter.
    pub score_head: bool,
}

impl AdapterDescription<'_> {
    fn json(&self) -> Value {
        let targets: Vec<_> = self.config.targets.iter().map(|target| target.as_str()).collect();
        json!({
            "peft_type": "LORA",
            "task_type": if self.score_head { "SEQ_CLS" } else { "CAUSAL_LM" },
            "base_model_name_or_path": self.base_model,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": self.config.dropout,
            "target_modules": targets,
            "layers_to_transform": self.layers,
            "modules_to_save": self.score_head.then_some([SCORE]),
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
        })
    }
}

/// Writes an adapter folder in dtype `kind`, whole or not at all. `tensors` are named as PEFT
/// names them. Returns the bytes of the weight file.
///
/// # Errors
/// If `folder` exists and is not an earlier adapter folder or an empty one, `kind` is not f32,
/// bf16 or f16, or a file cannot be written.
pub fn write(
    folder: &Path,
    description: &AdapterDescription<'_>,
    tensors: &[(String, Tensor)],
    kind: Kind,
) -> Result<u64> {
    check_target(folder, CONFIG, "an adapter folder")?;
    let text = serde_json::to_string_pretty(&description.json())
        .map_err(|error| export_error(folder, format!("{CONFIG}: {error}")))?;
    let weights = serialize(folder, tensors, kind)?;
    let temporary = temporary_beside(folder)?;
    let written = (|| {
        fs::create_dir_all(&temporary).map_err(|error| io_error("create", &temporary, error))?;
        write_synced(&temporary.join(CONFIG), text.as_bytes())?;
        write_synced(&temporary.join(WEIGHTS), &weights)?;
        sync_folder(&temporary)?;
        put_in_place(&temporary, folder)
    })();
    if written.is_err() {
        // Best effort: the folder is temporary and the error that led here is reported.
        let _ = fs::remove_dir_all(&temporary);
    }
    written.map(|()| weights.len() as u64)
}

fn serialize(folder: &Path, tensors: &[(String, Tensor)], kind: Kind) -> Result<Vec<u8>> {
    let refuse = |reason: String| export_error(folder, reason);
    if dtype_name(kind).is_none() {
        return Err(refuse(format!("dtype {kind:?}; expected f32, bf16 or f16")));
    }
    let _no_grad = tch::no_grad_guard();
    let mut buffers = Vec::with_capacity(tensors.len());
    for (_, tensor) in tensors {
        let cpu = tensor.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?;
        let mut bytes = vec![0_u8; cpu.numel() * kind.elt_size_in_bytes()];
        cpu.f_copy_data_u8(&mut bytes, cpu.numel())?;
        buffers.push(bytes);
    }
    let dtype = match kind {
        Kind::BFloat16 => safetensors::Dtype::BF16,
        Kind::Half => safetensors::Dtype::F16,
        _ => safetensors::Dtype::F32,
    };
    let views = tensors.iter().zip(&buffers).map(|((name, tensor), bytes)| {
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        Ok((name.as_str(), TensorView::new(dtype, shape, bytes)?))
    });
    let views: std::result::Result<BTreeMap<_, _>, safetensors::SafeTensorError> = views.collect();
    // PEFT refuses a file that does not say which framework wrote it.
    let metadata = std::iter::once(("format".to_owned(), "pt".to_owned())).collect();
    views
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
        .map_err(|error| refuse(format!("{WEIGHTS}: {error}")))
}
