//! Writing a checkpoint while the model goes on training.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tch::{Device, Tensor};

use super::manifest::{MANIFEST, Manifest};
use crate::shard_file::{self, FileDigest};
use crate::sharded_model::ShardedModel;
use crate::{EngineError, Result};

/// A checkpoint on its way to disk.
#[derive(Debug)]
pub(crate) struct PendingCheckpoint {
    folder: PathBuf,
    partial: PathBuf,
    manifest: Manifest,
    writer: Option<JoinHandle<Result<FileDigest>>>,
}

impl PendingCheckpoint {
    /// Waits for this rank's file.
    fn written(&mut self) -> Result<FileDigest> {
        let lost = || EngineError::File {
            action: "write",
            path: self.partial.clone(),
            source: std::io::Error::other("the writing thread ended early"),
        };
        let writer = self.writer.take().ok_or_else(lost)?;
        writer.join().map_err(|_| lost())?
    }
}

impl Drop for PendingCheckpoint {
    /// A writer that lived on would write into the files of the next checkpoint.
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // Nobody is left who wants to know how it ended.
            let _ = writer.join();
        }
    }
}

impl ShardedModel {
    /// Writes a checkpoint and waits for it. Every rank calls this with the same folder. Returns
    /// the files of this rank; on rank 0 the manifest too.
    ///
    /// # Errors
    /// A file that could not be written, for example for lack of space: every rank then returns
    /// an error and nothing is left behind.
    pub fn save_checkpoint(&mut self, folder: &Path) -> Result<Vec<FileDigest>> {
        self.start_checkpoint(folder)?;
        Ok(self.finish_checkpoint()?.unwrap_or_default())
    }

    /// Begins a checkpoint of the state as it is now: the shards are copied, and a thread writes
    /// the copies while the model goes on. Every rank calls this with the same folder, and
    /// [`ShardedModel::finish_checkpoint`] later; a checkpoint that is still being written is
    /// finished first.
    ///
    /// Until its file is written a rank holds the copy in host memory: 12 bytes for each trained
    /// element of its shards (master and two moments, fp32), 16 with a moving average. Frozen
    /// blocks are not copied, unless they are on a device. Returns the bytes copied.
    ///
    /// # Errors
    /// The last checkpoint could not be finished; the folder cannot be made.
    pub fn start_checkpoint(&mut self, folder: &Path) -> Result<u64> {
        self.finish_checkpoint()?;
        let partial = with_suffix(folder, ".partial");
        let prepared = if self.rank() == 0 { create_empty(&partial) } else { Ok(()) };
        self.agree("checkpoint", prepared)?;
        let (tensors, bytes) = self.snapshot();
        let path = partial.join(shard_name(self.rank(), self.world_size()));
        let started = std::thread::Builder::new().name("checkpoint".to_owned()).spawn({
            let path = path.clone();
            move || shard_file::write(&path, tensors)
        });
        let started =
            started.map_err(|source| EngineError::File { action: "start writing", path, source });
        let writer = Some(self.agree("checkpoint", started)?);
        let (folder, manifest) = (folder.to_path_buf(), self.manifest());
        self.pending_checkpoint = Some(PendingCheckpoint { folder, partial, manifest, writer });
        Ok(bytes)
    }

    /// Waits for the checkpoint that was begun and gives it its name, once every rank has written
    /// its file. Every rank calls this. Returns as [`ShardedModel::save_checkpoint`]; `None`
    /// where none was begun.
    ///
    /// # Errors
    /// As [`ShardedModel::save_checkpoint`].
    pub fn finish_checkpoint(&mut self) -> Result<Option<Vec<FileDigest>>> {
        let Some(mut pending) = self.pending_checkpoint.take() else { return Ok(None) };
        let outcome = self.complete(&mut pending);
        let partial = &pending.partial;
        if outcome.is_err() && self.rank() == 0 && partial.exists() {
            // The error that brought us here is the one to report.
            if let Err(error) = fs::remove_dir_all(partial) {
                tracing::warn!(folder = %partial.display(), %error, "cannot remove a partial checkpoint");
            }
        }
        outcome.map(Some)
    }

