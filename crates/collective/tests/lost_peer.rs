//! CO-3 with real processes: a rank that is killed, and one that is stopped.
//!
//! The test binary starts itself once per rank; see [`rank_process`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "clippy takes a test file's own functions for library code"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plumb_collective::gloo::Gloo;
use plumb_collective::{Collective, ReduceOp};
use plumb_torch::{Store, StoreError};
use tch::{Device, Kind, Tensor};

const WORLD_SIZE: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(6);
const LOST_RANK: usize = 1;
const FOLDER: &str = "PLUMB_TEST_STORE";
const RANK: &str = "PLUMB_TEST_RANK";

/// A rendezvous store of one file per key, for processes of one machine.
struct FolderStore(PathBuf);

impl FolderStore {
    fn file(&self, key: &str) -> PathBuf {
        self.0.join(key.replace('/', "%"))
    }
}

fn failed(error: std::io::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl Store for FolderStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let temporary = self.0.join(format!("{}.{}", key.replace('/', "%"), std::process::id()));
        std::fs::write(&temporary, value).map_err(failed)?;
        std::fs::rename(temporary, self.file(key)).map_err(failed)
    }

    fn get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        let start = Instant::now();
        loop {
            let values: Option<Vec<_>> =
                keys.iter().map(|key| std::fs::read(self.file(key)).ok()).collect();
            if let Some(values) = values {
                return Ok(values);
            }
            if start.elapsed() >= timeout {
                let missing = keys.iter().map(|key| (*key).to_owned()).collect();
                return Err(StoreError::Timeout { missing, timeout_secs: timeout.as_secs_f64() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn add(&self, _key: &str, _amount: i64) -> Result<i64, StoreError> {
        Err(StoreError::Failed("this store does not count".to_owned()))
    }

    fn delete(&self, key: &str) -> Result<bool, StoreError> {
        Ok(std::fs::remove_file(self.file(key)).is_ok())
    }
}

/// Not a test of its own: what each child process runs. Reduces until that fails, then prints
/// `failed <milliseconds in the failing call> <absent ranks> <message>`.
#[test]
fn rank_process() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let rank: usize = std::env::var(RANK).unwrap().parse().unwrap();
    let store = Arc::new(FolderStore(PathBuf::from(folder)));
    let comm = Gloo::connect(store, "policy", rank, WORLD_SIZE, TIMEOUT).unwrap();
    for round in 0..1_000_000 {
        let mut t = Tensor::ones([1024], (Kind::Float, Device::Cpu));
        let start = Instant::now();
        let result = comm.all_reduce(&mut t, ReduceOp::Sum).and_then(|pending| pending.wait());
        if let Err(error) = result {
            println!("\nfailed {} {:?} {error}", start.elapsed().as_millis(), error.absent());
            return;
        }
        assert_eq!(t.double_value(&[0]), WORLD_SIZE as f64);
        if round == 10 {
            println!("\nreducing");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Rank {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Rank {
    fn start(rank: usize, folder: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["rank_process", "--exact", "--nocapture"])
            .env(FOLDER, folder)
            .env(RANK, rank.to_string())
            .env("OMP_NUM_THREADS", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    fn line_with(&mut self, start: &str) -> String {
        let mut lines = self.lines.by_ref().map(Result::unwrap);
        lines.find(|line| line.starts_with(start)).expect("the rank ended early")
    }

    fn signal(&self, signal: &str) {
        let status =
            Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends `signal` to one of three running ranks. The others' failing calls, in milliseconds.
fn lose_a_rank_by(signal: &str) -> Vec<u128> {
    let folder = tempfile::tempdir().unwrap();
    let mut ranks: Vec<Rank> =
        (0..WORLD_SIZE).map(|rank| Rank::start(rank, folder.path())).collect();
    for rank in &mut ranks {
        rank.line_with("reducing");
    }
    ranks[LOST_RANK].signal(signal);
    let survivors = ranks.iter_mut().enumerate().filter(|(rank, _)| *rank != LOST_RANK);
    survivors
        .map(|(_, rank)| {
            let line = rank.line_with("failed");
            println!("{line}");
            assert!(line.contains(&format!("[{LOST_RANK}] group \"policy\"")), "{line}");
            assert!(line.contains("all-reduce"), "{line}");
            line.split(' ').nth(1).unwrap().parse().unwrap()
        })
        .collect()
}

/// Finding out who is missing takes the grace period of two seconds; the failure itself does not.
const REPORTING_MILLIS: u128 = 2_000;

#[test]
fn a_killed_rank_is_named_at_once() {
    for millis in lose_a_rank_by("-KILL") {
        assert!(millis < REPORTING_MILLIS + 1_500, "{millis} ms, long before the time limit");
    }
}

#[test]
fn a_stopped_rank_is_named_at_the_time_limit() {
    for millis in lose_a_rank_by("-STOP") {
        assert!(millis < TIMEOUT.as_millis() + REPORTING_MILLIS + 1_500, "{millis} ms");
    }
}
