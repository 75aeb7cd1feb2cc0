//! How much memory each process of a run needs, before the run starts.
//!
//! A role's memory is a list of phases, a phase a list of terms, and each term a formula over the
//! model's shape and the recipe ([`engine`], [`activations`], [`inference`]). [`roles`] says which
//! roles a stage has, [`Layout`] whether they fit on a machine.
//!
//! Legend: N tokens of a micro-batch, H hidden, I MLP width, Q and K widths of the query and the
//! key heads, V vocabulary, P elements of a block, R ranks, c and r bytes of the compute and the
//! reduce type. Sizes are bytes throughout.
//!
//! The model counts tensors, and adds what a process holds before it has any
//! ([`PROCESS_BYTES`]). `make bench-memory` compares it with real processes.

pub mod activations;
pub mod engine;
pub mod inference;
mod layout;
mod rank_phases;
mod roles;
mod shape;
mod table;

pub use engine::{EngineShape, Trained};
pub use layout::{Layout, Machine, Misfit, StageLayout};
pub use roles::{ModelShapes, stage_memory};
pub use shape::{DecoderShape, Head};
pub use table::table;

/// What a worker process on the CPU holds beside its tensors: libtorch's code pages that were
/// used, its relocated tables and operator registry, the products' packed operands, threads and
/// connections. Measured on Linux with glibc.
pub const PROCESS_BYTES: u64 = 150 << 20;

/// What CUDA takes of a device for each process beside tensors: context and library workspaces.
pub const CUDA_CONTEXT_BYTES: u64 = 600 << 20;

/// One reason for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// What it is for.
    pub what: &'static str,
    /// How much.
    pub bytes: u64,
}

/// What one process holds at most during one phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseMemory {
    /// The phase.
    pub phase: &'static str,
    /// What is held at once. Terms of 0 bytes are left out.
    pub terms: Vec<Term>,
}

impl PhaseMemory {
    /// From terms.
    #[must_use]
    pub fn new(phase: &'static str, terms: &[(&'static str, u64)]) -> Self {
        let terms = terms.iter().filter(|(_, bytes)| *bytes > 0);
        Self { phase, terms: terms.map(|&(what, bytes)| Term { what, bytes }).collect() }
    }

    /// All terms together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.terms.iter().map(|term| term.bytes).sum()
    }
}

/// Memory of each process of a role.
#[derive(Debug, Clone, PartialEq)]
pub struct RoleMemory {
    /// The role, as its workers are named.
    pub role: &'static str,
    /// Its table under `[groups]`.
    pub group: &'static str,
    /// Processes.
    pub ranks: u64,
    /// GPUs of each process; 0 is the CPU.
    pub gpus: f64,
    /// What it goes through.
    pub phases: Vec<PhaseMemory>,
    /// What it holds while another role works.
    pub idle_bytes: u64,
    /// What it has offloaded from a GPU to host memory.
    pub host_bytes: u64,
}

impl RoleMemory {
    /// The phase in which a process holds the most.
    #[must_use]
    pub fn worst(&self) -> Option<&PhaseMemory> {
        self.phases.iter().max_by_key(|phase| phase.bytes())
    }

    /// The most that a process holds.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.worst().map_or(0, PhaseMemory::bytes)
    }
}
