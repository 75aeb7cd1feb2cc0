//! Progress of a stage that only generates.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use plumb_proto::rollout::GenerateProgress;
use plumb_telemetry::metric;

use super::Figures;
use crate::job::events::EventLog;

/// Events come no closer than this.
const PAUSE: Duration = Duration::from_secs(2);

/// Counts finished prompts and tells watchers now and then.
pub(super) struct Meter<'a> {
    events: &'a EventLog,
    stage: &'a str,
    prompts: u64,
    count: Mutex<Count>,
}

struct Count {
    began: Instant,
    told: Instant,
    prompts: u64,
    tokens: u64,
}

impl<'a> Meter<'a> {
    /// Counts to `prompts`.
    pub(super) fn new(events: &'a EventLog, stage: &'a str, prompts: usize) -> Self {
        let now = Instant::now();
        let count = Count { began: now, told: now, prompts: 0, tokens: 0 };
        Self { events, stage, prompts: prompts as u64, count: Mutex::new(count) }
    }

    /// A prompt has all its answers.
    pub(super) fn heard(&self, progress: &GenerateProgress) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        count.prompts += 1;
        count.tokens += progress.samples.iter().map(|s| u64::from(s.response_tokens)).sum::<u64>();
        if count.told.elapsed() < PAUSE {
            return;
        }
        count.told = Instant::now();
        let speed = count.tokens as f64 / count.began.elapsed().as_secs_f64();
        let figures: Figures = [(metric::GENERATED_PER_SECOND.to_owned(), speed)].into();
        self.events.step_finished(self.stage, count.prompts, self.prompts, &figures);
    }
}
