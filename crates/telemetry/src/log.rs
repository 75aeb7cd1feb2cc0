//! Set-up of `tracing`.

use tracing_subscriber::EnvFilter;

/// The variable that filters logs, for example `info,plumb_coordinator=debug`.
pub const FILTER_VARIABLE: &str = "PLUMB_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error("{FILTER_VARIABLE}={value:?} is not a filter: {cause}; write for example info")]
    Filter {
        /// The variable's value.
        value: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A subscriber is there already.
    #[error("logging was set up twice: {0}")]
    Twice(String),
}

/// Sends logs to stderr: `PLUMB_LOG` if set, else `default`.
///
/// # Errors
/// [`LogError`]: a filter that does not parse, or a second call.
pub fn to_stderr(default: &str, format: Format) -> Result<(), LogError> {
    let value = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| default.to_owned());
    let filter = EnvFilter::try_new(&value)
        .map_err(|cause| LogError::Filter { value, cause: cause.to_string() })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match format {
        Format::Text => builder.with_ansi(false).with_target(false).try_init(),
        Format::Json => builder.json().try_init(),
    };
    done.map_err(|error| LogError::Twice(error.to_string()))
}
