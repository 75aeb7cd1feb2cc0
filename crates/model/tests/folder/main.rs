//! Model folders: what is read, what is refused and how, and what export writes.

// Clippy's exception for tests does not reach the functions they share.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod config;
mod export;
mod safetensors;
mod weights;

use std::path::{Path, PathBuf};

/// A committed parity model.
fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/data").join(name)
}

/// A copy of a committed model that a test may break.
fn copy_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}
