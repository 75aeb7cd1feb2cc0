//! A cluster without mishaps.

use std::time::Duration;

use plumb_domain::Role;

use crate::harness::{TestCluster, generate, load, spec};

#[tokio::test(flavor = "multi_thread")]
async fn a_group_serves_calls_once_and_leaves_nothing_behind() {
    let test = TestCluster::start(Duration::from_secs(10)).await;
    let group =
        test.cluster.place(spec("rollout", Role::Rollout, 1, 0), test.log_dir()).await.unwrap();
    let workers = group.wait_ready().await.unwrap();
    assert_eq!(workers.len(), 1);
    assert_eq!(test.worker_pids().len(), 1);
    // ID-1 over the wire: a repeat runs nothing; ID-4: a replay does.
    assert_eq!(load(&workers[0], 0, 0).await, 1);
    assert_eq!(load(&workers[0], 0, 0).await, 1);
    assert_eq!(load(&workers[0], 0, 1).await, 2);
    // Objects travel in chunks, and the digest is checked.
    let progress = generate(&workers[0], "hello").await.unwrap();
    let object = progress.object.unwrap();
    assert_eq!(object.bytes, 500_000);
    let bytes = test.cluster.peers().fetch(&object).await.unwrap();
    assert_eq!(&bytes[..10], b"hellohello");
    let mut forged = object.clone();
    forged.digest = blake3::hash(b"other").to_hex().to_string();
    let error = test.cluster.peers().fetch(&forged).await.unwrap_err();
    assert!(error.message().starts_with("OB-1: object 0/hello of rollout-0"), "{error}");
    // stdout and stderr of each process are kept.
    let log = std::fs::read_to_string(test.log_dir().join("rollout-0-1.err")).unwrap();
    assert!(log.contains("rollout-0 epoch 1 starts"), "{log}");
    assert_eq!(test.cluster.nodes()[0].workers, ["rollout-0"]);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_meet_in_the_rendezvous_store() {
    let test = TestCluster::start(Duration::from_secs(10)).await;
    let policy =
        test.cluster.place(spec("policy", Role::Policy, 2, 0), test.log_dir()).await.unwrap();
    let workers = policy.wait_ready().await.unwrap();
    let timeout = Duration::from_secs(20);
    let first = test.cluster.init_collective("policy", &workers, "gloo", timeout).await.unwrap();
    let second = test.cluster.init_collective("policy", &workers, "gloo", timeout).await.unwrap();
    assert_eq!((first, second), (1, 2));
    let error = test.cluster.init_collective("policy", &workers, "mpi", timeout).await.unwrap_err();
    assert!(error.to_string().contains("backend \"mpi\""), "{error}");
    let pids = test.worker_pids();
    policy.release();
    crate::harness::gone(&pids).await;
    assert!(policy.wait_ready().await.is_err());
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_does_not_fit_is_refused_by_name() {
    let test = TestCluster::start(Duration::from_secs(10)).await;
    let mut large = spec("policy", Role::Policy, 2, 0);
    large.bundle.cpus_milli = 1_000_000;
    let error = test.cluster.place(large, test.log_dir()).await.unwrap_err().to_string();
    assert!(
        error.contains("group \"policy\" does not fit: rank 0 of 2 (PACK) needs 1000 CPUs"),
        "{error}"
    );
    let mut gpu = spec("policy", Role::Policy, 1, 0);
    gpu.bundle.gpus_milli = 9_000_000;
    let error = test.cluster.place(gpu, test.log_dir()).await.unwrap_err().to_string();
    assert!(error.contains("GPUs wholly free, 9000 needed"), "{error}");
    test.finish().await;
}
