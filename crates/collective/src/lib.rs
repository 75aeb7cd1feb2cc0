//! Collective operations between the ranks of a group, behind one trait.
//!
//! Legend: W ranks, n elements of one rank's part.
//!
//! | backend | between | for |
//! |---|---|---|
//! | [`gloo::Gloo`] | processes, CPU tensors, TCP | CPU clusters |
//! | [`nccl::Nccl`] | processes, CUDA tensors | GPU clusters |
//! | [`in_process::InProcess`] | threads of one process | tests |
//! | [`Solo`] | one rank alone, no communication | world size 1 |
//!
//! What holds for every backend:
//!
//! - CO-1: all ranks of a group start the same operations in the same order.
//! - CO-2: an operation starts at once; its tensors belong to it until [`Pending::wait`] returns.
//! - CO-3: a lost peer is an error at once and a hung one within the group's time limit, on every
//!   rank, and the error names the ranks that did not arrive.
//! - CO-4: after an error or an abort every later operation of the group fails; the group is joined
//!   anew, under a new epoch.

mod collective;
mod error;
pub mod gloo;
pub mod in_process;
mod membership;
pub mod nccl;
mod operands;
mod pending;
mod solo;

pub use collective::{AbortHandle, Collective};
pub use error::CollectiveError;
pub use pending::Pending;
pub use plumb_torch::gloo::ReduceOp;
pub use solo::{Solo, solo};
