//! Leaving: signals, exit codes, and an end that nothing can hold up.

use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use tokio_util::sync::CancellationToken;

use crate::error::RuntimeError;

/// After this long an orderly exit is cut short: exit handlers of native libraries can hang.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);

/// Exit codes that the agent and people can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum ExitCode {
    /// The parent process (agent, or command line) is gone.
    ParentGone = 70,
    /// The coordinator has fenced this process's epoch.
    Fenced = 71,
    /// No heartbeat reached the coordinator for a whole lease.
    LeaseLost = 72,
}

/// Exits the process from any thread; kills it when that takes longer than two seconds.
pub fn exit_now(code: ExitCode) -> ! {
    kill_after(EXIT_PATIENCE);
    std::process::exit(code as i32)
}

/// Arms a timer on its own thread that kills this process. For the end of `main`, where native
/// threads may still hold the exit up.
pub fn kill_after(patience: Duration) {
    let fuse = move || {
        std::thread::sleep(patience);
        // SIGKILL cannot fail for the own process.
        let _ = raise(Signal::SIGKILL);
    };
    // Without the thread the exit is merely not guarded.
    let _ = std::thread::Builder::new().name("exit-fuse".to_owned()).spawn(fuse);
}

/// A token that SIGTERM or SIGINT cancels.
///
/// # Errors
/// [`RuntimeError::Thread`] when the handlers cannot be installed.
pub fn stop_on_signal() -> Result<CancellationToken, RuntimeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |cause| RuntimeError::Thread { name: "signal handler".to_owned(), cause };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = cancelled.cancelled() => return,
        };
        tracing::info!(signal = name, "stopping");
        cancelled.cancel();
    });
    Ok(token)
}
