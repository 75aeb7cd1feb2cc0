//! Calls that run once, however often they arrive.
//!
//! - **EP-1**: a call whose context carries another epoch than this process's is refused, by name.
//! - **ID-1**: a repeat of a completed (job, step, phase, shard, attempt) returns its result.
//! - **ID-2**: a repeat of a running call waits for the one run; nothing runs twice.
//! - **ID-3**: a run goes on when its caller hangs up, so that a repeat finds the result.
//! - **ID-4**: a lower attempt than the newest one of the same (job, step, phase, shard) is
//!   refused; a higher one is a replay and runs.
//! - **ID-5**: a failed run is forgotten, so that a repeat runs again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use plumb_domain::{Epoch, WorkerId};
use plumb_proto::worker::CallContext;
use tonic::Status;

use crate::phase::Phase;

/// Completed results kept; more than a step has calls of one kind.
const KEPT: usize = 64;

type Outcome<T> = Shared<BoxFuture<'static, Result<T, Status>>>;

/// (job, step, phase, shard).
type Key = (String, u64, String, u32);

/// The results of one kind of call.
pub struct Idempotent<T> {
    worker: WorkerId,
    epoch: Epoch,
    phase: Phase,
    entries: Arc<Mutex<Entries<T>>>,
}

struct Entries<T> {
    by_key: BTreeMap<Key, Entry<T>>,
    next_order: u64,
}

struct Entry<T> {
    attempt: u32,
    order: u64,
    outcome: Outcome<T>,
}

impl<T: Clone + Send + Sync + 'static> Idempotent<T> {
    pub(crate) fn new(worker: WorkerId, epoch: Epoch, phase: Phase) -> Self {
        let entries = Entries { by_key: BTreeMap::new(), next_order: 0 };
        Self { worker, epoch, phase, entries: Arc::new(Mutex::new(entries)) }
    }

    /// Checks the epoch, then runs `work` once for this context. While it runs, heartbeats name
    /// the context's phase.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` without a context, `FAILED_PRECONDITION` for a stale epoch or attempt,
    /// else what `work` returned; `INTERNAL` when it panicked.
    pub async fn run<F, W>(&self, context: Option<CallContext>, work: F) -> Result<T, Status>
    where
        F: FnOnce(CallContext) -> W,
        W: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let context = check_epoch(&self.worker, self.epoch, context)?;
        self.outcome(context, work)?.await
    }

    fn outcome<F, W>(&self, context: CallContext, work: F) -> Result<Outcome<T>, Status>
    where
        F: FnOnce(CallContext) -> W,
        W: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let key: Key = (context.job_id.clone(), context.step, context.phase.clone(), context.shard);
        let attempt = context.attempt;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.by_key.get(&key) {
            if attempt < entry.attempt {
                return Err(Status::failed_precondition(format!(
                    "ID-4: {}: attempt {attempt} of {} (job {}, step {}) is older than attempt {}",
                    self.worker, key.2, key.0, key.1, entry.attempt
                )));
            }
            let failed = matches!(entry.outcome.peek(), Some(Err(_)));
            if attempt == entry.attempt && !failed {
                return Ok(entry.outcome.clone());
            }
        }
        let guard = self.phase.enter(&context.phase);
        let work = work(context);
        let task = tokio::spawn(async move {
            let result = work.await;
            drop(guard);
            result
        });
        let outcome = task
            .map(|joined| joined.unwrap_or_else(|e| Err(Status::internal(e.to_string()))))
            .boxed()
            .shared();
        let order = entries.next_order;
        entries.next_order += 1;
        entries.by_key.insert(key, Entry { attempt, order, outcome: outcome.clone() });
        entries.forget_oldest();
        Ok(outcome)
    }
}

impl<T: Clone> Entries<T> {
    fn forget_oldest(&mut self) {
        while self.by_key.len() > KEPT {
            // Runs in progress stay, whatever their age.
            let oldest = self
                .by_key
                .iter()
                .filter(|(_, e)| e.outcome.peek().is_some())
                .min_by_key(|(_, e)| e.order)
                .map(|(key, _)| key.clone());
            match oldest {
                Some(key) => self.by_key.remove(&key),
                None => return,
            };
        }
    }
}

