//! Events of a job: kept from the first on, so that a late watcher sees all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use plumb_proto::job::job_event::Event;
use plumb_proto::job::{JobEvent, JobFinished, Notice, StageFinished, StageStarted, StepFinished};
use tokio::sync::watch;

/// The event log of one job.
#[derive(Debug)]
pub struct EventLog {
    events: Mutex<Vec<JobEvent>>,
    count: watch::Sender<usize>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { events: Mutex::default(), count: watch::channel(0).0 }
    }
}

impl EventLog {
    /// Events from `index` on, and a way to wait for more.
    #[must_use]
    pub fn from(&self, index: usize) -> (Vec<JobEvent>, watch::Receiver<usize>) {
        let count = self.count.subscribe();
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        (events.get(index..).unwrap_or_default().to_vec(), count)
    }

    /// A stage begins.
    pub fn stage_started(&self, name: &str, kind: &str, index: usize, stages: usize, steps: u64) {
        self.push(Event::StageStarted(StageStarted {
            name: name.to_owned(),
            kind: kind.to_owned(),
            index: index as u32,
            stages: stages as u32,
            steps,
        }));
    }

    /// A step of a stage has ended. `step` counts from 1.
    pub fn step_finished(
        &self,
        stage: &str,
        step: u64,
        steps: u64,
        metrics: &BTreeMap<String, f64>,
    ) {
        self.push(Event::StepFinished(StepFinished {
            stage: stage.to_owned(),
            step,
            steps,
            metrics: metrics.iter().map(|(k, v)| (k.clone(), *v)).collect::<HashMap<_, _>>(),
        }));
    }

    /// A stage has ended.
    pub fn stage_finished(&self, stage: &str, seconds: f64, metrics: &BTreeMap<String, f64>) {
        self.push(Event::StageFinished(StageFinished {
            stage: stage.to_owned(),
            seconds,
            metrics: metrics.iter().map(|(k, v)| (k.clone(), *v)).collect::<HashMap<_, _>>(),
        }));
    }

    /// Something a person should know.
    pub fn notice(&self, level: &str, text: impl Into<String>) {
        self.push(Event::Notice(Notice { level: level.to_owned(), text: text.into() }));
    }

    /// The job has ended: `succeeded`, `failed` or `cancelled`.
    pub fn job_finished(&self, outcome: &str, error: &str, summary_path: &str) {
        self.push(Event::JobFinished(JobFinished {
            outcome: outcome.to_owned(),
            error: error.to_owned(),
            summary_path: summary_path.to_owned(),
        }));
    }

    fn push(&self, event: Event) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let index = events.len();
        events.push(JobEvent {
            index: index as u64,
            unix_millis: now.as_millis() as u64,
            event: Some(event),
        });
        self.count.send_replace(index + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_watcher_sees_every_event() {
        let log = EventLog::default();
        log.notice("info", "one");
        log.job_finished("succeeded", "", "summary.json");
        let (events, count) = log.from(0);
        assert_eq!(events.iter().map(|e| e.index).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(*count.borrow(), 2);
        assert_eq!(log.from(1).0.len(), 1);
        assert!(log.from(9).0.is_empty());
    }
}
