//! Writing a model folder that transformers loads.
//!
//! [`Writer`] takes tensors one by one, in any order, so that a sharded engine can stream
//! gathered blocks without ever holding the model. Everything goes into a temporary folder
//! beside the target and is renamed at the end: a reader sees a whole folder or none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::block::{BlockSpec, ParamSpec};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::score_head::{HeadSpec, ScoreHead};

/// Files that go along unchanged from the source folder, where it has them.
const COPIED: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// transformers' own default for a shard.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Where a tensor goes, and whether it has been written.
struct Place {
    shard: usize,
    /// First byte in the file.
    start: u64,
    shape: Vec<i64>,
    written: bool,
}

/// An export in progress. Dropped without [`Writer::finish`], it leaves nothing behind.
pub struct Writer {
    target: PathBuf,
    temporary: PathBuf,
    shards: Vec<(PathBuf, File)>,
    places: BTreeMap<String, Place>,
    kind: Kind,
    bytes: u64,
    finished: bool,
}

impl Writer {
    /// Starts an export of a model with `blocks` and `head` to `folder`, in dtype `kind`.
    ///
    /// `config.json` keeps the fields of `config`, with class, dtype and head set;
    /// tokenizer, chat template and generation config are copied from `source`. Weights are
    /// split into shards of at most `shard_bytes` (a larger tensor has a shard of its own).
    ///
    /// # Errors
    /// If `folder` exists and is not an earlier model folder or an empty one, `kind` is not f32,
    /// bf16 or f16, or a file cannot be written.
    pub fn create(
        folder: &Path,
        config: &ModelConfig,
        head: &HeadSpec,
        blocks: &[BlockSpec],
        source: Option<&Path>,
        kind: Kind,
        shard_bytes: u64,
    ) -> Result<Self> {
        check_target(folder, "config.json", "a model folder")?;
        let dtype = dtype_name(kind).ok_or_else(|| {
            export_error(folder, format!("dtype {kind:?}; expected f32, bf16 or f16"))
        })?;
        let temporary = temporary_beside(folder)?;
        let mut writer = Self {
            target: folder.to_owned(),
            temporary,
            shards: Vec::new(),
            places: BTreeMap::new(),
            kind,
            bytes: 0,
            finished: false,
        };
        let directory = &writer.temporary;
        fs::create_dir_all(directory).map_err(|e| io_error("create", directory, e))?;
        let text = serde_json::to_string_pretty(&exported_config(config, head, dtype))
            .map_err(|e| export_error(folder, format!("config.json: {e}")))?;
        write_synced(&directory.join("config.json"), text.as_bytes())?;
        if let Some(source) = source {
            copy_companions(source, directory)?;
        }
        let params: Vec<&ParamSpec> = blocks.iter().flat_map(|block| &block.params).collect();
        writer.lay_out(&params, shard_bytes)?;
        Ok(writer)
    }