/// EP-1 for calls that need no result cache.
pub(crate) fn check_epoch(
    worker: &WorkerId,
    epoch: Epoch,
    context: Option<CallContext>,
) -> Result<CallContext, Status> {
    let context = context
        .ok_or_else(|| Status::invalid_argument(format!("{worker}: the call has no context")))?;
    if context.epoch == epoch.0 {
        return Ok(context);
    }
    Err(Status::failed_precondition(format!(
        "EP-1: {worker} runs epoch {epoch}; the call {} (job {}, step {}) is for epoch {}",
        context.phase, context.job_id, context.step, context.epoch
    )))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    fn cache() -> Idempotent<u32> {
        Idempotent::new(WorkerId::new("policy-0").unwrap(), Epoch(2), Phase::default())
    }

    fn context(step: u64, attempt: u32) -> Option<CallContext> {
        Some(CallContext {
            job_id: "job-1".into(),
            step,
            phase: "update".into(),
            shard: 0,
            attempt,
            epoch: 2,
        })
    }

    #[tokio::test]
    async fn ep_1_another_epoch_is_refused_by_name() {
        let old = CallContext { epoch: 1, ..context(4, 0).unwrap() };
        let error = cache().run(Some(old), |_| async { Ok(1) }).await.unwrap_err();
        assert_eq!(
            error.message(),
            "EP-1: policy-0 runs epoch 2; the call update (job job-1, step 4) is for epoch 1"
        );
        assert!(cache().run(None, |_| async { Ok(1) }).await.is_err());
    }

    #[tokio::test]
    async fn id_1_and_id_2_a_repeat_shares_the_one_run() {
        let cache = Arc::new(cache());
        let runs = Arc::new(AtomicU32::new(0));
        let call = |cache: Arc<Idempotent<u32>>, runs: Arc<AtomicU32>| async move {
            cache
                .run(context(0, 0), |_| async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(runs.fetch_add(1, Ordering::SeqCst) + 7)
                })
                .await
                .unwrap()
        };
        let (a, b) = tokio::join!(
            call(Arc::clone(&cache), Arc::clone(&runs)),
            call(Arc::clone(&cache), Arc::clone(&runs))
        );
        let c = call(Arc::clone(&cache), Arc::clone(&runs)).await;
        assert_eq!((a, b, c, runs.load(Ordering::SeqCst)), (7, 7, 7, 1));
    }

    #[tokio::test]
    async fn id_3_a_run_goes_on_when_its_caller_hangs_up() {
        let cache = cache();
        let slow = cache.run(context(0, 0), |_| async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            Ok(9)
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), slow).await.is_err());
        let again = cache.run(context(0, 0), |_| async { Ok(1) }).await;
        assert_eq!(again.unwrap(), 9);
    }

    #[tokio::test]
    async fn id_4_a_replay_runs_and_the_older_attempt_is_then_refused() {
        let cache = cache();
        assert_eq!(cache.run(context(0, 0), |_| async { Ok(1) }).await.unwrap(), 1);
        assert_eq!(cache.run(context(0, 1), |_| async { Ok(2) }).await.unwrap(), 2);
        let error = cache.run(context(0, 0), |_| async { Ok(3) }).await.unwrap_err();
        assert!(error.message().starts_with("ID-4: policy-0: attempt 0 of update"), "{error}");
    }

    #[tokio::test]
    async fn id_5_a_failed_run_is_not_kept() {
        let cache = cache();
        let failed = cache.run(context(0, 0), |_| async { Err(Status::internal("no")) }).await;
        assert!(failed.is_err());
        assert_eq!(cache.run(context(0, 0), |_| async { Ok(4) }).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn old_results_are_forgotten_and_memory_stays_bounded() {
        let cache = cache();
        for step in 0..200 {
            cache.run(context(step, 0), |_| async { Ok(1) }).await.unwrap();
        }
        assert!(cache.entries.lock().unwrap().by_key.len() <= KEPT);
    }
}
