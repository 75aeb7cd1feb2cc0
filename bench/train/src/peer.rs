//! PyTorch's side: one process per rank.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::Arguments;
use crate::case::Case;
use crate::ours::{LEARNING_RATE, Step};

/// The peer's processes, rank 0 first.
pub(crate) struct Peer {
    processes: Vec<Process>,
}

struct Process {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct Answer {
    secs: f64,
    loss: f64,
}

impl Peer {
    /// Starts the processes and waits until each has its model.
    pub(crate) fn start(
        case: &Case,
        folder: &Path,
        rows: &[Vec<u32>],
        arguments: &Arguments,
    ) -> Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut peer = Self { processes: Vec::new() };
        for rank in 0..case.ranks {
            let mut process = Process::start(arguments)?;
            let case = json!({
                "folder": folder, "rows": rows, "rank": rank, "ranks": case.ranks, "port": port,
                "dtype": case.dtype, "recompute": case.recompute, "lr": LEARNING_RATE,
            });
            process.order(&case.to_string())?;
            peer.processes.push(process);
        }
        for process in &mut peer.processes {
            let answer = process.answer()?;
            ensure!(answer.trim() == "ready", "the peer said {answer:?} instead of ready");
        }
        Ok(peer)
    }

    /// One step of all ranks: the time of the slowest, the mean of their losses.
    pub(crate) fn step(&mut self) -> Result<Step> {
        for process in &mut self.processes {
            process.order("step")?;
        }
        let (mut secs, mut loss) = (0.0f64, 0.0);
        let ranks = self.processes.len() as f64;
        for process in &mut self.processes {
            let line = process.answer()?;
            let answer: Answer =
                serde_json::from_str(&line).with_context(|| format!("the peer said {line:?}"))?;
            secs = secs.max(answer.secs);
            loss += answer.loss / ranks;
        }
        Ok(Step { secs, loss })
    }
}

impl Process {
    fn start(arguments: &Arguments) -> Result<Self> {
        let mut child = Command::new(&arguments.python)
            .arg(&arguments.peer)
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", arguments.python.display()))?;
        let orders = child.stdin.take().context("the peer has no standard input")?;
        let answers = child.stdout.take().context("the peer has no standard output")?;
        Ok(Self { child, orders, answers: BufReader::new(answers) })
    }

    fn order(&mut self, line: &str) -> Result<()> {
        writeln!(self.orders, "{line}").context("the peer has ended")?;
        Ok(self.orders.flush()?)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line)?;
        ensure!(read > 0, "the peer has ended; its own message stands above");
        Ok(line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is waited for, so that none is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
