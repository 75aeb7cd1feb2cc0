//! Compiles `plumbline/**/v1/*.proto` with protox: no protoc is needed.

use std::path::PathBuf;

const SERVICES: [&str; 8] =
    ["actor", "agent", "cluster", "job", "object", "reward", "rollout", "worker"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<PathBuf> =
        SERVICES.iter().map(|s| PathBuf::from(format!("plumbline/{s}/v1/{s}.proto"))).collect();
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
