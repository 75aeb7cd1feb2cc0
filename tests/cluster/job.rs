//! Whole jobs with real processes: `plumb train` on the tiny recipe, undisturbed, with workers
//! killed, interrupted, and with inputs that are wrong.
//!
//! The programs are those that `cargo build --workspace --bins` leaves beside the test's own.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod process;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use process::{children_of, lives};

/// Generous for a busy machine; every wait ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_secs(240);

/// The folder of the built programs.
fn programs() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_cluster-node")).parent().unwrap().to_owned();
    for name in ["plumb", "actor-worker", "rollout-worker", "reward-worker"] {
        let path = folder.join(name);
        assert!(path.is_file(), "{} is missing: cargo build --workspace --bins", path.display());
    }
    folder
}

fn recipe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny/tiny.toml")
}

fn plumb(arguments: &[&str]) -> Command {
    let mut command = Command::new(programs().join("plumb"));
    command.args(arguments).env("OMP_NUM_THREADS", "1").env_remove("PLUMB_LOG");
    command
}

fn train(run: &Path, set: &[&str]) -> Command {
    let mut command = plumb(&["train"]);
    command.arg(recipe()).arg("--run-dir").arg(run);
    for set in set {
        command.arg("--set").arg(set);
    }
    command
}

/// A job that runs while the test does something to it.
struct Job {
    child: Child,
    run: PathBuf,
}

impl Job {
    fn start(run: &Path, set: &[&str]) -> Self {
        let stderr = std::fs::File::create(run.with_extension("err")).unwrap();
        let child = train(run, set)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { child, run: run.to_owned() }
    }

