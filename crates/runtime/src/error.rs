//! What can go wrong in the life of a process of the cluster.

use crate::identity::IdentityError;

/// A failure of the runtime itself; failures of calls are `tonic::Status`.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The bootstrap line on stdin is missing or malformed.
    #[error("cannot read the bootstrap line from stdin: {0}; this program is started by an agent")]
    Bootstrap(String),
    /// A value of the bootstrap that is no id, role or address.
    #[error("bootstrap field {field} is {value:?}: {expected}")]
    BootstrapField {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// Making or reading a key or certificate failed.
    #[error("certificate for {subject}: {what}")]
    Certificate {
        /// Whose certificate.
        subject: String,
        /// What failed.
        what: String,
    },
    /// The certificate names nobody that this system knows.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A listener could not be opened.
    #[error("cannot listen on {address}: {cause}{}", in_use_hint(cause))]
    Listen {
        /// The address asked for.
        address: String,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// An address that cannot be dialled.
    #[error("{address:?} is not an address to connect to: expected host:port")]
    Address {
        /// As given.
        address: String,
    },
    /// A peer could not be reached.
    #[error("cannot reach {peer} at {address}: {what}")]
    Connect {
        /// Who was to answer.
        peer: String,
        /// Where.
        address: String,
        /// The cause chain.
        what: String,
    },
    /// The coordinator refused the join token.
    #[error("the coordinator at {address} refused to let us join: {message}")]
    JoinRefused {
        /// Where the coordinator is.
        address: String,
        /// Its reason.
        message: String,
    },
    /// The coordinator refused a registration or another call.
    #[error("{call} was refused by the coordinator: {message}")]
    Refused {
        /// Which call.
        call: &'static str,
        /// The reason given.
        message: String,
    },
    /// Serving ended with an error.
    #[error("serving on {address}: {what}")]
    Serve {
        /// The listener's address.
        address: String,
        /// The cause chain.
        what: String,
    },
    /// A thread of the runtime could not be started.
    #[error("cannot start thread {name}: {cause}")]
    Thread {
        /// Which thread.
        name: String,
        /// The system's reason.
        cause: std::io::Error,
    },
}

fn in_use_hint(cause: &std::io::Error) -> &'static str {
    match cause.kind() {
        std::io::ErrorKind::AddrInUse => {
            "; another process holds the port: stop it, or give another port (0 lets the system choose)"
        }
        _ => "",
    }
}

/// An error with all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let line = inner.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = inner.source();
    }
    text
}
