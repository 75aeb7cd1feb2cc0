//! Processes that die, hang, are stopped, or lose their parent.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use plumb_coordinator::cluster::CallError;
use plumb_domain::{Epoch, Role};

use crate::harness::{TestCluster, generate, gone, load, signal, spec};

/// CL-1: the pending call fails within a moment, not at the lease's end, and says all there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_fails_its_calls_at_once_and_starts_again() {
    let test = TestCluster::start(Duration::from_secs(30)).await;
    let group =
        test.cluster.place(spec("rollout", Role::Rollout, 1, 2), test.log_dir()).await.unwrap();
    let worker = group.wait_ready().await.unwrap().remove(0);
    let pid = test.worker_pids()[0];
    let pending = {
        let worker = worker.clone();
        tokio::spawn(async move { generate(&worker, "hang").await })
    };
    // Long enough for the call to be under way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let killed = Instant::now();
    signal(pid, Signal::SIGKILL);
    let error = pending.await.unwrap().unwrap_err();
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    let CallError::Lost { phase, loss } = &error else { panic!("not lost: {error}") };
    assert_eq!((phase.as_str(), loss.rank, loss.epoch), ("generate", 0, Epoch(1)));
    assert_eq!(loss.cause, "its process ended: signal 9 (SIGKILL)");
    assert!(loss.stderr_tail.contains("rollout-0 epoch 1 starts"), "{}", loss.stderr_tail);
    let again = group.wait_ready().await.unwrap().remove(0);
    assert_eq!(again.epoch(), Epoch(2));
    assert!(!worker.is_live());
    assert_eq!(load(&again, 0, 0).await, 1);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_exits_by_itself_is_reported_with_its_last_words() {
    let test = TestCluster::start(Duration::from_secs(30)).await;
    let group =
        test.cluster.place(spec("reward", Role::Reward, 1, 0), test.log_dir()).await.unwrap();
    let worker = group.wait_ready().await.unwrap().remove(0);
    let error = generate(&worker, "die").await.unwrap_err().to_string();
    assert!(error.contains("reward-0 (rank 0, epoch 1) was lost in generate"), "{error}");
    assert!(error.contains("exit code 7"), "{error}");
    assert!(error.contains("cannot go on: out of luck"), "{error}");
    // SU-2: the budget is 0, so the group fails, with the cause.
    let failed = group.wait_ready().await.unwrap_err().to_string();
    assert!(failed.contains("group \"reward\" failed: reward-0 was lost"), "{failed}");
    assert!(failed.contains("its 0 restarts are used up"), "{failed}");
    test.finish().await;
}

/// HB-1: a busy device thread is no loss; LE-1: a stopped process is one, after its lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_is_fenced_by_its_lease_and_a_busy_one_is_not() {
    let lease = Duration::from_secs(3);
    let test = TestCluster::start(lease).await;
    let group =
        test.cluster.place(spec("rollout", Role::Rollout, 1, 1), test.log_dir()).await.unwrap();
    let worker = group.wait_ready().await.unwrap().remove(0);
    let pid = test.worker_pids()[0];
    let pending = {
        let worker = worker.clone();
        tokio::spawn(async move { generate(&worker, "hang").await })
    };
    tokio::time::sleep(lease + Duration::from_secs(2)).await;
    assert!(!pending.is_finished(), "a busy worker was taken for lost");
    let stopped = Instant::now();
    signal(pid, Signal::SIGSTOP);
    let error = pending.await.unwrap().unwrap_err();
    assert!(stopped.elapsed() < lease + Duration::from_secs(5), "{:?}", stopped.elapsed());
    assert!(error.to_string().contains("no heartbeat for 3000 ms"), "{error}");
    // SU-4: the fenced process is killed although it is stopped.
    gone(&[pid]).await;
    assert_eq!(group.wait_ready().await.unwrap()[0].epoch(), Epoch(2));
    test.finish().await;
}

