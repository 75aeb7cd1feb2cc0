//! Low-rank adapters with real processes: what they add is what the merged model has more than the
//! base, the base stays as it is, a PEFT folder goes on where it was written, and a policy with
//! adapters is its own reference.
//!
//! The programs are those that `cargo build --workspace --bins` leaves beside the test's own.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Shape and values of an fp32 tensor.
type Values = (Vec<usize>, Vec<f32>);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn train(recipe: &str, run: &Path, set: &[String]) -> Output {
    let folder = Path::new(env!("CARGO_BIN_EXE_cluster-node")).parent().unwrap().to_owned();
    let plumb = folder.join("plumb");
    assert!(plumb.is_file(), "{} is missing: cargo build --workspace --bins", plumb.display());
    let mut command = Command::new(plumb);
    command.env("OMP_NUM_THREADS", "1").env_remove("PLUMB_LOG").arg("train");
    command.arg(repository().join("recipes/tiny").join(recipe)).arg("--run-dir").arg(run);
    for set in set {
        command.arg("--set").arg(set);
    }
    command.output().unwrap()
}

/// A finished run and its folder.
struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    fn new(recipe: &str, set: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = train(recipe, &folder.path().join("run"), set);
        let told = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{recipe}: {}", String::from_utf8_lossy(&told));
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("run").join(name)
    }

    fn figure(&self, stage: &str, name: &str) -> f64 {
        let bytes = std::fs::read(self.path("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let figures = &summary["stages"][stage];
        figures[name].as_f64().unwrap_or_else(|| panic!("no {name} among {figures}"))
    }

    /// A figure of every step of a stage.
    fn steps(&self, stage: &str, figure: &str) -> Vec<f64> {
        let lines = std::fs::read_to_string(self.path("metrics.jsonl")).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap());
        let lines = lines.filter(|line: &serde_json::Value| line["stage"] == stage);
        lines.map(|line| line[figure].as_f64().unwrap_or_else(|| panic!("{line}"))).collect()
    }
}

/// The tensors of a safetensors file, all of them fp32.
fn tensors(path: &Path) -> BTreeMap<String, Values> {
    let bytes = std::fs::read(path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..header]).unwrap();
    let tensor = |(name, about): (String, serde_json::Value)| {
        assert_eq!(about["dtype"], "F32", "{name}");
        let ints =
            |key: &str| -> Vec<usize> { serde_json::from_value(about[key].clone()).unwrap() };
        let (shape, at) = (ints("shape"), ints("data_offsets"));
        let values = bytes[header + at[0]..header + at[1]].chunks_exact(4);
        let values = values.map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
        (name, (shape, values))
    };
    json.into_iter().filter(|(name, _)| name != "__metadata__").map(tensor).collect()
}

/// `base + scale * B A`, `[out, in]` row by row.
fn with_adapter(base: &Values, a: &Values, b: &Values, scale: f32) -> Vec<f32> {
    let (rank, width) = (a.0[0], a.0[1]);
    let value = |(at, base): (usize, &f32)| {
        let (row, column) = (at / width, at % width);
        let product = (0..rank).map(|r| b.1[row * rank + r] * a.1[r * width + column]);
        base + scale * product.sum::<f32>()
    };
    base.1.iter().enumerate().map(value).collect()
}

/// Compares a merged model with its base and the adapters of a PEFT folder.
fn check_merged(base: &Path, adapters: &Path, merged: &Path, adapted: usize) {
    let (base, merged) = (tensors(base), tensors(merged));
    let adapters = tensors(&adapters.join("adapter_model.safetensors"));
    assert_eq!(base.keys().collect::<Vec<_>>(), merged.keys().collect::<Vec<_>>());
    let (mut changed, mut largest) = (0, 0.0f32);
    for (name, values) in &base {
        let module = name.strip_suffix(".weight").unwrap();
        let part =
            |part: &str| adapters.get(&format!("base_model.model.{module}.lora_{part}.weight"));
        let Some((a, b)) = part("A").zip(part("B")) else {
            assert_eq!(values, &merged[name], "{name} is not adapted, but differs");
            continue;
        };
        changed += 1;
        let expected = with_adapter(values, a, b, 2.0);
        for (merged, (expected, base)) in merged[name].1.iter().zip(expected.iter().zip(&values.1))
        {
            assert!((merged - expected).abs() < 1e-5, "{name}: {merged} != {expected}");
            largest = largest.max((merged - base).abs());
        }
    }
    assert_eq!(changed, adapted);
    assert!(largest > 1e-3, "the adapters do nothing: {largest}");
}

