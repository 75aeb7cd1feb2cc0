//! `plumb submit` and `plumb nodes`: for a cluster that was started by hand.

use plumb_proto::job::NodesRequest;
use plumb_proto::job::job_service_client::JobServiceClient;

use super::Ended;
use super::args::{ClientArgs, SubmitArgs};
use super::follow::{Submission, said};
use crate::cluster::AdminAccess;

pub(super) async fn run(args: SubmitArgs) -> anyhow::Result<Ended> {
    let submission = Submission::read(&args.train)?;
    let channel = AdminAccess::read(&args.client.state_dir)?.connect().await?;
    submission.run(channel).await
}

pub(super) async fn nodes(args: ClientArgs) -> anyhow::Result<Ended> {
    let channel = AdminAccess::read(&args.state_dir)?.connect().await?;
    let nodes = JobServiceClient::new(channel).nodes(NodesRequest {}).await.map_err(said)?;
    for node in nodes.into_inner().nodes {
        println!(
            "{}  {}  {} CPUs, {} GiB, {} GPUs; workers: {}",
            node.agent_id,
            node.address,
            node.cpus,
            node.memory_bytes >> 30,
            node.gpus,
            if node.workers.is_empty() { "none".to_owned() } else { node.workers.join(", ") }
        );
    }
    Ok(Ended::Well)
}