    /// Waits until the policy has taken `steps` steps.
    fn wait_for_steps(&mut self, steps: usize) {
        let start = Instant::now();
        while train_steps(&self.run) < steps {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended early: {ended:?}\n{}", self.stderr());
            assert!(start.elapsed() < PATIENCE, "no {steps} steps\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All processes below this one: pid and program name.
    fn processes(&self) -> BTreeMap<u32, String> {
        let mut found = BTreeMap::new();
        let mut parents = vec![self.child.id()];
        while let Some(parent) = parents.pop() {
            for (pid, name) in children_of(parent) {
                found.insert(pid, name);
                parents.push(pid);
            }
        }
        found
    }

    fn kill_worker(&self, program: &str, signal: Signal) {
        let pid = self
            .processes()
            .into_iter()
            .find(|(_, name)| name == program)
            .unwrap_or_else(|| panic!("no {program} among {:?}", self.processes()));
        kill(Pid::from_raw(pid.0 as i32), signal).unwrap();
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.run.with_extension("err")).unwrap_or_default()
    }

    /// Waits for the end; returns the exit code.
    fn end(mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), self.stderr());
            }
            assert!(start.elapsed() < PATIENCE, "did not end\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn assert_gone(pids: &BTreeMap<u32, String>) {
    let start = Instant::now();
    loop {
        let left: Vec<_> = pids.iter().filter(|(pid, _)| lives(**pid)).collect();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn train_steps(run: &Path) -> usize {
    lines(&run.join("metrics.jsonl")).iter().filter(|l| l["stage"] == "train").count()
}

fn summary(run: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap()
}

/// Names in the run folder that say that somebody was interrupted while writing.
fn half_written(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".tmp") || name.ends_with(".partial") {
            found.push(path.clone());
        }
        if path.is_dir() {
            found.extend(half_written(&path));
        }
    }
    found
}

fn run_folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    (folder, run)
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_job_runs_all_stages_and_leaves_its_artefacts() {
    let (_folder, run) = run_folder();
    let output = train(&run, &[]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let summary = summary(&run);
    assert_eq!(summary["outcome"], "succeeded");
    assert_eq!(summary["stage_seconds"].as_object().unwrap().len(), 7);
    let measures = summary["measures"].as_array().unwrap();
    assert_eq!(measures.len(), 3);
    assert!(measures.iter().all(|m| m["before"].is_number() && m["n"].as_u64() > Some(0)));
    assert_eq!(train_steps(&run), 6);
    for name in [
        "report.html",
        "recipe.toml",
        "samples/sample.jsonl",
        "samples/train.jsonl",
        "samples/evaluate-before.jsonl",
        "samples/evaluate-after.jsonl",
        "pairs/label.jsonl",
        "models/safety_rm/config.json",
        "checkpoint/train/step-000006/commit.json",
        "export/config.json",
        "export/tokenizer.json",
    ] {
        assert!(run.join(name).is_file(), "{name} is missing");
    }
    let kl = &summary["kl"];
    assert!(kl["max"].as_f64().unwrap() > 0.0, "the policy never moved: {kl}");
    assert_eq!(lines(&run.join("samples/train.jsonl")).len(), 6 * 4 * 8);
    assert_eq!(half_written(&run), Vec::<PathBuf>::new());
    let told = text(&output);
    assert!(told.contains("held-out measure") && told.contains("report.html"), "{told}");
}

#[test]
fn a_killed_rollout_worker_does_not_end_the_job() {
    let (_folder, run) = run_folder();
    let mut job = Job::start(&run, &["algorithm.steps=8"]);
    job.wait_for_steps(2);
    job.kill_worker("rollout-worker", Signal::SIGKILL);
    let (code, told) = job.end();
    assert_eq!(code, Some(0), "{told}");
    assert!(summary(&run)["restarts"].as_u64() >= Some(1));
    assert_eq!(train_steps(&run), 8);
}

#[test]
fn killed_policy_ranks_and_reference_take_the_job_back_to_the_last_commit() {
    let (_folder, run) = run_folder();
    let mut job = Job::start(&run, &["algorithm.steps=8"]);
    job.wait_for_steps(3);
    let actors: Vec<u32> = job
        .processes()
        .into_iter()
        .filter_map(|(pid, name)| (name == "actor-worker").then_some(pid))
        .collect();
    assert_eq!(actors.len(), 3, "two policy ranks and the reference");
    for pid in actors {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    }
    let (code, told) = job.end();
    assert_eq!(code, Some(0), "{told}");
    assert!(summary(&run)["restarts"].as_u64() >= Some(1), "{told}");
    assert!(run.join("checkpoint/train/step-000008/commit.json").is_file());
}

#[test]
fn an_interrupt_leaves_no_process_and_no_half_written_file() {
    let (_folder, run) = run_folder();
    let mut job = Job::start(&run, &["algorithm.steps=500", "checkpoint.every_steps=1"]);
    job.wait_for_steps(1);
    let processes = job.processes();
    assert!(processes.values().any(|name| name == "rollout-worker"), "{processes:?}");
    kill(Pid::from_raw(job.child.id() as i32), Signal::SIGINT).unwrap();
    let (code, told) = job.end();
    assert_eq!(code, Some(130), "{told}");
    assert_gone(&processes);
    assert_eq!(half_written(&run), Vec::<PathBuf>::new());
    assert!(!run.join("summary.json").exists());
}

#[test]
fn a_second_job_in_the_same_run_folder_is_refused() {
    let (_folder, run) = run_folder();
    let mut first = Job::start(&run, &["algorithm.steps=500"]);
    first.wait_for_steps(1);
    let second = train(&run, &[]).output().unwrap();
    assert!(!second.status.success());
    let told = text(&second);
    assert!(told.contains("is in use by another job"), "{told}");
    kill(Pid::from_raw(first.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(first.end().0, Some(130));
}

#[test]
fn wrong_inputs_are_named_and_leave_nothing() {
    let broken = tempfile::tempdir().unwrap();
    let model = recipe().with_file_name("model");
    for entry in std::fs::read_dir(&model).unwrap().flatten() {
        std::fs::copy(entry.path(), broken.path().join(entry.file_name())).unwrap();
    }
    let weights = broken.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    let broken = format!("model.path={:?}", broken.path().display().to_string());
    for (set, cause) in [
        ("algorithm.step=3", "unknown key `algorithm.step`; did you mean `steps`?"),
        ("algorithm.samples_per_prompt=1", "algorithm.samples_per_prompt"),
        ("model.path=\"no-such-model\"", "no-such-model"),
        ("data.train=\"no-such-file.jsonl\"", "no-such-file.jsonl"),
        (broken.as_str(), "model.safetensors"),
    ] {
        let (_folder, run) = run_folder();
        let output = train(&run, &[set]).output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(1), "{set}: {told}");
        assert!(told.contains(cause), "{set}: {told}");
        assert_eq!(told.matches("error:").count(), 1, "told once: {told}");
        assert_eq!(half_written(&run), Vec::<PathBuf>::new(), "{set}");
        assert!(!run.join("summary.json").exists(), "{set}");
    }
}