/// EP-3: a policy rank takes its group with it; all ranks come back under one new epoch.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_policy_rank_restarts_the_whole_group() {
    let test = TestCluster::start(Duration::from_secs(30)).await;
    let group =
        test.cluster.place(spec("policy", Role::Policy, 2, 1), test.log_dir()).await.unwrap();
    let before = group.wait_ready().await.unwrap();
    let pids = test.worker_pids();
    signal(pids[1], Signal::SIGKILL);
    let loss = before[0].lost().await;
    let other = before[1].lost().await;
    let restarts = [&loss.cause, &other.cause].iter().filter(|c| c.contains("whole group")).count();
    assert_eq!(restarts, 1, "{} / {}", loss.cause, other.cause);
    let after = group.wait_ready().await.unwrap();
    assert_eq!([after[0].epoch(), after[1].epoch()], [Epoch(2), Epoch(2)]);
    gone(&pids).await;
    // EP-1 over the wire: a call for the old epoch to the new process is refused by name.
    let mut client =
        plumb_proto::worker::worker_service_client::WorkerServiceClient::new(after[0].channel());
    let stale = plumb_proto::worker::AbortGroupRequest {
        context: Some(before[0].context("job", 0, "abort", 0, 0)),
        group: "g".into(),
    };
    let status = client.abort_group(stale).await.unwrap_err();
    assert!(status.message().starts_with("EP-1: policy-0 runs epoch 2"), "{status}");
    test.finish().await;
}

/// CL-2: the rank that waits in a collective group for a lost one is freed at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_member_frees_the_others_from_their_collective_group() {
    let test = TestCluster::start(Duration::from_secs(30)).await;
    let one =
        test.cluster.place(spec("rollout", Role::Rollout, 1, 1), test.log_dir()).await.unwrap();
    let two = test.cluster.place(spec("reward", Role::Reward, 1, 1), test.log_dir()).await.unwrap();
    let stays = one.wait_ready().await.unwrap().remove(0);
    let hangs = two.wait_ready().await.unwrap().remove(0);
    // The second worker's device thread is busy, so it never reaches the rendezvous.
    let busy = {
        let hangs = hangs.clone();
        tokio::spawn(async move { generate(&hangs, "hang").await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let pids = test.worker_pids();
    let victim = pids[1];
    let members = [stays.clone(), hangs.clone()];
    let cluster = test.cluster.clone();
    let began = Instant::now();
    let forming = tokio::spawn(async move {
        cluster.init_collective("weights", &members, "gloo", Duration::from_secs(300)).await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    signal(victim, Signal::SIGKILL);
    let error = forming.await.unwrap().unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(error.to_string().contains("init group weights"), "{error}");
    assert!(busy.await.unwrap().is_err());
    // The survivor's device thread is free again: this call goes through it.
    assert_eq!(load(&stays, 0, 0).await, 1);
    test.finish().await;
}

/// AG-1: workers never outlive their agent, not even stopped ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_takes_its_workers_along() {
    let test = TestCluster::start(Duration::from_secs(3)).await;
    let group =
        test.cluster.place(spec("rollout", Role::Rollout, 2, 0), test.log_dir()).await.unwrap();
    let workers = group.wait_ready().await.unwrap();
    let pids = test.worker_pids();
    assert_eq!(pids.len(), 2);
    signal(pids[0], Signal::SIGSTOP);
    signal(test.agent_pid(), Signal::SIGKILL);
    gone(&pids).await;
    let loss = workers[0].lost().await;
    assert!(
        loss.cause.contains("lease ran out") || loss.cause.contains("no heartbeat"),
        "{}",
        loss.cause
    );
    test.stop.cancel();
    test.task.await.unwrap().unwrap();
}

/// AG-2: an agent whose coordinator is gone stops its workers and says so.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_loses_its_coordinator_stops_its_workers() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _stop, task) =
        crate::harness::coordinator(folder.path(), Duration::from_secs(2)).await;
    let mut agent =
        crate::harness::start_agent(folder.path(), &crate::harness::token(folder.path()));
    let logs = folder.path().join("logs");
    let group = cluster.place(spec("rollout", Role::Rollout, 1, 0), logs).await.unwrap();
    group.wait_ready().await.unwrap();
    // The listener goes without a word, as with a killed coordinator.
    task.abort();
    let status =
        tokio::time::timeout(crate::harness::PATIENCE, agent.wait()).await.unwrap().unwrap();
    assert!(!status.success());
    let log = std::fs::read_to_string(folder.path().join("agent.err")).unwrap();
    assert!(log.contains("lost its lease"), "{log}");
}
