//! Stages that train on a data set, with real processes and real data: `plumb train` on the
//! recipes of recipes/tiny. Each prints the held-out figures that it reached.
//!
//! The programs are those that `cargo build --workspace --bins` leaves beside the test's own.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn plumb() -> Command {
    let folder = Path::new(env!("CARGO_BIN_EXE_cluster-node")).parent().unwrap().to_owned();
    for name in ["plumb", "actor-worker"] {
        let path = folder.join(name);
        assert!(path.is_file(), "{} is missing: cargo build --workspace --bins", path.display());
    }
    let mut command = Command::new(folder.join("plumb"));
    command.env("OMP_NUM_THREADS", "1").env_remove("PLUMB_LOG");
    command
}

fn recipe(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny").join(name)
}

fn train(name: &str, run: &Path, set: &[&str]) -> Output {
    let mut command = plumb();
    command.arg("train").arg(recipe(name)).arg("--run-dir").arg(run);
    for set in set {
        command.arg("--set").arg(set);
    }
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    part(&output.stdout) + &part(&output.stderr)
}

/// A finished run and its folder.
struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    fn new(name: &str, set: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = train(name, &folder.path().join("run"), set);
        assert!(output.status.success(), "{name}: {}", text(&output));
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("run").join(name)
    }

    /// A figure of a stage in `summary.json`.
    fn figure(&self, stage: &str, name: &str) -> f64 {
        let bytes = std::fs::read(self.path("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let figures = &summary["stages"][stage];
        figures[name].as_f64().unwrap_or_else(|| panic!("no {name} among {figures}"))
    }

    /// A stage's lines of `metrics.jsonl`.
    fn steps(&self, stage: &str) -> Vec<serde_json::Value> {
        let lines = std::fs::read_to_string(self.path("metrics.jsonl")).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &serde_json::Value| line["stage"] == stage).collect()
    }
}

#[test]
fn sft_lowers_the_held_out_loss() {
    let run = Run::new("sft.toml", &["stage.0.epochs=1"]);
    let figure = |name: &str| run.figure("sft", name);
    let (before, after) = (figure("heldout_loss_before"), figure("heldout_loss"));
    eprintln!("sft on gsm8k: held-out loss {before:.3} -> {after:.3} nats a token");
    assert!(after < before - 1.0, "{before} -> {after}");
    assert_eq!((figure("steps"), figure("heldout_texts")), (20.0, 64.0));
    let steps = run.steps("sft");
    assert_eq!(steps.len(), 20);
    assert!(steps.iter().all(|line| line["loss"].as_f64().unwrap() > 0.0), "{steps:?}");
    let measured = steps.iter().filter(|line| line["heldout_loss"].is_number()).count();
    assert_eq!(measured, 1, "at step 20");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(run.path("models/sft").join(name).is_file(), "{name} is missing");
    }
}