    fn complete(&self, pending: &mut PendingCheckpoint) -> Result<Vec<FileDigest>> {
        let written = pending.written();
        let mine = self.agree("checkpoint", written)?;
        pending.manifest.files = self.gather_digests(&mine)?;
        let mut own = vec![mine];
        let named = if self.rank() == 0 {
            give_name(&pending.folder, &pending.partial, &pending.manifest)
                .map(|manifest| own.push(manifest))
        } else {
            Ok(())
        };
        self.agree("checkpoint", named)?;
        Ok(own)
    }

    /// This rank's vectors in host memory (CKPT-4), and how many bytes had to be copied.
    fn snapshot(&self) -> (Vec<(String, Tensor)>, u64) {
        let _guard = tch::no_grad_guard();
        let mut bytes = 0;
        let copies = self.state().into_iter().map(|(name, tensor, changes)| {
            if !changes && tensor.device() == Device::Cpu {
                return (name, tensor.shallow_clone());
            }
            bytes += (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
            let on_cpu = tensor.device() == Device::Cpu;
            (name, if on_cpu { tensor.copy() } else { tensor.to_device(Device::Cpu) })
        });
        (copies.collect(), bytes)
    }

    /// Size and digest of every rank's file, as five int64 per rank.
    fn gather_digests(&self, mine: &FileDigest) -> Result<Vec<FileDigest>> {
        let digest = hex::decode(&mine.digest).unwrap_or_default();
        let mut words = vec![mine.bytes as i64];
        words.extend(
            digest.chunks_exact(8).map(|chunk| {
                chunk.iter().rev().fold(0, |word, &byte| (word << 8) | i64::from(byte))
            }),
        );
        let width = words.len() as i64;
        let ranks = self.world_size();
        let device = self.settings.device;
        let words = Tensor::from_slice(&words).to_device(device);
        let mut all = Tensor::zeros([width * ranks as i64], (tch::Kind::Int64, device));
        self.comm.all_gather(&mut all, &words)?.wait()?;
        let all: Vec<i64> = Vec::try_from(all.to_device(tch::Device::Cpu))?;
        let files = all.chunks_exact(width as usize).enumerate().map(|(rank, words)| {
            let bytes: Vec<u8> = words[1..].iter().flat_map(|word| word.to_le_bytes()).collect();
            FileDigest {
                name: shard_name(rank, ranks),
                bytes: words[0] as u64,
                digest: hex::encode(bytes),
            }
        });
        Ok(files.collect())
    }
}

fn shard_name(rank: usize, ranks: usize) -> String {
    format!("shard-{rank:05}-of-{ranks:05}.safetensors")
}

fn with_suffix(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn create_empty(folder: &Path) -> Result<()> {
    let fail = |source| EngineError::File { action: "create", path: folder.to_path_buf(), source };
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(fail)?;
    }
    fs::create_dir_all(folder).map_err(fail)
}

/// Writes the manifest and gives the folder its name, replacing an older checkpoint there.
fn give_name(folder: &Path, partial: &Path, manifest: &Manifest) -> Result<FileDigest> {
    let path = partial.join(MANIFEST);
    let fail = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| EngineError::File { action, path, source }
    };
    let text =
        manifest.text().map_err(|error| fail("write", &path)(std::io::Error::other(error)))?;
    fs::write(&path, &text).map_err(fail("write", &path))?;
    for synced in [path.as_path(), partial] {
        let file = fs::File::open(synced).map_err(fail("open", synced))?;
        file.sync_all().map_err(fail("sync", synced))?;
    }
    let older = with_suffix(folder, ".older");
    if folder.exists() {
        fs::rename(folder, &older).map_err(fail("rename", folder))?;
    }
    fs::rename(partial, folder).map_err(fail("rename", partial))?;
    if let Some(parent) = folder.parent() {
        let file = fs::File::open(parent).map_err(fail("open", parent))?;
        file.sync_all().map_err(fail("sync", parent))?;
    }
    if older.exists() {
        fs::remove_dir_all(&older).map_err(fail("remove", &older))?;
    }
    let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
    Ok(FileDigest { name: MANIFEST.to_owned(), bytes: text.len() as u64, digest })
}
