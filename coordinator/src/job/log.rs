//! Figures and times of a run: `metrics.jsonl`, and what the report is made of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

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

impl RunLog {
    /// Starts the clock.
    ///
    /// # Errors
    /// The metrics file cannot be opened.
    pub fn open(metrics: PathBuf) -> Result<Self, JsonLinesError> {
        Ok(Self(Arc::new(Inner {
            began: Instant::now(),
            metrics: Mutex::new(JsonLines::open(metrics)?),
            steps: Mutex::default(),
            spans: Mutex::default(),
            restarts: AtomicU64::new(0),
        })))
    }

    /// Seconds since the job began.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.0.began.elapsed().as_secs_f64()
    }

    /// Figures of a finished step, counted from 1. A replayed step's last run counts.
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
        steps.retain(|s| s.stage != stage || s.step < step);
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
    fn a_replayed_step_takes_the_place_of_its_first_run() {
        let folder = tempfile::tempdir().unwrap();
        let log = RunLog::open(folder.path().join("metrics.jsonl")).unwrap();
        let figures = |v: f64| BTreeMap::from([("loss".to_owned(), v)]);
        for (step, value) in [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25)] {
            log.step("train", step, &figures(value)).unwrap();
        }
        let steps: Vec<(u64, f64)> =
            log.steps().iter().map(|s| (s.step, s.metrics["loss"])).collect();
        assert_eq!(steps, [(1, 0.1), (2, 0.25)]);
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 4);
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((line["stage"].as_str(), line["step"].as_u64()), (Some("train"), Some(2)));
        assert_eq!(line["loss"], 0.25);
    }
}