#[test]
fn reward_and_cost_models_rank_held_out_pairs_better_than_before() {
    let run = Run::new("score_models.toml", &[]);
    for (stage, sign) in [("reward", false), ("cost", true)] {
        let figure = |name: &str| run.figure(stage, name);
        let (before, after) = (figure("heldout_accuracy_before"), figure("heldout_accuracy"));
        eprintln!("{stage} model: held-out accuracy {before:.3} -> {after:.3}");
        assert!(after > before && after > 0.5, "{stage}: {before} -> {after}");
        assert!(figure("heldout_margin") > 0.0);
        if sign {
            let (before, after) =
                (figure("heldout_sign_accuracy_before"), figure("heldout_sign_accuracy"));
            eprintln!("cost model: held-out sign accuracy {before:.3} -> {after:.3}");
            assert!(after > 0.8 && after > before, "{before} -> {after}");
        }
        assert!(run.path("models").join(stage).join("config.json").is_file());
    }
    let bytes = std::fs::read(run.path("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(summary["restarts"], 0, "the second group is placed without a struggle");
}

#[test]
fn dpo_prefers_held_out_answers_and_starts_from_its_own_reference() {
    let run = Run::new("dpo.toml", &[]);
    let figure = |name: &str| run.figure("dpo", name);
    let (before, after) = (figure("heldout_loss_before"), figure("heldout_loss"));
    let (accuracy, margin) = (figure("heldout_accuracy"), figure("heldout_margin"));
    eprintln!(
        "dpo on requests: held-out loss {before:.3} -> {after:.3}, accuracy {accuracy:.3}, margin \
         {margin:.3}"
    );
    assert!((before - 2f64.ln()).abs() < 1e-3, "no log-ratio differs from 0 at first: {before}");
    assert!(after < before && accuracy > 0.5 && margin > 0.0, "{after} {accuracy} {margin}");
    assert!(run.path("models/dpo/tokenizer.json").is_file());
}

/// A tensor's bytes in a folder's `model.safetensors`.
fn tensor(folder: &Path, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offset = |index: usize| entries[name]["data_offsets"][index].as_u64().unwrap() as usize;
    bytes[8 + header + offset(0)..8 + header + offset(1)].to_vec()
}

#[test]
fn the_keys_of_the_optimiser_act_in_the_workers() {
    let few = ["stage.0.epochs=1", "stage.0.dialogues_per_step=80", "stage.0.max_loss=9.0"];
    // An average that stands still is the model before the stage.
    let still = "stage.0.optimizer.ema={ decay = 1.0 }";
    let run = Run::new("sft.toml", &[&few[..], &[still]].concat());
    let figure = |name: &str| run.figure("sft", name);
    assert_eq!(figure("heldout_loss"), figure("heldout_loss_before"));
    let start = recipe("../../tests/parity/data/stories260k");
    let (embedding, query) =
        ("model.embed_tokens.weight", "model.layers.4.self_attn.q_proj.weight");
    let trained = run.path("models/sft");
    assert_eq!(tensor(&trained, query), tensor(&start, query));
    let steps = run.steps("sft");
    assert!(steps.iter().all(|line| line["skipped_steps"] == 0.0), "{steps:?}");

    let rules = [
        "stage.0.optimizer.freeze=[\"embed_tokens\"]",
        "stage.0.optimizer.group=[{ pattern = \"norm\", weight_decay = 0.0 }]",
        "stage.0.optimizer.state=8bit",
    ];
    let run = Run::new("sft.toml", &[&few[..], &rules].concat());
    let trained = run.path("models/sft");
    assert_eq!(tensor(&trained, embedding), tensor(&start, embedding));
    assert_ne!(tensor(&trained, query), tensor(&start, query));
    let figure = |name: &str| run.figure("sft", name);
    assert!(figure("heldout_loss") < figure("heldout_loss_before"));

    let folder = tempfile::tempdir().unwrap();
    let absent = "stage.0.optimizer.freeze=[\"visual\"]";
    let output = train("sft.toml", &folder.path().join("run"), &[absent]);
    let text = text(&output);
    assert!(!output.status.success() && text.contains("freeze pattern \"visual\""), "{text}");
}

fn lines(name: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(recipe("data").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn write_lines(path: &Path, rows: &[serde_json::Value]) -> String {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(path, text).unwrap();
    path.display().to_string()
}

#[test]
fn token_wise_score_models_rank_held_out_pairs_better_than_before() {
    let set = ["stage.0.token_wise=true", "stage.0.epochs=1", "stage.1.token_wise=true"];
    let run = Run::new("score_models.toml", &set);
    for stage in ["reward", "cost"] {
        let figure = |name: &str| run.figure(stage, name);
        let (before, after) = (figure("heldout_accuracy_before"), figure("heldout_accuracy"));
        let (margin_before, margin) = (figure("heldout_margin_before"), figure("heldout_margin"));
        eprintln!(
            "token-wise {stage} model: held-out accuracy {before:.3} -> {after:.3}, margin \
             {margin_before:.3} -> {margin:.3}"
        );
        assert!(margin > margin_before, "{stage}: {margin_before} -> {margin}");
    }
    assert!(run.figure("cost", "heldout_accuracy") > 0.7);
}

#[test]
fn pairs_of_pairs_and_own_margins_are_learnt() {
    let folder = tempfile::tempdir().unwrap();
    // Requests differ in kind; the answers of hh-rlhf differ in little: the first gap is the wider.
    let pairs_of_pairs = |requests: &str, pairs: &str, to: &str| {
        let rows = lines(requests).into_iter().zip(lines(pairs));
        let rows = rows.filter(|(_, other)| other["prompt"].is_string()).map(|(row, other)| {
            serde_json::json!({
                "pref_prompt": row["prompt"], "pref_chosen": row["better"],
                "pref_rejected": row["worse"], "unpref_prompt": other["prompt"],
                "unpref_chosen": other["better"], "unpref_rejected": other["worse"],
            })
        });
        write_lines(&folder.path().join(to), &rows.collect::<Vec<_>>())
    };
    let train = pairs_of_pairs("requests-train.jsonl", "pairs-train.jsonl", "train.jsonl");
    let heldout = pairs_of_pairs("requests-heldout.jsonl", "pairs-heldout.jsonl", "heldout.jsonl");
    for loss in ["pop", "pop_fixed"] {
        let set = [
            format!("stage.0.loss={loss}"),
            format!("stage.0.train={:?}", format!("UF-PoP/train:1.0:{train}")),
            format!("stage.0.heldout={heldout:?}"),
        ];
        let run = Run::new("dpo.toml", &set.iter().map(String::as_str).collect::<Vec<_>>());
        let figure = |name: &str| run.figure("dpo", name);
        let (accuracy, wider) = (figure("heldout_accuracy"), figure("heldout_wider_accuracy"));
        eprintln!("{loss}: held-out accuracy {accuracy:.3}, of wider gaps {wider:.3}");
        assert!(accuracy > 0.7 && wider > 0.7, "{loss}: {accuracy} {wider}");
    }

    let with_margin = |(index, mut row): (usize, serde_json::Value)| {
        row["margin"] = serde_json::json!(index as f64 % 3.0);
        row
    };
    let rows: Vec<_> =
        lines("requests-train.jsonl").into_iter().enumerate().map(with_margin).collect();
    let margins = write_lines(&folder.path().join("margins.jsonl"), &rows);
    let set = [
        "stage.0.own_margins=true".to_owned(),
        format!("stage.0.train={margins:?}"),
        "stage.0.heldout=[]".to_owned(),
        "stage.0.eval_every_steps=0".to_owned(),
    ];
    let run = Run::new("dpo.toml", &set.iter().map(String::as_str).collect::<Vec<_>>());
    // A log-ratio of 0 against margins 0, 1, 2: the mean of softplus(0), softplus(1), softplus(2).
    let first = run.steps("dpo")[0]["loss"].as_f64().unwrap();
    let mean = (2f64.ln() + 1.0f64.exp().ln_1p() + 2.0f64.exp().ln_1p()) / 3.0;
    eprintln!("own margins: loss of the first step {first:.3}, by hand about {mean:.3}");
    assert!((first - mean).abs() < 0.2, "{first} {mean}");
}

#[test]
fn rows_of_a_stage_are_mixed_and_bad_ones_are_told_or_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = lines("dialogues-train.jsonl");
    rows.truncate(20);
    rows.insert(3, serde_json::json!({"prompt": "q", "response": 7}));
    let bad = write_lines(&folder.path().join("bad.jsonl"), &rows);
    let sources =
        format!("stage.0.train=[\"supervised:16/-1:data/dialogues-train.jsonl\", {bad:?}]");
    let run = folder.path().join("run");
    let output = train("sft.toml", &run, &[&sources, "stage.0.epochs=1"]);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let cause = "bad.jsonl line 4: field \"response\" is 7, expected text";
    assert!(told.contains("stage[0].train") && told.contains(cause), "{told}");
    let set = [&sources, "stage.0.epochs=1", "stage.0.max_loss=9.0", "data.on_bad_row=skip"];
    let run = Run::new("sft.toml", &set);
    let figure = |name: &str| run.figure("sft", name);
    assert_eq!((figure("dialogues"), figure("skipped_rows")), (36.0, 1.0));
    assert_eq!(figure("steps"), 3.0, "16 + 16 + 4 dialogues");
}
