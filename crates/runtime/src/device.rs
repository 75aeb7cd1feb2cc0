//! The one thread that owns a model's tensors.
//!
//! Async handlers send closures and await a oneshot; nothing that holds a tensor crosses an
//! `.await`, and a long kernel blocks only this thread.
//!
//! - **DE-1**: closures run one at a time, in the order in which they were accepted.
//! - **DE-2**: the queue is bounded; a caller waits for room.
//! - **DE-3**: a panic is an error of its call. The state may be half changed by then, so every
//!   later call is refused with the first panic's text.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, oneshot};

use crate::error::RuntimeError;

const QUEUE: usize = 64;

type Task<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Why a closure gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The closure panicked.
    #[error("device thread {thread} panicked: {message}")]
    Panicked {
        /// Which thread.
        thread: String,
        /// What the panic said.
        message: String,
    },
    /// An earlier closure panicked, so the state cannot be trusted.
    #[error("device thread {thread} takes no more work since it panicked: {message}")]
    Poisoned {
        /// Which thread.
        thread: String,
        /// What that panic said.
        message: String,
    },
    /// The thread has ended.
    #[error("device thread {thread} has ended")]
    Gone {
        /// Which thread.
        thread: String,
    },
}

impl From<DeviceError> for tonic::Status {
    fn from(error: DeviceError) -> Self {
        Self::internal(error.to_string())
    }
}

/// Handle to a thread that owns an `S`. Cheap to clone; the thread ends with its last handle.
pub struct DeviceThread<S> {
    name: Arc<str>,
    queue: mpsc::Sender<Task<S>>,
    poison: Arc<OnceLock<String>>,
}

impl<S> Clone for DeviceThread<S> {
    fn clone(&self) -> Self {
        Self {
            name: Arc::clone(&self.name),
            queue: self.queue.clone(),
            poison: Arc::clone(&self.poison),
        }
    }
}

impl<S: 'static> DeviceThread<S> {
    /// Starts the thread; `make` builds the state on it, so `S` need not be `Send`.
    ///
    /// # Errors
    /// [`RuntimeError::Thread`] when the system gives no thread.
    pub fn spawn(
        name: &str,
        make: impl FnOnce() -> S + Send + 'static,
    ) -> Result<Self, RuntimeError> {
        let (queue, mut tasks) = mpsc::channel::<Task<S>>(QUEUE);
        let body = move || {
            let mut state = make();
            while let Some(task) = tasks.blocking_recv() {
                task(&mut state);
            }
        };
        std::thread::Builder::new()
            .name(format!("device-{name}"))
            .spawn(body)
            .map_err(|cause| RuntimeError::Thread { name: name.to_owned(), cause })?;
        Ok(Self { name: name.into(), queue, poison: Arc::default() })
    }

    /// Runs a closure on the thread and waits for its result. The closure runs even when the
    /// caller stops waiting.
    ///
    /// # Errors
    /// [`DeviceError`] when it or an earlier one panicked, or the thread has ended.
    pub async fn run<R, F>(&self, work: F) -> Result<R, DeviceError>
    where
        R: Send + 'static,
        F: FnOnce(&mut S) -> R + Send + 'static,
    {
        let (reply, result) = oneshot::channel();
        self.queue.send(self.task(work, reply)).await.map_err(|_| self.gone())?;
        result.await.map_err(|_| self.gone())?
    }

    /// [`run`](Self::run) for a thread outside the async runtime.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_blocking<R, F>(&self, work: F) -> Result<R, DeviceError>
    where
        R: Send + 'static,
        F: FnOnce(&mut S) -> R + Send + 'static,
    {
        let (reply, result) = oneshot::channel();
        self.queue.blocking_send(self.task(work, reply)).map_err(|_| self.gone())?;
        result.blocking_recv().map_err(|_| self.gone())?
    }

    fn task<R, F>(&self, work: F, reply: oneshot::Sender<Result<R, DeviceError>>) -> Task<S>
    where
        R: Send + 'static,
        F: FnOnce(&mut S) -> R + Send + 'static,
    {
        let thread = self.name.to_string();
        let poison = Arc::clone(&self.poison);
        Box::new(move |state| {
            let outcome = match poison.get() {
                Some(message) => Err(DeviceError::Poisoned { thread, message: message.clone() }),
                None => catch_unwind(AssertUnwindSafe(|| work(state))).map_err(|panic| {
                    let message = panic_message(panic.as_ref());
                    let _ = poison.set(message.clone());
                    DeviceError::Panicked { thread, message }
                }),
            };
            // The caller may have stopped waiting.
            let _ = reply.send(outcome);
        })
    }

    fn gone(&self) -> DeviceError {
        DeviceError::Gone { thread: self.name.to_string() }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[tokio::test]
    async fn de_1_closures_run_in_order_on_state_that_is_not_send() {
        let device = DeviceThread::spawn("t", || Rc::new(Cell::new(0_u64))).unwrap();
        let mut results = Vec::new();
        for i in 1..=3_u64 {
            results.push(
                device
                    .run(move |s| {
                        s.set(s.get() * 10 + i);
                        s.get()
                    })
                    .await,
            );
        }
        assert_eq!(results, vec![Ok(1), Ok(12), Ok(123)]);
    }

    #[tokio::test]
    async fn de_3_a_panic_is_an_error_and_the_state_is_not_used_again() {
        let device = DeviceThread::spawn("t", || 0_u64).unwrap();
        let error = device.run(|_| -> u64 { panic!("shape [2, 3] is wrong") }).await.unwrap_err();
        assert_eq!(error.to_string(), "device thread t panicked: shape [2, 3] is wrong");
        let error = device.run(|s| *s).await.unwrap_err();
        assert!(matches!(error, DeviceError::Poisoned { .. }), "{error}");
    }

    #[test]
    fn a_blocking_caller_gets_its_result() {
        let device = DeviceThread::spawn("t", || 5_u64).unwrap();
        assert_eq!(device.run_blocking(|s| *s + 1), Ok(6));
    }
}