#[test]
fn adapters_train_alone_and_their_folders_hold_what_they_add() {
    let base = repository().join("tests/parity/data/stories260k");
    let digest = || blake3::hash(&std::fs::read(base.join("model.safetensors")).unwrap());
    let before = digest();
    let run = Run::new("lora.toml", &[]);
    assert_eq!(digest(), before, "the base was written to");
    let weights = |model: &str| run.path("models").join(model).join("model.safetensors");
    let adapters = |stage: &str| run.path("adapters").join(stage);
    check_merged(&base.join("model.safetensors"), &adapters("sft"), &weights("sft"), 7 * 5);
    check_merged(&weights("sft"), &adapters("dpo"), &weights("dpo"), 2 * 5);
    let whole = tensors(&adapters("reward").join("adapter_model.safetensors"));
    assert!(whole.contains_key("base_model.model.score.weight"), "{:?}", whole.keys());

    for stage in ["sft", "reward", "dpo"] {
        let norms = run.steps(stage, "adapter_delta_norm");
        eprintln!("{stage}: adapter norm {:.4} -> {:.4}", norms[0], norms[norms.len() - 1]);
        assert!(norms.iter().all(|norm| *norm > 0.0), "{stage}: {norms:?}");
    }
    let (before, after) =
        (run.figure("sft", "heldout_loss_before"), run.figure("sft", "heldout_loss"));
    eprintln!("sft through adapters: held-out loss {before:.3} -> {after:.3} nats a token");
    assert!(after < before - 1.0, "{before} -> {after}");
    let accuracy = run.figure("dpo", "heldout_accuracy");
    eprintln!("dpo through adapters: held-out accuracy {accuracy:.3}");
    assert!(accuracy > 0.6);
    let margin = run.figure("reward", "heldout_margin");
    assert!(margin > run.figure("reward", "heldout_margin_before"), "{margin}");

    // Another run that starts from the folder, or from the merged model, measures the same.
    let one_step = ["stage.0.epochs=1", "stage.0.dialogues_per_step=320", "stage.0.max_loss=9.0"];
    let one_step = one_step.map(str::to_owned);
    let from = |set: String| {
        let set: Vec<String> = one_step.iter().cloned().chain([set]).collect();
        Run::new("sft.toml", &set).figure("sft", "heldout_loss_before")
    };
    let peft = from(format!(
        "stage.0.lora={{ rank = 8, alpha = 16.0, adapter = {:?} }}",
        adapters("sft").display().to_string()
    ));
    let merged = from(format!("model.path={:?}", run.path("models/sft").display().to_string()));
    assert!((peft - after).abs() < 1e-6, "from the PEFT folder {peft}, was {after}");
    assert!((merged - after).abs() < 1e-4, "from the merged model {merged}, was {after}");
}

#[test]
fn a_policy_with_adapters_is_its_own_reference() {
    let set = ["algorithm.lora={ rank = 4, alpha = 8.0 }", "stage.5.adapter=true"];
    let run = Run::new("tiny.toml", &set.map(str::to_owned));
    let logs = std::fs::read_dir(run.path("logs")).unwrap().flatten();
    let logs: Vec<String> = logs.map(|file| file.file_name().into_string().unwrap()).collect();
    assert!(logs.iter().any(|log| log.contains("policy")), "{logs:?}");
    assert!(!logs.iter().any(|log| log.contains("reference")), "a second model: {logs:?}");
    let kl = run.steps("train", "kl/per_token");
    eprintln!("grpo through adapters: kl per token {:.2e} -> {:.2e}", kl[0], kl[kl.len() - 1]);
    // Before the first update the policy is the reference; what is left is rounding.
    assert!(kl[0] < 1e-9, "{kl:?}");
    assert!(kl[kl.len() - 1] > 1e-6, "the policy never moved: {kl:?}");
    let norms = run.steps("train", "policy/adapter_delta_norm");
    assert!(norms.iter().all(|norm| *norm > 0.0), "{norms:?}");
    assert!(run.path("adapter/adapter_config.json").is_file());
    assert!(run.path("export/config.json").is_file());
}
