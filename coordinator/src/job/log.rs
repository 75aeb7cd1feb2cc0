//! Figures and times of a run: `metrics.jsonl`, and what the report is made of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use plumb_telemetry::{JsonLines, JsonLinesError};
use serde::Serialize;

use crate::report::StepRecord;
use crate::report::timeline::Span;

/// Notes figures and spans. Cheap to clone.
#[derive(Clone)]
pub struct RunLog(Arc<Inner>);

struct Inner {
    began: Instant,
    metrics: Mutex<JsonLines>,
    steps: Mutex<Vec<StepRecord>>,
    spans: Mutex<Vec<Span>>,
    restarts: AtomicU64,
}

#[derive(Serialize)]
struct Line<'a> {
    stage: &'a str,
    step: u64,
    seconds: f64,
    #[serde(flatten)]
    metrics: &'a BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct StageLine<'a> {
    finished_stage: &'a str,
    seconds: f64,
    #[serde(flatten)]
    metrics: &'a BTreeMap<String, f64>,
}

/// A line of an earlier log.
struct OldLine {
    seconds: f64,
    record: StepRecord,
}

/// The lines of an earlier log; what is no such line is passed over.
fn read(path: &Path) -> Vec<OldLine> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
        let figure = |(name, value): (&String, &serde_json::Value)| {
            let own = ["stage", "step", "seconds"].contains(&name.as_str());
            Some((name.clone(), value.as_f64().filter(|_| !own)?))
        };
        Some(OldLine {
            seconds: line.get("seconds")?.as_f64()?,
            record: StepRecord {
                stage: line.get("stage")?.as_str()?.to_owned(),
                step: line.get("step")?.as_u64()?,
                metrics: line.iter().filter_map(figure).collect(),
            },
        })
    };
    text.lines().filter_map(line).collect()
}

impl RunLog {
    /// Starts the clock, or goes on where the log of an interrupted job ends.
    ///
    /// # Errors
    /// The metrics file cannot be opened.
    pub fn open(metrics: PathBuf) -> Result<Self, JsonLinesError> {
        let lines = JsonLines::open(&metrics)?;
        let before = read(&metrics);
        let seconds = before.iter().map(|line| line.seconds).fold(0.0, f64::max);
        let now = Instant::now();
        Ok(Self(Arc::new(Inner {
            began: now.checked_sub(Duration::from_secs_f64(seconds)).unwrap_or(now),
            metrics: Mutex::new(lines),
            steps: Mutex::new(before.into_iter().map(|line| line.record).collect()),
            spans: Mutex::default(),
            restarts: AtomicU64::new(0),
        })))
    }

    /// Seconds since the job began, without those between an interruption and its resumption.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.0.began.elapsed().as_secs_f64()
    }

    /// Figures of a finished step, counted from 1. Those of steps that are run again are taken
    /// back first ([`RunLog::rewind`]).
    ///
    /// # Errors
    /// The line could not be written.
    pub fn step(
        &self,
        stage: &str,
        step: u64,
        metrics: &BTreeMap<String, f64>,
    ) -> Result<(), JsonLinesError> {
        let line = Line { stage, step, seconds: self.seconds(), metrics };
        self.0.metrics.lock().unwrap_or_else(PoisonError::into_inner).append(&line)?;
        let mut steps = self.0.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.push(StepRecord { stage: stage.to_owned(), step, metrics: metrics.clone() });
        Ok(())
    }

    /// Figures of a finished stage, under `finished_stage`.
    ///
    /// # Errors
    /// The line could not be written.
    pub fn stage(
        &self,
        stage: &str,
        metrics: &BTreeMap<String, f64>,
    ) -> Result<(), JsonLinesError> {
        let line = StageLine { finished_stage: stage, seconds: self.seconds(), metrics };
        self.0.metrics.lock().unwrap_or_else(PoisonError::into_inner).append(&line)
    }

    /// Takes back the figures of a stage's steps after `last`, which are run again.
    ///
    /// # Errors
    /// The file could not be rewritten.
    pub fn rewind(&self, stage: &str, last: u64) -> Result<(), JsonLinesError> {
        let later = |of: &str, step: u64| of == stage && step > last;
        let mut steps = self.0.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if !steps.iter().any(|s| later(&s.stage, s.step)) {
            return Ok(());
        }
        steps.retain(|s| !later(&s.stage, s.step));
        self.0.metrics.lock().unwrap_or_else(PoisonError::into_inner).retain(|line| {
            !later(line["stage"].as_str().unwrap_or(""), line["step"].as_u64().unwrap_or(0))
        })
    }

    /// Work that has just ended after `seconds`.
    pub fn span(&self, lane: &str, text: &str, seconds: f64, ok: bool) {
        let end = self.seconds();
        let start = (end - seconds).max(0.0);
        let span = Span { lane: lane.to_owned(), text: text.to_owned(), start, end, ok };
        self.0.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }

    /// A worker was lost and is brought back.
    pub fn restarted(&self) {
        self.0.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// That was so often before the job was resumed.
    pub fn set_restarts(&self, restarts: u64) {
        self.0.restarts.fetch_max(restarts, Ordering::Relaxed);
    }

    /// How often that was.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.0.restarts.load(Ordering::Relaxed)
    }

    /// Steps so far.
    #[must_use]
    pub fn steps(&self) -> Vec<StepRecord> {
        self.0.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Figures of a stage's steps so far, in order.
    #[must_use]
    pub fn steps_of(&self, stage: &str) -> Vec<BTreeMap<String, f64>> {
        self.steps().into_iter().filter(|s| s.stage == stage).map(|s| s.metrics).collect()
    }

    /// Spans so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.0.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_are_run_again_take_the_place_of_their_first_run() {
        let folder = tempfile::tempdir().unwrap();
        let log = RunLog::open(folder.path().join("metrics.jsonl")).unwrap();
        let figures = |v: f64| BTreeMap::from([("loss".to_owned(), v)]);
        for (step, value) in [(1, 0.1), (2, 0.2), (3, 0.3)] {
            log.step("train", step, &figures(value)).unwrap();
        }
        log.step("sft", 9, &figures(0.9)).unwrap();
        log.rewind("train", 1).unwrap();
        log.step("train", 2, &figures(0.25)).unwrap();
        let steps: Vec<(u64, f64)> =
            log.steps().iter().map(|s| (s.step, s.metrics["loss"])).collect();
        assert_eq!(steps, [(1, 0.1), (9, 0.9), (2, 0.25)]);
        assert_eq!(log.steps_of("train").len(), 2);
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 3);
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((line["stage"].as_str(), line["step"].as_u64()), (Some("train"), Some(2)));
        assert_eq!(line["loss"], 0.25);
    }

    #[test]
    fn a_resumed_log_goes_on_where_the_first_one_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let figures = BTreeMap::from([("loss".to_owned(), 0.1 + 0.2)]);
        let text = r#"{"stage":"sft","step":1,"seconds":70.5,"loss":0.30000000000000004}"#;
        // The last line was cut by the end of the process.
        std::fs::write(&path, format!("{text}\n{{\"stage\":\"sft\",\"st")).unwrap();
        let log = RunLog::open(path.clone()).unwrap();
        assert!(log.seconds() >= 70.5);
        assert_eq!(log.steps_of("sft"), std::slice::from_ref(&figures));
        log.step("sft", 2, &figures).unwrap();
        let lines = std::fs::read_to_string(&path).unwrap();
        assert_eq!(lines.lines().count(), 2);
        assert_eq!(lines.lines().next(), Some(text));
    }
}
