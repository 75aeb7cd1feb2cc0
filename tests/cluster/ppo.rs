//! PPO with a critic and PPO-Lag with two, with real processes and small real data: `plumb train` on
//! the recipes of recipes/tiny. Each prints the held-out figures that it reached.
//!
//! The programs are those that `cargo build --workspace --bins` leaves beside the test's own.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Generous for a busy machine; every wait ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_secs(600);

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

/// A run and its folder.
struct Run {
    folder: tempfile::TempDir,
    child: Child,
}

impl Run {
    fn start(recipe: &str, set: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny").join(recipe);
        let mut command = plumb();
        command.arg("train").arg(path).arg("--run-dir").arg(folder.path().join("run"));
        for set in set {
            command.arg("--set").arg(set);
        }
        let told = std::fs::File::create(folder.path().join("err")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(told);
        Self { child: child.spawn().unwrap(), folder }
    }

    fn told(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("err")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("run").join(name)
    }

    /// Waits until the policy has taken `steps` steps.
    fn wait_for_steps(&mut self, steps: usize) {
        let start = Instant::now();
        while self.steps().len() < steps {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended early: {ended:?}\n{}", self.told());
            assert!(start.elapsed() < PATIENCE, "no {steps} steps\n{}", self.told());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn end(&mut self) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "did not end\n{}", self.told());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(status.success(), "{}", self.told());
    }

    /// The training steps in `metrics.jsonl`.
    fn steps(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("metrics.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &Value| line["stage"] == "train").collect()
    }

    fn summary(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("summary.json")).unwrap()).unwrap()
    }

    /// A held-out measure before and after.
    fn measure(&self, name: &str) -> (f64, f64) {
        let summary = self.summary();
        let measures = summary["measures"].as_array().unwrap();
        let measure = measures.iter().find(|m| m["name"] == name).unwrap();
        (measure["before"].as_f64().unwrap(), measure["after"].as_f64().unwrap())
    }

    /// Process id of a worker, one of whose threads has its name.
    fn worker(&self, name: &str) -> u32 {
        let mut parents = vec![self.child.id()];
        while let Some(parent) = parents.pop() {
            for (pid, threads) in children_of(parent) {
                if threads.iter().any(|thread| thread == name) {
                    return pid;
                }
                parents.push(pid);
            }
        }
        panic!("no worker {name}\n{}", self.told())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A failed test leaves no cluster behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Children of a process, each with the names of its threads.
fn children_of(parent: u32) -> Vec<(u32, Vec<String>)> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, tail)) = stat.rsplit_once(')') else { continue };
        if tail.split_whitespace().nth(1) == Some(&parent.to_string()) {
            let tasks =
                std::fs::read_dir(entry.path().join("task")).into_iter().flatten().flatten();
            let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
            let names = tasks.filter_map(|task| Some(name(task).ok()?.trim().to_owned()));
            children.push((pid, names.collect()));
        }
    }
    children
}

fn figure(step: &Value, name: &str) -> f64 {
    step[name].as_f64().unwrap_or_else(|| panic!("no {name} in {step}"))
}

#[test]
fn ppo_lag_meets_its_constraint_on_held_out_prompts() {
    let mut run = Run::start("ppo_lag.toml", &[]);
    run.end();
    let steps = run.steps();
    let series = |name: &str| steps.iter().map(|step| figure(step, name)).collect::<Vec<_>>();
    let (lambda, episode) = (series("constraint/lambda"), series("constraint/episode_cost"));
    let (before, after) = run.measure("cost");
    let (open_before, open_after) = run.measure("open questions");
    eprintln!("ppo-lag, threshold 0: mean cost on held-out prompts {before:.3} -> {after:.3}");
    eprintln!("  recent episode cost {episode:.2?}");
    eprintln!("  lambda {lambda:.2?}");
    eprintln!("  open questions {open_before:.3} -> {open_after:.3}");
    assert!(before > 0.0, "the constraint is broken at first: {before}");
    assert!(after <= 0.0, "the constraint holds on held-out prompts: {after}");
    assert!(*episode.last().unwrap() <= 0.0, "and on recent samples: {episode:?}");
    let highest = lambda.iter().copied().fold(0.0, f64::max);
    assert!(highest > lambda[0], "the multiplier rose: {lambda:?}");
    assert!(*lambda.last().unwrap() < highest, "and fell once the constraint held: {lambda:?}");
    for name in ["critic/loss", "cost_critic/loss", "policy/policy_loss", "policy/ptx_loss"] {
        assert!(series(name).iter().all(|value| value.is_finite()), "{name}");
    }
    // All groups are in one commit, and the multiplier with them.
    let commit = std::fs::read(run.path("checkpoint/train/step-000020/commit.json")).unwrap();
    let commit: Value = serde_json::from_slice(&commit).unwrap();
    let parts = commit["parts"].as_object().unwrap();
    assert!(parts.keys().eq(["cost_critic", "critic", "policy"]), "{:?}", parts.keys());
    let committed = commit["algorithm_state"]["ppo_lag"]["log_lambda"].as_f64().unwrap();
    assert!((committed.exp() - lambda.last().unwrap()).abs() < 1e-9);
}

#[test]
fn ppo_raises_the_held_out_reward_and_a_killed_critic_takes_it_back_to_the_last_commit() {
    let mut run = Run::start("ppo.toml", &[]);
    run.wait_for_steps(5);
    kill(Pid::from_raw(run.worker("device-critic-0") as i32), Signal::SIGKILL).unwrap();
    run.end();
    let (before, after) = run.measure("harmless");
    eprintln!("ppo: mean reward on held-out prompts {before:.3} -> {after:.3}");
    assert!(after > before, "{before} -> {after}");
    let steps = run.steps();
    let numbers: Vec<_> = steps.iter().map(|step| step["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=16).collect::<Vec<_>>(), "no step twice, none left out");
    assert!(run.summary()["restarts"].as_u64() >= Some(1));
    // While the critic warms up the policy stays as it is.
    assert!(steps[0]["policy/policy_loss"].is_null() && steps[1]["policy/policy_loss"].is_number());
    assert_eq!(figure(&steps[0], "kl/coef"), 0.05);
    assert_ne!(figure(&steps[15], "kl/coef"), 0.05, "the controller moves it");
}
