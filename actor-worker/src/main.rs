//! Worker process of the roles that train or need sharded log-probs: policy, critics, reference, reward
//! trainer. Without a subcommand it is started by an agent, which writes one line to its stdin.

mod advantage;
mod checkpoint_export;
mod convert;
mod critic;
mod dialogue;
mod folder;
mod groups;
mod loss;
mod role;
mod samples;
mod service;
mod signal;
mod store;
mod training;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use plumb_proto::actor::actor_service_server::ActorServiceServer;
use plumb_runtime::{Bootstrap, DeviceThread, MAX_MESSAGE_BYTES, ProbeFunctions, Worker};
use tonic::service::Routes;

use crate::groups::Groups;
use crate::role::ActorRole;
use crate::service::ActorServer;

#[derive(Parser)]
#[command(name = "actor-worker", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Turns a GGUF or llama2.c file into a Hugging Face folder.
    Import {
        /// The model file.
        source: PathBuf,
        /// The folder to write; it must not exist.
        destination: PathBuf,
        /// A tokenizer file, for model files that hold none.
        #[arg(long)]
        tokenizer: Option<PathBuf>,
    },
    /// Fetches a model from the hub and prints its folder.
    Fetch {
        /// `owner/name` or `owner/name@revision`.
        id: String,
        /// Where models are kept; by default where other Hugging Face programs keep them.
        #[arg(long)]
        cache: Option<PathBuf>,
    },
    /// Makes a model folder from a checkpoint on disk.
    Export {
        /// Folder of the shards, with its `manifest.json`.
        checkpoint: PathBuf,
        /// The folder to write.
        destination: PathBuf,
        /// Type of the stored weights: `fp32` or `bf16`.
        #[arg(long, default_value = "fp32")]
        dtype: plumb_engine::Precision,
        /// The adapters alone, as a PEFT folder; otherwise they are merged.
        #[arg(long)]
        adapter: bool,
        /// The moving average in place of the parameters.
        #[arg(long)]
        average: bool,
        /// Folder of the model that was trained, where it no longer lies where it lay.
        #[arg(long)]
        base: Option<PathBuf>,
    },
    /// Prints what a model folder holds, as one JSON object.
    Inspect {
        /// A Hugging Face folder.
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        None => serve(),
        Some(Command::Import { source, destination, tokenizer }) => {
            folder::import(&source, tokenizer.as_deref(), &destination)
        }
        Some(Command::Fetch { id, cache }) => folder::fetch(&id, cache),
        Some(Command::Export { checkpoint, destination, dtype, adapter, average, base }) => {
            let what = checkpoint_export::What { dtype, adapter, average };
            checkpoint_export::run(&checkpoint, base.as_deref(), &destination, what)
        }
        Some(Command::Inspect { folder }) => folder::inspect(&folder),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "actor-worker failed");
            // The subscriber may not be there yet; stderr is what the agent captures.
            #[allow(clippy::print_stderr)]
            {
                eprintln!("actor-worker: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn serve() -> anyhow::Result<()> {
    let frugal = plumb_torch::allocator::keep_resident_memory_small();
    let bootstrap = Bootstrap::from_stdin()?;
    plumb_telemetry::log::to_stderr(&bootstrap.log_filter, plumb_telemetry::log::Format::Text)?;
    if let Err(error) = frugal {
        tracing::warn!(%error, "memory may stay resident after it was freed");
    }
    // Before any other libtorch call: it registers the CUDA backend.
    let device = convert::device(&bootstrap.device)?;
    if matches!(device, tch::Device::Cuda(_)) {
        plumb_torch::cuda::load().context("loading libtorch's CUDA backend")?;
    }
    let threads = i32::try_from(bootstrap.threads).context("threads")?;
    tch::set_num_threads(threads);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    runtime.block_on(run(bootstrap, device))
}

async fn run(bootstrap: Bootstrap, device: tch::Device) -> anyhow::Result<()> {
    let worker = Worker::start(bootstrap).await?;
    let context = worker.context().clone();
    if let tch::Device::Cuda(index) = device {
        let peak_bytes = move || plumb_torch::device::memory(index).map_or(0, |m| m.peak_bytes);
        let reset = move || {
            if let Err(error) = plumb_torch::device::reset_peak(index) {
                tracing::debug!(%error, "the peak of device memory cannot be reset");
            }
        };
        context.phase().measure_with(Arc::new(ProbeFunctions { peak_bytes, reset }));
    }
    let thread = DeviceThread::spawn(context.worker_id().as_str(), move || ActorRole::new(device))?;
    let groups = Arc::new(Groups::new(context.clone(), thread.clone()));
    let server = ActorServiceServer::new(ActorServer::new(context, thread, Arc::clone(&groups)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    worker.serve(groups, Routes::new(server)).await?;
    Ok(())
}
