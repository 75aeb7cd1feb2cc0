//! Who may come in, and what the others are told.

use std::time::Duration;

use plumb_coordinator::cluster::{Cluster, ClusterSettings};
use plumb_domain::{AgentId, Epoch};
use plumb_proto::cluster::IssueTokenRequest;
use plumb_proto::cluster::cluster_service_client::ClusterServiceClient;
use plumb_proto::worker::StatusRequest;
use plumb_proto::worker::worker_service_client::WorkerServiceClient;
use plumb_runtime::{CertificateAuthority, Identity, join};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::service::Routes;

use crate::harness::{TestCluster, admin, coordinator, spec, start_agent, token};

fn settings(folder: &std::path::Path) -> ClusterSettings {
    let agents = vec![AgentId::new("node-0").unwrap()];
    ClusterSettings::local(folder.join("state"), "test", agents)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_an_error_that_names_it_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = settings(folder.path());
    settings.listen = taken.local_addr().unwrap().to_string();
    let error = Cluster::start(settings.clone(), CancellationToken::new(), |_| Routes::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&format!("cannot listen on {}", settings.listen)), "{error}");
    assert!(error.contains("give another port"), "{error}");
    assert!(!settings.state_dir.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_refused_and_the_agent_exits_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    settings.token_life = Duration::ZERO;
    let stop = CancellationToken::new();
    let (_cluster, task) =
        Cluster::start(settings, stop.clone(), |_| Routes::default()).await.unwrap();
    let mut agent = start_agent(folder.path(), &token(folder.path()));
    let status = agent.wait().await.unwrap();
    assert!(!status.success());
    let log = std::fs::read_to_string(folder.path().join("agent.err")).unwrap();
    assert!(log.contains("refused to let us join"), "{log}");
    assert!(log.contains("the join token for agent/node-0 expired"), "{log}");
    let audit = std::fs::read_to_string(folder.path().join("state/audit.jsonl")).unwrap();
    assert!(audit.contains("join refused"), "{audit}");
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once_and_only_at_its_own_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, stop, task) = coordinator(folder.path(), Duration::from_secs(10)).await;
    let token = cluster.agent_token(AgentId::new("node-7").unwrap());
    let joined = join(cluster.address(), &token.ca_fingerprint, &token.join_token).await.unwrap();
    assert_eq!(joined.identity().to_string(), "agent/node-7");
    let again = join(cluster.address(), &token.ca_fingerprint, &token.join_token).await;
    assert!(again.unwrap_err().to_string().contains("was used already"));
    // Another run's fingerprint: the token is never sent.
    let other = CertificateAuthority::new("other").unwrap();
    let fresh = cluster.agent_token(AgentId::new("node-8").unwrap());
    let error = join(cluster.address(), other.fingerprint(), &fresh.join_token).await.unwrap_err();
    assert!(error.to_string().contains("a token of another run?"), "{error}");
    assert!(join(cluster.address(), &fresh.ca_fingerprint, &fresh.join_token).await.is_ok());
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_may_only_join() {
    let test = TestCluster::start(Duration::from_secs(10)).await;
    let group = test
        .cluster
        .place(spec("rollout", plumb_domain::Role::Rollout, 1, 0), test.log_dir())
        .await
        .unwrap();
    let worker = group.wait_ready().await.unwrap().remove(0);
    let fingerprint = test.cluster.agent_token(AgentId::new("x").unwrap()).ca_fingerprint;
    let endpoint =
        plumb_runtime::credentials::pinned_endpoint(test.cluster.address(), &fingerprint).unwrap();
    let mut client = ClusterServiceClient::new(endpoint.connect().await.unwrap());
    let request = IssueTokenRequest { agent_id: "evil".into() };
    let status = client.issue_token(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().starts_with("PE-2:"), "{status}");
    // A worker does not even finish the handshake with such a client.
    let endpoint =
        plumb_runtime::credentials::pinned_endpoint(worker.address(), &fingerprint).unwrap();
    let refused = match endpoint.connect().await {
        Err(_) => true,
        Ok(channel) => WorkerServiceClient::new(channel).status(StatusRequest {}).await.is_err(),
    };
    assert!(refused);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_role_is_refused_by_name() {
    let test = TestCluster::start(Duration::from_secs(10)).await;
    let group = test
        .cluster
        .place(spec("rollout", plumb_domain::Role::Rollout, 1, 0), test.log_dir())
        .await
        .unwrap();
    let worker = group.wait_ready().await.unwrap().remove(0);
    // An agent's certificate does not make an admin.
    let token = test.cluster.agent_token(AgentId::new("node-9").unwrap());
    let agent =
        join(test.cluster.address(), &token.ca_fingerprint, &token.join_token).await.unwrap();
    let name = Identity::Coordinator.server_name();
    let channel = agent.endpoint(test.cluster.address(), &name).unwrap().connect_lazy();
    let request = IssueTokenRequest { agent_id: "evil".into() };
    let status = ClusterServiceClient::new(channel).issue_token(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("agent/node-9 may not call"), "{status}");
    // An admin may ask for a token, and may not call a worker.
    let access = admin(test.folder.path());
    let channel = access.connect().await.unwrap();
    let request = IssueTokenRequest { agent_id: "node-10".into() };
    assert!(ClusterServiceClient::new(channel).issue_token(request).await.is_ok());
    let peers = plumb_runtime::Peers::new(access.credentials.clone());
    let channel = peers.worker(worker.address(), worker.id()).unwrap();
    let status = WorkerServiceClient::new(channel).status(StatusRequest {}).await.unwrap_err();
    assert!(status.message().contains("it is for: coordinator"), "{status}");
    // Another process at a worker's address is not that worker.
    let impostor = plumb_domain::WorkerId::new("policy-0").unwrap();
    let channel = test.cluster.peers().worker(worker.address(), &impostor).unwrap();
    assert!(WorkerServiceClient::new(channel).status(StatusRequest {}).await.is_err());
    assert_eq!(worker.epoch(), Epoch(1));
    test.finish().await;
}