    /// Writes one tensor (any float dtype and device; it is converted).
    ///
    /// # Errors
    /// If the name is not one of the blocks' parameters, was written before, its shape differs,
    /// or the disk refuses.
    pub fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let target = &self.target;
        let place = self
            .places
            .get_mut(name)
            .ok_or_else(|| export_error(target, format!("tensor `{name}` is not of this model")))?;
        if place.written {
            return Err(export_error(target, format!("tensor `{name}` was written before")));
        }
        if tensor.size() != place.shape {
            let reason = format!(
                "tensor `{name}` has shape {:?}, expected {:?}",
                tensor.size(),
                place.shape
            );
            return Err(export_error(target, reason));
        }
        let _no_grad = tch::no_grad_guard();
        let cpu = tensor.f_to_device(Device::Cpu)?.f_to_kind(self.kind)?.f_contiguous()?;
        let mut bytes = vec![0_u8; cpu.numel() * self.kind.elt_size_in_bytes()];
        cpu.f_copy_data_u8(&mut bytes, cpu.numel())?;
        let (path, file) = &self.shards[place.shard];
        file.write_all_at(&bytes, place.start).map_err(|e| io_error("write", path, e))?;
        place.written = true;
        Ok(())
    }

    /// Checks that every tensor was written, flushes to disk and puts the folder in place.
    /// Returns the bytes of all weight files.
    ///
    /// # Errors
    /// Naming the first tensor that is missing, or if the disk refuses.
    pub fn finish(mut self) -> Result<u64> {
        if let Some((name, _)) = self.places.iter().find(|(_, place)| !place.written) {
            return Err(export_error(&self.target, format!("tensor `{name}` was not written")));
        }
        for (path, file) in &self.shards {
            file.sync_all().map_err(|e| io_error("write", path, e))?;
        }
        sync_folder(&self.temporary)?;
        put_in_place(&self.temporary, &self.target)?;
        self.finished = true;
        Ok(self.bytes)
    }

    /// Decides shards and offsets, and writes every header.
    fn lay_out(&mut self, params: &[&ParamSpec], shard_bytes: u64) -> Result<()> {
        let width = self.kind.elt_size_in_bytes() as u64;
        let mut shards: Vec<Vec<&ParamSpec>> = vec![Vec::new()];
        let mut filled = 0;
        for &param in params {
            let bytes = param.numel() as u64 * width;
            if filled > 0 && filled + bytes > shard_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            if let Some(shard) = shards.last_mut() {
                shard.push(param);
            }
        }
        let count = shards.len();
        let mut weight_map = BTreeMap::new();
        for (index, shard) in shards.iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
            };
            self.start_shard(index, &name, shard)?;
            weight_map.extend(shard.iter().map(|param| (param.name.clone(), name.clone())));
        }
        if count > 1 {
            let total = params.iter().map(|p| p.numel() as u64 * width).sum::<u64>();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
            let path = self.temporary.join("model.safetensors.index.json");
            write_synced(&path, format!("{index:#}").as_bytes())?;
        }
        Ok(())
    }

    fn start_shard(&mut self, index: usize, name: &str, params: &[&ParamSpec]) -> Result<()> {
        let path = self.temporary.join(name);
        let width = self.kind.elt_size_in_bytes() as u64;
        let mut header = serde_json::Map::new();
        // transformers refuses a file that does not say which framework wrote it.
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut end = 0;
        let mut starts = Vec::with_capacity(params.len());
        for param in params {
            let start = end;
            end += param.numel() as u64 * width;
            let entry = json!({
                "dtype": safetensors_dtype(self.kind),
                "shape": param.shape,
                "data_offsets": [start, end],
            });
            header.insert(param.name.clone(), entry);
            starts.push(start);
        }
        let mut text = Value::Object(header).to_string();
        // Tensor data starts at a multiple of 8, as the format asks.
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let file = File::create(&path).map_err(|e| io_error("write", &path, e))?;
        let mut head = (text.len() as u64).to_le_bytes().to_vec();
        head.extend_from_slice(text.as_bytes());
        let data = head.len() as u64;
        file.write_all_at(&head, 0).map_err(|e| io_error("write", &path, e))?;
        self.bytes += data + end;
        self.shards.push((path, file));
        for (param, start) in params.iter().zip(starts) {
            let place = Place {
                shard: index,
                start: data + start,
                shape: param.shape.clone(),
                written: false,
            };
            self.places.insert(param.name.clone(), place);
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: the folder is temporary and the error that led here is reported.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Writes a whole model from an iterator of names and tensors. Returns the bytes of all weight
/// files. See [`Writer::create`].
///
/// # Errors
/// As [`Writer::create`], [`Writer::tensor`] and [`Writer::finish`].
pub fn write_folder(
    folder: &Path,
    config: &ModelConfig,
    head: &HeadSpec,
    blocks: &[BlockSpec],
    source: Option<&Path>,
    kind: Kind,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<u64> {
    let mut writer =
        Writer::create(folder, config, head, blocks, source, kind, DEFAULT_SHARD_BYTES)?;
    for (name, tensor) in tensors {
        writer.tensor(&name, &tensor)?;
    }
    writer.finish()
}

/// The config to write: the source's fields, with class, dtype and head set.
fn exported_config(config: &ModelConfig, head: &HeadSpec, dtype: &str) -> Value {
    let mut raw = config.raw.clone();
    let class = match head {
        HeadSpec::CausalLm => "ForCausalLM",
        HeadSpec::Score(ScoreHead::Linear) => "ForSequenceClassification",
        HeadSpec::Score(ScoreHead::Mlp { .. }) => "ForMlpScore",
    };
    let family = config.architecture.family();
    raw.insert("architectures".into(), json!([format!("{family}{class}")]));
    raw.insert("model_type".into(), json!(family.to_lowercase()));
    // transformers 5 renamed `torch_dtype`; keep to the form of the source.
    let key = if raw.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    raw.insert(key.into(), json!(dtype));
    for key in ["id2label", "label2id", "num_labels", "hidden_dim_str"] {
        raw.remove(key);
    }
    if let HeadSpec::Score(score) = head {
        raw.insert("id2label".into(), json!({ "0": "LABEL_0" }));
        raw.insert("label2id".into(), json!({ "LABEL_0": 0 }));
        if let Some(dims) = score.hidden_dim_str() {
            raw.insert("hidden_dim_str".into(), json!(dims));
        }
    }
    Value::Object(raw)
}

pub(crate) fn dtype_name(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Float => Some("float32"),
        Kind::BFloat16 => Some("bfloat16"),
        Kind::Half => Some("float16"),
        _ => None,
    }
}

fn safetensors_dtype(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "BF16",
        Kind::Half => "F16",
        _ => "F32",
    }
}

/// An existing target may only be replaced if it is empty or holds `marker`, the file by which
/// a folder of this kind is known.
pub(crate) fn check_target(folder: &Path, marker: &str, kind: &str) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let mut entries = fs::read_dir(folder).map_err(|e| io_error("read", folder, e))?;
    if entries.next().is_none() || folder.join(marker).is_file() {
        return Ok(());
    }
    Err(export_error(folder, format!("exists and is not {kind}; name another")))
}

