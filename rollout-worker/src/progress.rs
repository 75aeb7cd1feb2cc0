//! What a generation call has said so far.
//!
//! A call may be repeated after its stream broke. The generation itself goes on; its log keeps
//! what was reported, and each stream replays the log from the start and then follows it.

use std::sync::Arc;

use plumb_proto::rollout::GenerateProgress;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Messages that wait for a slow reader.
const STREAM_QUEUE: usize = 16;

/// The reports of one generation call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ProgressLog {
    log: Arc<watch::Sender<Log>>,
}

#[derive(Debug, Default)]
struct Log {
    reports: Vec<GenerateProgress>,
    end: Option<Result<(), Status>>,
}

impl Default for ProgressLog {
    fn default() -> Self {
        Self { log: Arc::new(watch::Sender::new(Log::default())) }
    }
}

impl ProgressLog {
    /// Adds a report.
    pub fn push(&self, report: GenerateProgress) {
        self.log.send_modify(|log| log.reports.push(report));
    }

    /// Ends the log, well or with an error. The first end counts.
    pub fn end(&self, outcome: Result<(), Status>) {
        self.log.send_modify(|log| {
            log.end.get_or_insert(outcome);
        });
    }

    /// Streams all reports, those to come included, until the end.
    #[must_use]
    pub fn follow(&self) -> ReceiverStream<Result<GenerateProgress, Status>> {
        let (sender, stream) = mpsc::channel(STREAM_QUEUE);
        let mut log = self.log.subscribe();
        tokio::spawn(async move {
            let mut told = 0;
            loop {
                let (news, end) = {
                    let log = log.borrow_and_update();
                    (log.reports[told..].to_vec(), log.end.clone())
                };
                told += news.len();
                for report in news {
                    if sender.send(Ok(report)).await.is_err() {
                        return;
                    }
                }
                match end {
                    Some(Ok(())) => return,
                    Some(Err(status)) => {
                        // The reader may have left.
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                    None => {}
                }
                if log.changed().await.is_err() {
                    let lost = Status::aborted("the generation was dropped before its end");
                    let _ = sender.send(Err(lost)).await;
                    return;
                }
            }
        });
        ReceiverStream::new(stream)
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    fn report(prompt_id: &str) -> GenerateProgress {
        GenerateProgress { prompt_id: prompt_id.into(), ..GenerateProgress::default() }
    }

    async fn texts(stream: ReceiverStream<Result<GenerateProgress, Status>>) -> Vec<String> {
        stream
            .map(|r| r.map_or_else(|status| status.message().to_owned(), |p| p.prompt_id))
            .collect()
            .await
    }

    #[tokio::test]
    async fn a_late_reader_hears_everything_from_the_start() {
        let log = ProgressLog::default();
        log.push(report("a"));
        let early = tokio::spawn(texts(log.follow()));
        log.push(report("b"));
        log.end(Ok(()));
        assert_eq!(early.await.unwrap(), ["a", "b"]);
        assert_eq!(texts(log.follow()).await, ["a", "b"]);
    }

    #[tokio::test]
    async fn the_error_comes_after_the_reports() {
        let log = ProgressLog::default();
        log.push(report("a"));
        log.end(Err(Status::internal("no memory")));
        log.end(Ok(()));
        assert_eq!(texts(log.follow()).await, ["a", "no memory"]);
    }

    #[tokio::test]
    async fn a_log_that_is_dropped_unfinished_is_an_error() {
        let log = ProgressLog::default();
        let stream = log.follow();
        drop(log);
        assert_eq!(texts(stream).await, ["the generation was dropped before its end"]);
    }
}
