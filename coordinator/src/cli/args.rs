//! What stands on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use plumb_config::Override;

/// Safe reinforcement learning of language models, from base checkpoint to evaluated checkpoint.
#[derive(Debug, Parser)]
#[command(name = "plumb", version)]
pub(super) struct Args {
    /// Log as JSON lines. `PLUMB_LOG` sets the filter.
    #[arg(long, global = true)]
    pub(super) log_json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a recipe on a cluster of its own on this machine.
    Train(LocalTrainArgs),
    /// Serve as the coordinator of a cluster.
    Coordinator(CoordinatorArgs),
    /// Serve as the agent of this node.
    Agent(AgentArgs),
    /// Run a recipe on a cluster that was started by hand.
    Submit(SubmitArgs),
    /// List the nodes of a cluster and their workers.
    Nodes(ClientArgs),
    /// Print what follows from a recipe: batches, tokens, memory.
    Explain(ExplainArgs),
    /// Check this node before a job does, and say what to fix.
    Doctor(DoctorArgs),
    /// Turn a GGUF or llama2.c file into a Hugging Face folder.
    Import(ImportArgs),
    /// List, check and remove checkpoints.
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Write a Hugging Face folder from a checkpoint on disk.
    Export(ExportArgs),
    /// Print the version.
    Version,
}

impl Command {
    /// Whether the command serves until it is stopped (it then logs more).
    pub(super) fn is_service(&self) -> bool {
        matches!(self, Self::Coordinator(_) | Self::Agent(_))
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct RecipeArgs {
    /// The recipe, a TOML file.
    pub(super) recipe: PathBuf,
    /// Override a key, for example `--set algorithm.steps=10`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) set: Vec<Override>,
}

#[derive(Debug, clap::Args)]
pub(super) struct MemoryArgs {
    /// Main memory to reckon with, GiB; by default what this machine has.
    #[arg(long, value_name = "GIB")]
    pub(super) memory_gib: Option<f64>,
    /// Only warn when the processes are reckoned to need more memory than there is.
    #[arg(long)]
    pub(super) ignore_memory: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    pub(super) recipe: RecipeArgs,
    #[command(flatten)]
    pub(super) memory: MemoryArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct LocalTrainArgs {
    #[command(flatten)]
    pub(super) train: TrainArgs,
    #[command(flatten)]
    pub(super) memory: MemoryArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    pub(super) recipe: RecipeArgs,
    /// Where results go; `runs/NAME` by default.
    #[arg(long)]
    pub(super) run_dir: Option<PathBuf>,
    /// Go on with the job that was interrupted in the run folder: finished stages are skipped,
    /// the interrupted one goes on from its newest sound checkpoint. Keys that say where the job
    /// runs may differ, for example `--set groups.policy.world_size=4`. Without an interrupted job
    /// a new one begins.
    #[arg(long)]
    pub(super) resume: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct CoordinatorArgs {
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(super) listen: SocketAddr,
    /// Folder for the files that agents and clients join with.
    #[arg(long, default_value = "runs/cluster")]
    pub(super) state_dir: PathBuf,
    /// Name of a node to write a join token for; may be given several times. `node-0` by default.
    #[arg(long = "agent", value_name = "NAME")]
    pub(super) agents: Vec<String>,
    /// Started by `plumb train`: report on stdout, and end when stdin does.
    #[arg(long, hide = true)]
    pub(super) embedded: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct AgentArgs {
    /// Token file that `plumb coordinator` wrote for this node; by default the token is one line
    /// on stdin, and the agent ends when stdin does.
    #[arg(long)]
    pub(super) token: Option<PathBuf>,
    /// CPUs to offer; all by default.
    #[arg(long)]
    pub(super) cpus: Option<u32>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ClientArgs {
    /// Folder that `plumb coordinator` wrote.
    #[arg(long, default_value = "runs/cluster")]
    pub(super) state_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    pub(super) train: TrainArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum CheckpointCommand {
    /// List checkpoints, newest first.
    Ls {
        /// A run folder, a stage's folder in its `checkpoint/`, or a `step-NNNNNN` folder there.
        path: PathBuf,
        /// One JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Read every byte of checkpoints and name the files that are damaged.
    Verify {
        /// As for `ls`.
        path: PathBuf,
        /// One JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Remove checkpoints.
    Rm {
        /// `step-NNNNNN` folders.
        #[arg(required = true)]
        path: Vec<PathBuf>,
        /// Also the last sound one of a stage.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// A `step-NNNNNN` folder; of a run folder or a stage's folder the newest sound one is taken,
    /// if only one stage has any.
    pub(super) checkpoint: PathBuf,
    /// The folder to make.
    pub(super) folder: PathBuf,
    /// Type of the stored weights: `fp32` or `bf16`.
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    pub(super) dtype: String,
    /// The adapters alone, as a PEFT folder; otherwise they are merged.
    #[arg(long)]
    pub(super) adapter: bool,
    /// The moving average in place of the parameters.
    #[arg(long)]
    pub(super) average: bool,
    /// Which of several groups, for example `critic`; `policy` by default.
    #[arg(long, value_name = "GROUP")]
    pub(super) part: Option<String>,
    /// Folder of the model that was trained, where it no longer lies where it lay.
    #[arg(long, value_name = "FOLDER")]
    pub(super) base: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// Where runs are to be written.
    #[arg(long, default_value = "runs")]
    pub(super) run_dir: PathBuf,
    /// Where the coordinator is to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(super) listen: SocketAddr,
    /// Print findings as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// A `.gguf` file, or a llama2.c checkpoint.
    pub(super) source: PathBuf,
    /// The folder to make; it must not exist.
    pub(super) folder: PathBuf,
    /// A tokenizer file, for model files that hold none.
    #[arg(long)]
    pub(super) tokenizer: Option<PathBuf>,
}
