//! The coordinator's state machine. Pure: no clock, no I/O, no async; `BTreeMap` only. The caller
//! hands in [`Event`]s with the time and carries out the [`Effect`]s that come back, so that every
//! decision can be tested, simulated and replayed.
//!
//! ```
//! use plumb_machine::{Event, Machine, Settings, Time};
//! use plumb_domain::AgentId;
//! # use plumb_machine::NodeResources;
//! let mut machine = Machine::new(Settings { lease_millis: 5_000 });
//! let agent = AgentId::new("node-0").unwrap();
//! let resources = NodeResources { cpus_milli: 2_000, memory_bytes: 8 << 30, gpus: vec![] };
//! machine.handle(Time(0), Event::AgentRegistered { agent, resources }).unwrap();
//! // Nobody renews the lease: at 5 s the node is lost.
//! assert_eq!(machine.next_deadline(), Some(Time(5_000)));
//! assert_eq!(machine.handle(Time(5_000), Event::Tick).unwrap().len(), 1);
//! ```
//!
//! # Invariants
//!
//! Tests cite them by name.
//!
//! - **EP-1**: of one worker slot at most one epoch is current; whatever another epoch says
//!   (registration, heartbeat) is refused, and its exit changes nothing.
//! - **EP-2**: a (re)start has an epoch above every earlier one of its group.
//! - **EP-3**: the live ranks of a group that restarts as a whole have one epoch.
//! - **LE-1**: a worker or agent whose lease has run out is fenced at the next tick, never later.
//! - **LE-2**: a fenced epoch never becomes live again.
//! - **LE-3**: a stall of the coordinator itself expires no lease.
//! - **SU-1**: each loss of a current worker is reported once, with rank, phase and cause.
//! - **SU-2**: a group restarts at most `max_restarts` times; the next loss fails it, with the cause.
//! - **SU-3**: a restart waits for its back-off, which doubles up to its bound.
//! - **SU-4**: every process of an epoch that is no longer current is told to stop, unless it
//!   has ended by itself.
//! - **PL-1**: what is placed on a node never exceeds its CPUs, memory or any one GPU.
//! - **PL-2**: STRICT_PACK uses one node, STRICT_SPREAD a node per bundle, or the group is refused
//!   with what does not fit where.
//! - **ST-1**: a step's phases run in the order of [`step::Phase`]; any other order is refused.
//! - **ST-2**: a replay starts at a phase whose inputs all exist.
//! - **ST-3**: a committed step never runs again, except when the policy falls back to an earlier
//!   checkpoint.

mod event;
mod group;
mod machine;
mod placement;
mod resources;
pub mod step;

pub use event::{Effect, Event, Refusal, Time};
pub use group::{GroupSpec, RestartPolicy, RestartScope, SlotView};
pub use machine::{Machine, Settings};
pub use placement::{PlacementError, Strategy};
pub use resources::{Assignment, Bundle, GpuShare, GpuSlot, NodeResources};
