//! Worker process that generates. It is started by an agent, which writes one line to its stdin.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use plumb_proto::rollout::rollout_service_server::RolloutServiceServer;
use plumb_rollout_worker::groups::Groups;
use plumb_rollout_worker::service::RolloutServer;
use plumb_rollout_worker::state::State;
use plumb_runtime::{Bootstrap, DeviceThread, MAX_MESSAGE_BYTES, ProbeFunctions, Worker};
use tch::Device;
use tonic::service::Routes;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not be set up yet; stderr is what the agent captures.
            #[allow(clippy::print_stderr)]
            {
                eprintln!("rollout-worker: {error:#}");
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
    let device = parse_device(&bootstrap.device)?;
    if matches!(device, Device::Cuda(_)) {
        // Before any other libtorch call: loading registers the CUDA kernels.
        plumb_torch::cuda::load().context("loading libtorch's CUDA half")?;
    }
    tch::set_num_threads(i32::try_from(bootstrap.threads).context("threads")?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    runtime.block_on(run(bootstrap, device))
}

async fn run(bootstrap: Bootstrap, device: Device) -> anyhow::Result<()> {
    let worker = Worker::start(bootstrap).await?;
    let context = worker.context().clone();
    if let Device::Cuda(index) = device {
        let peak_bytes = move || plumb_torch::device::memory(index).map_or(0, |m| m.peak_bytes);
        let reset = move || {
            if let Err(error) = plumb_torch::device::reset_peak(index) {
                tracing::debug!(%error, "the peak of device memory cannot be reset");
            }
        };
        context.phase().measure_with(Arc::new(ProbeFunctions { peak_bytes, reset }));
    }
    let thread = DeviceThread::spawn(context.worker_id().as_str(), move || State::new(device))?;
    let groups = Arc::new(Groups::new(thread.clone()));
    let server = RolloutServer::new(context, thread, groups.clone());
    let server = RolloutServiceServer::new(server)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    worker.serve(groups, Routes::new(server)).await?;
    Ok(())
}

fn parse_device(name: &str) -> anyhow::Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    name.strip_prefix("cuda:")
        .and_then(|index| index.parse().ok())
        .map(Device::Cuda)
        .with_context(|| format!("device {name:?}: expected cpu or cuda:<index>"))
}
