//! `plumb coordinator` and `plumb agent`.

use std::io::BufRead as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use plumb_domain::AgentId;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::Ended;
use super::args::{AgentArgs, CoordinatorArgs};
use crate::agent::{self, AgentSettings};
use crate::cluster::{AgentToken, Cluster, ClusterSettings, token_file};
use crate::job::service::Jobs;

/// Agents that a coordinator writes tokens for, beside those that it is asked for.
const FIRST_AGENT: &str = "node-0";

pub(super) async fn coordinator(args: CoordinatorArgs) -> anyhow::Result<Ended> {
    let names = if args.agents.is_empty() { vec![FIRST_AGENT.to_owned()] } else { args.agents };
    let agents = names.into_iter().map(AgentId::new).collect::<Result<Vec<_>, _>>()?;
    let run = format!("plumbline-{}", std::process::id());
    let mut settings = ClusterSettings::local(args.state_dir.clone(), run, agents.clone());
    settings.listen = args.listen.to_string();
    let stop = CancellationToken::new();
    let mut jobs = None;
    let (cluster, serving) = Cluster::start(settings, stop.clone(), |cluster| {
        let service = Jobs::new(cluster.clone(), stop.clone());
        jobs = Some(service.clone());
        Routes::new(service.service())
    })
    .await?;
    let jobs = jobs.context("the job service was not made")?;
    if args.embedded {
        // The parent waits for this line: the state folder is complete.
        println!("{}", cluster.address());
    } else {
        println!("coordinator listens on {}", cluster.address());
        for agent in &agents {
            println!("  plumb agent --token {}", token_file(&args.state_dir, agent).display());
        }
        println!("  plumb submit RECIPE.toml --state-dir {}", args.state_dir.display());
    }
    let stdin_ended = CancellationToken::new();
    if args.embedded {
        watch_stdin(stdin_ended.clone())?;
    }
    let signalled = plumb_runtime::exit::stop_on_signal()?;
    tokio::select! {
        () = signalled.cancelled() => {}
        () = stdin_ended.cancelled() => {}
        () = stop.cancelled() => {}
    }
    jobs.cancel_all().await;
    stop.cancel();
    serving.await.context("the listener's task ended early")??;
    Ok(Ended::Well)
}

/// Cancels the token when the parent process has gone.
fn watch_stdin(ended: CancellationToken) -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut line = String::new();
            // Nothing is ever sent: the read returns when the other end is closed.
            while matches!(std::io::stdin().lock().read_line(&mut line), Ok(n) if n > 0) {
                line.clear();
            }
            ended.cancel();
        })
        .context("start the thread that watches stdin")?;
    Ok(())
}

pub(super) async fn agent(args: AgentArgs) -> anyhow::Result<Ended> {
    let token = match &args.token {
        Some(path) => AgentToken::read(path)?,
        None => {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).context("read the token from stdin")?;
            if line.trim().is_empty() {
                bail!("no token on stdin; give --token FILE, which `plumb coordinator` names");
            }
            AgentToken::parse(&line, Path::new("stdin"))?
        }
    };
    let mut settings = AgentSettings::new(token)?;
    settings.cpus = args.cpus;
    settings.exit_with_stdin = args.token.is_none();
    agent::run(settings).await?;
    Ok(Ended::Well)
}
