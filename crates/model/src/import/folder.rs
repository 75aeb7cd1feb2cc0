//! The HF folder being written: staged beside its destination, then renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::error::{ImportError, Result};

/// Name and shape of a tensor to write.
#[derive(Debug, Clone)]
pub(super) struct Announced {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
}

impl Announced {
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Refuses a destination that holds anything.
pub(super) fn check_vacant(destination: &Path) -> Result<()> {
    let vacant = match fs::read_dir(destination) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    if vacant {
        Ok(())
    } else {
        Err(ImportError::DestinationExists { path: destination.to_owned() })
    }
}

/// A folder that becomes visible under its name only when [`Staging::commit`] is called; it is
/// removed when dropped before.
#[derive(Debug)]
pub(super) struct Staging {
    folder: PathBuf,
    destination: PathBuf,
}

impl Staging {
    pub(super) fn new(destination: &Path) -> Result<Self> {
        check_vacant(destination)?;
        let name = destination.file_name().ok_or_else(|| ImportError::Argument {
            reason: format!("{} does not name a folder", destination.display()),
        })?;
        let parent = parent_of(destination);
        let folder =
            parent.join(format!(".{}.importing-{}", name.to_string_lossy(), std::process::id()));
        fs::create_dir_all(&folder).map_err(io("create", &folder))?;
        Ok(Self { folder, destination: destination.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }

    pub(super) fn json(&self, name: &str, value: &Value) -> Result<()> {
        let path = self.folder.join(name);
        let mut text = serde_json::to_string_pretty(value).map_err(|e| ImportError::Argument {
            reason: format!("{name} cannot be written as JSON: {e}"),
        })?;
        text.push('\n');
        let mut file = File::create(&path).map_err(io("create", &path))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io("write", &path))
    }

    /// Writes `model.safetensors` in fp32. `values` gives each tensor's numbers in row-major order
    /// when its turn comes, so that one tensor at a time is in memory.
    pub(super) fn safetensors(
        &self,
        tensors: &[Announced],
        mut values: impl FnMut(usize) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let path = self.folder.join("model.safetensors");
        let failed = io("write", &path);
        let mut out =
            BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io("create", &path))?);
        let header = header(tensors);
        out.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| out.write_all(&header))
            .map_err(&failed)?;
        for (i, tensor) in tensors.iter().enumerate() {
            let values = values(i)?;
            if values.len() as u64 != tensor.elements() {
                return Err(ImportError::Tensor {
                    path: path.clone(),
                    tensor: tensor.name.clone(),
                    reason: format!("{} values for the shape {:?}", values.len(), tensor.shape),
                });
            }
            for value in values {
                out.write_all(&value.to_le_bytes()).map_err(&failed)?;
            }
        }
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)
    }

    pub(super) fn commit(self) -> Result<()> {
        sync_folder(&self.folder)?;
        fs::rename(&self.folder, &self.destination)
            .map_err(io("rename the finished folder to", &self.destination))?;
        sync_folder(parent_of(&self.destination))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a commit the folder is gone under this name; a failed clean-up leaves a hidden
        // folder, which the error already being reported is about.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn header(tensors: &[Announced]) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut start = 0u64;
    for tensor in tensors {
        let end = start + tensor.elements() * 4;
        entries.insert(
            tensor.name.clone(),
            json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]}),
        );
        start = end;
    }
    let mut bytes = Value::Object(entries).to_string().into_bytes();
    // The format wants the data aligned to 8 bytes; spaces pad the header.
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    bytes
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(io("sync", folder))
}

fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> ImportError {
    move |source| ImportError::Io { action, path: path.to_owned(), source }
}
