//! Kill -9 of everything, and `plumb train --resume`: coordinator, agent and workers die at a
//! random moment, and the run goes on as if they had not, at any number of ranks, also when the
//! disk has damaged the newest checkpoint.
//!
//! The programs are those that `cargo build --workspace --bins` leaves beside the test's own.
//! `PLUMB_TEST_SEED` repeats the moments of a run, which prints its own.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first surprise"
)]

mod process;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use process::{children_of, lives};

/// Generous for a busy machine; every wait ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_secs(240);

/// 30 optimiser steps on gsm8k, a commit every third.
const SFT: [&str; 5] = [
    "stage.0.epochs=1",
    "stage.0.dialogues_per_step=11",
    "stage.0.eval_every_steps=10",
    "stage.0.optimizer.warmup_steps=3",
    "checkpoint.every_steps=3",
];

fn plumb() -> Command {
    let folder = Path::new(env!("CARGO_BIN_EXE_cluster-node")).parent().unwrap().to_owned();
    for name in ["plumb", "actor-worker", "rollout-worker", "reward-worker"] {
        let path = folder.join(name);
        assert!(path.is_file(), "{} is missing: cargo build --workspace --bins", path.display());
    }
    let mut command = Command::new(folder.join("plumb"));
    command.env("OMP_NUM_THREADS", "1").env_remove("PLUMB_LOG");
    command
}

fn train(recipe: &str, run: &Path, set: &[&str]) -> Command {
    let mut command = plumb();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny").join(recipe);
    command.arg("train").arg(recipe).arg("--run-dir").arg(run);
    for set in set {
        command.arg("--set").arg(set);
    }
    command
}

fn text(output: &Output) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    part(&output.stdout) + &part(&output.stderr)
}