pub(crate) fn temporary_beside(folder: &Path) -> Result<PathBuf> {
    let name = folder
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| export_error(folder, "the path has no folder name".to_owned()))?;
    Ok(folder.with_file_name(format!(".{name}.{}.tmp", std::process::id())))
}

fn copy_companions(source: &Path, directory: &Path) -> Result<()> {
    for name in COPIED {
        let from = source.join(name);
        if from.is_file() {
            let bytes = fs::read(&from).map_err(|e| io_error("read", &from, e))?;
            write_synced(&directory.join(name), &bytes)?;
        }
    }
    Ok(())
}

pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let file = File::create(path)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()
    };
    write().map_err(|e| io_error("write", path, e))
}

pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|e| io_error("sync", path, e))
}

/// Renames `temporary` to `target`; an earlier folder there is moved aside first and removed
/// once the new one is in place.
pub(crate) fn put_in_place(temporary: &Path, target: &Path) -> Result<()> {
    let old = temporary.with_extension("old.tmp");
    let replaced = target.exists();
    if replaced {
        fs::rename(target, &old).map_err(|e| io_error("rename", target, e))?;
    }
    if let Err(error) = fs::rename(temporary, target) {
        if replaced {
            // Put the earlier folder back; the first error is the one to report.
            let _ = fs::rename(&old, target);
        }
        return Err(io_error("rename", temporary, error));
    }
    if let Some(parent) = target.parent().filter(|p| !p.as_os_str().is_empty()) {
        sync_folder(parent)?;
    }
    if replaced {
        fs::remove_dir_all(&old).map_err(|e| io_error("remove", &old, e))?;
    }
    Ok(())
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: std::io::Error) -> ModelError {
    ModelError::Io { action, path: path.to_owned(), source }
}

pub(crate) fn export_error(path: &Path, reason: String) -> ModelError {
    ModelError::Export { path: path.to_owned(), reason }
}