/// Runs to the end; what it printed.
fn finish(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

fn resume(recipe: &str, run: &Path, set: &[&str]) -> String {
    let mut command = train(recipe, run, set);
    command.arg("--resume");
    finish(command)
}

/// Which steps to kill at: a small generator, so that a seed repeats a run.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let given = std::env::var("PLUMB_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let seed = given.unwrap_or(u64::from(now.subsec_nanos()));
        eprintln!("PLUMB_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number in `first..end`.
    fn draw(&mut self, first: u64, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        first + (z ^ (z >> 31)) % (end - first)
    }
}

/// A job that something will happen to.
struct Job {
    child: Child,
    run: PathBuf,
}

impl Job {
    fn start(mut command: Command, run: &Path) -> Self {
        let stderr = std::fs::File::create(run.with_extension("err")).unwrap();
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        Self { child, run: run.to_owned() }
    }

    fn wait_for_steps(&mut self, stage: &str, count: usize) {
        let start = Instant::now();
        while steps(&self.run, stage).len() < count {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended early: {ended:?}\n{}", self.stderr());
            assert!(start.elapsed() < PATIENCE, "no {count} steps\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.run.with_extension("err")).unwrap_or_default()
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

    /// SIGKILL to every process, at once.
    fn kill_all(mut self) {
        let processes = self.processes();
        assert!(processes.values().any(|name| name == "actor-worker"), "{processes:?}");
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL).unwrap();
        for pid in processes.keys() {
            // One that has just ended with its parent is as dead.
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
        self.child.wait().unwrap();
        let start = Instant::now();
        while processes.keys().any(|pid| lives(*pid)) {
            assert!(start.elapsed() < Duration::from_secs(20), "{processes:?} live on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill_workers(&self) {
        for (pid, _) in self.processes().iter().filter(|(_, name)| *name == "actor-worker") {
            kill(Pid::from_raw(*pid as i32), Signal::SIGKILL).unwrap();
        }
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A stage's lines of `metrics.jsonl`.
fn steps(run: &Path, stage: &str) -> Vec<serde_json::Value> {
    lines(&run.join("metrics.jsonl")).into_iter().filter(|line| line["stage"] == stage).collect()
}

/// A figure of every step; the steps must be all there, each once, in order.
fn curve(run: &Path, stage: &str, figure: &str) -> Vec<f64> {
    let steps = steps(run, stage);
    let numbers: Vec<_> = steps.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=steps.len() as u64).collect::<Vec<_>>(), "{}", run.display());
    steps.iter().map(|line| line[figure].as_f64().unwrap()).collect()
}

fn assert_close(got: &[f64], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (step, (got, expected)) in got.iter().zip(expected).enumerate() {
        let difference = ((got - expected) / expected).abs();
        assert!(difference <= 1e-5, "{what}, step {}: {got} for {expected}", step + 1);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// The completed commits of a stage, newest first.
fn commits(run: &Path, stage: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join("checkpoint").join(stage)).unwrap().flatten();
    let mut commits: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join("commit.json").is_file())
        .collect();
    commits.sort();
    commits.reverse();
    commits
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn a_killed_run_goes_on_at_any_world_size_and_past_a_damaged_checkpoint() {
    let mut moments = Moments::new();
    let folder = TempDir::new().unwrap();
    let whole = folder.path().join("whole");
    finish(train("sft.toml", &whole, &SFT));
    let expected = curve(&whole, "sft", "loss");
    assert_eq!(expected.len(), 30);

    let killed = folder.path().join("killed");
    let mut job = Job::start(train("sft.toml", &killed, &SFT), &killed);
    job.wait_for_steps("sft", moments.draw(8, 27) as usize);
    std::thread::sleep(Duration::from_millis(moments.draw(0, 60)));
    job.kill_all();
    let done = steps(&killed, "sft").len();
    let newest = commits(&killed, "sft").remove(0);
    eprintln!("killed after step {done}, newest commit {}", newest.display());
    assert!((8..30).contains(&done) && !killed.join("summary.json").exists());

    for ranks in [2, 1, 4] {
        let run = folder.path().join(format!("at-{ranks}"));
        copy(&killed, &run);
        let told =
            resume("sft.toml", &run, &with(&SFT, &format!("groups.policy.world_size={ranks}")));
        assert!(told.contains("stage sft goes on from"), "{told}");
        let losses = curve(&run, "sft", "loss");
        if ranks == 2 {
            assert_eq!(losses, expected, "bit for bit");
            let model = "models/sft/model.safetensors";
            assert_eq!(read(run.join(model)), read(whole.join(model)));
        }
        assert_close(&losses, &expected, &format!("{ranks} ranks"));
        let summary = |run: &Path| -> serde_json::Value {
            serde_json::from_slice(&read(run.join("summary.json"))).unwrap()
        };
        let before = |run| summary(run)["stages"]["sft"]["heldout_loss_before"].as_f64();
        assert_eq!(before(&run), before(&whole), "measured once, before the first step");
    }

    let run = folder.path().join("damaged");
    copy(&killed, &run);
    let newest = commits(&run, "sft").remove(0);
    let shard = newest.join("policy/shard-00001-of-00002.safetensors");
    let mut bytes = read(&shard);
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let verified = plumb().args(["checkpoint", "verify"]).arg(&run).output().unwrap();
    assert_eq!(verified.status.code(), Some(1));
    assert!(
        text(&verified).contains("shard-00001-of-00002.safetensors: has BLAKE3"),
        "{verified:?}"
    );
    let told = resume("sft.toml", &run, &SFT);
    assert!(told.contains("checkpoint refused"), "{told}");
    assert!(told.contains("shard-00001-of-00002.safetensors"), "{told}");
    assert_eq!(curve(&run, "sft", "loss"), expected, "from the commit before");
    let verified = plumb().args(["checkpoint", "verify"]).arg(&run).output().unwrap();
    assert!(verified.status.success(), "{}", text(&verified));

    // The last commit is what the stage has left as its model.
    let out = folder.path().join("out");
    let last = run.join("checkpoint/sft/step-000030");
    let exported = plumb().arg("export").arg(last).arg(&out).output().unwrap();
    assert!(exported.status.success(), "{}", text(&exported));
    let file = "model.safetensors";
    assert_eq!(read(out.join(file)), read(run.join("models/sft").join(file)));

    let other = train("sft.toml", &run, &with(&SFT, "stage.0.epochs=2")).arg("--resume").output();
    let other = other.unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other).contains("stage.0.epochs was 1 and is 2"), "{}", text(&other));
}

fn with<'a>(set: &[&'a str], more: &'a str) -> Vec<&'a str> {
    set.iter().copied().chain([more]).collect()
}

#[test]
fn lost_ranks_take_a_stage_back_to_its_last_commit_only() {
    let mut moments = Moments::new();
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    let mut job = Job::start(train("sft.toml", &run, &SFT), &run);
    job.wait_for_steps("sft", moments.draw(8, 20) as usize);
    job.kill_workers();
    let start = Instant::now();
    while job.child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < PATIENCE, "did not end\n{}", job.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = job.stderr();
    assert!(run.join("summary.json").is_file(), "{told}");
    assert!(told.contains("stage sft goes on from its last checkpoint"), "{told}");
    assert!(told.contains("stage sft goes on from /"), "{told}");
    let losses = curve(&run, "sft", "loss");
    assert_eq!(losses.len(), 30);
}

#[test]
fn a_killed_reinforcement_job_is_resumed_where_it_was() {
    let mut moments = Moments::new();
    let folder = TempDir::new().unwrap();
    let set = ["algorithm.steps=8", "checkpoint.every_steps=2"];
    let whole = folder.path().join("whole");
    finish(train("tiny.toml", &whole, &set));
    let run = folder.path().join("run");
    let mut job = Job::start(train("tiny.toml", &run, &set), &run);
    job.wait_for_steps("train", moments.draw(3, 7) as usize);
    std::thread::sleep(Duration::from_millis(moments.draw(0, 60)));
    job.kill_all();
    let sampled = read(run.join("samples/sample.jsonl"));
    let told = resume("tiny.toml", &run, &set);
    assert!(told.contains("stage safety_rm was finished before"), "{told}");
    assert!(told.contains("stage train goes on from"), "{told}");
    assert_eq!(read(run.join("samples/sample.jsonl")), sampled);
    for figure in ["policy/loss", "reward/mean", "kl/per_token"] {
        let (got, expected) = (curve(&run, "train", figure), curve(&whole, "train", figure));
        assert_eq!(got, expected, "{figure}");
    }
    let words = |run: &Path| -> Vec<_> {
        let lines = lines(&run.join("samples/train.jsonl"));
        let word = |line: &serde_json::Value| {
            (line["step"].as_u64(), line["id"].to_string(), line["response"].to_string())
        };
        lines.iter().map(word).collect()
    };
    assert_eq!(words(&run), words(&whole), "no sample twice, none missing");
    let summary: serde_json::Value =
        serde_json::from_slice(&read(run.join("summary.json"))).unwrap();
    assert_eq!(summary["stages"].as_object().unwrap().len(), 7);
    let file = "export/model.safetensors";
    assert_eq!(read(run.join(file)), read(whole.join(file)));
}
