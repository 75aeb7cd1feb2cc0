//! Every backend that runs on this machine computes the same results and refuses the same mistakes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "clippy takes a test file's own functions for library code"
)]

use std::time::{Duration, Instant};

use plumb_collective::gloo::Gloo;
use plumb_collective::{Collective, CollectiveError, ReduceOp, in_process, solo};
use plumb_torch::MemoryStore;
use tch::{Device, Kind, Tensor};

const TIMEOUT: Duration = Duration::from_secs(30);

fn gloo_group(world_size: usize, timeout: Duration) -> Vec<Box<dyn Collective>> {
    let store = MemoryStore::new();
    let ranks: Vec<_> = (0..world_size)
        .map(|rank| {
            let store = store.clone();
            std::thread::spawn(move || Gloo::connect(store, "test", rank, world_size, timeout))
        })
        .collect();
    ranks
        .into_iter()
        .map(|rank| Box::new(rank.join().unwrap().unwrap()) as Box<dyn Collective>)
        .collect()
}

fn thread_group(world_size: usize) -> Vec<Box<dyn Collective>> {
    let ranks = in_process::group_with_timeout(world_size, TIMEOUT).into_iter();
    ranks.map(|rank| Box::new(rank) as Box<dyn Collective>).collect()
}

/// Runs `body` for every rank on a thread of its own and returns the results in rank order.
fn on_ranks<R: Send + 'static>(
    ranks: Vec<Box<dyn Collective>>,
    body: impl Fn(&dyn Collective) -> R + Send + Sync + Copy + 'static,
) -> Vec<R> {
    let threads: Vec<_> =
        ranks.into_iter().map(|rank| std::thread::spawn(move || body(rank.as_ref()))).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Rank r holds `[r + 1, 2 (r + 1), 4 (r + 1), ...]`: exact in bf16.
fn own(rank: usize, n: usize, kind: Kind) -> Tensor {
    let values: Vec<f64> = (0..n).map(|i| (rank + 1) as f64 * 2f64.powi(i as i32)).collect();
    Tensor::from_slice(&values).to_kind(kind)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
}

fn every_operation(comm: &dyn Collective) {
    let (rank, w) = (comm.rank(), comm.world_size());
    let sum_of_ranks = (w * (w + 1) / 2) as f64;
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64] {
        let zeros = |n: usize| Tensor::zeros([n as i64], (kind, Device::Cpu));
        let mut t = own(rank, 2, kind);
        comm.all_reduce(&mut t, ReduceOp::Sum).unwrap().wait().unwrap();
        assert_eq!(values(&t), [sum_of_ranks, 2.0 * sum_of_ranks]);
        let mut t = own(rank, 1, kind);
        comm.all_reduce(&mut t, ReduceOp::Max).unwrap().wait().unwrap();
        assert_eq!(values(&t), [w as f64]);
        let mut t = own(rank, 1, kind);
        comm.all_reduce(&mut t, ReduceOp::Min).unwrap().wait().unwrap();
        assert_eq!(values(&t), [1.0]);

        let mut whole = zeros(2 * w);
        comm.all_gather(&mut whole, &own(rank, 2, kind)).unwrap().wait().unwrap();
        let expected: Vec<f64> = (1..=w).flat_map(|r| [r as f64, 2.0 * r as f64]).collect();
        assert_eq!(values(&whole), expected);

        let mut part = zeros(1);
        comm.reduce_scatter(&mut part, &own(rank, w, kind), ReduceOp::Sum).unwrap().wait().unwrap();
        assert_eq!(values(&part), [2f64.powi(rank as i32) * sum_of_ranks]);

        let root = w - 1;
        let mut t = own(rank, 2, kind);
        comm.broadcast(&mut t, root).unwrap().wait().unwrap();
        assert_eq!(values(&t), values(&own(root, 2, kind)));
        comm.barrier().unwrap();
    }
}

/// Two operations in flight, waited for in the other order.
fn operations_overlap(comm: &dyn Collective) {
    let mut sum = own(comm.rank(), 2, Kind::Float);
    let mut whole = Tensor::zeros([2 * comm.world_size() as i64], (Kind::Float, Device::Cpu));
    let input = own(comm.rank(), 2, Kind::Float);
    let first = comm.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
    let second = comm.all_gather(&mut whole, &input).unwrap();
    second.wait().unwrap();
    first.wait().unwrap();
    assert_eq!(values(&whole)[0], 1.0);
    assert_eq!(values(&sum)[0], (1..=comm.world_size()).sum::<usize>() as f64);
}

fn mistakes_are_refused_and_cost_nothing(comm: &dyn Collective) {
    let floats = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let w = comm.world_size() as i64;
    let error = comm.all_gather(&mut floats(&[2 * w + 1]), &floats(&[2])).unwrap_err();
    assert!(matches!(error, CollectiveError::Misuse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("{} elements", 2 * w + 1)), "{error}");
    assert!(comm.broadcast(&mut floats(&[2]), w as usize).is_err());
    assert!(comm.all_reduce(&mut floats(&[2, 3]).tr(), ReduceOp::Sum).is_err());
    // The group still works, and the ranks still agree on the numbering.
    comm.barrier().unwrap();
}

#[test]
fn gloo_computes_every_operation() {
    for world_size in [1, 2, 4] {
        on_ranks(gloo_group(world_size, TIMEOUT), every_operation);
    }
    on_ranks(gloo_group(3, TIMEOUT), operations_overlap);
    on_ranks(gloo_group(2, TIMEOUT), mistakes_are_refused_and_cost_nothing);
}

#[test]
fn threads_compute_every_operation() {
    for world_size in [1, 2, 4] {
        on_ranks(thread_group(world_size), every_operation);
    }
    on_ranks(thread_group(3), operations_overlap);
    on_ranks(thread_group(2), mistakes_are_refused_and_cost_nothing);
}

#[test]
fn one_rank_alone_computes_every_operation() {
    every_operation(&solo());
    operations_overlap(&solo());
    mistakes_are_refused_and_cost_nothing(&solo());
}

/// Rank 0 waits for a peer that never comes; another thread aborts it after 100 ms.
fn abort_ends_a_wait(mut ranks: Vec<Box<dyn Collective>>) {
    let idle_peer = ranks.remove(1);
    let rank = ranks.remove(0);
    let handle = rank.abort_handle();
    let start = Instant::now();
    let waiter = std::thread::spawn(move || {
        let mut t = own(0, 2, Kind::Float);
        let error = rank.all_reduce(&mut t, ReduceOp::Sum).unwrap().wait().unwrap_err();
        assert!(matches!(error, CollectiveError::Aborted { .. }), "{error}");
        assert!(matches!(rank.barrier(), Err(CollectiveError::Aborted { .. })));
    });
    std::thread::sleep(Duration::from_millis(100));
    handle.abort();
    waiter.join().unwrap();
    assert!(start.elapsed() < TIMEOUT / 2, "took {:?}", start.elapsed());
    drop(idle_peer);
}

#[test]
fn gloo_abort_ends_a_wait() {
    abort_ends_a_wait(gloo_group(2, TIMEOUT));
}

#[test]
fn thread_abort_ends_a_wait() {
    abort_ends_a_wait(thread_group(2));
}

#[test]
fn a_dropped_thread_is_named() {
    let mut ranks = thread_group(3);
    drop(ranks.remove(1));
    let errors = on_ranks(ranks, |comm| comm.barrier().unwrap_err());
    for error in errors {
        assert_eq!(error.absent(), [1], "{error}");
    }
}

#[test]
fn a_thread_that_does_not_come_is_named_at_the_time_limit() {
    let ranks = in_process::group_with_timeout(2, Duration::from_millis(50));
    let error = ranks[0].barrier().unwrap_err();
    assert_eq!(error.absent(), [1]);
    assert!(error.to_string().contains("timed out"), "{error}");
}

#[test]
fn threads_that_disagree_are_told() {
    let ranks = in_process::group(2);
    let first = ranks[0].broadcast(&mut own(0, 1, Kind::Float), 0).unwrap();
    let error = ranks[1].all_reduce(&mut own(1, 1, Kind::Float), ReduceOp::Sum).unwrap_err();
    assert!(error.to_string().contains("Broadcast { root: 0 }"), "{error}");
    ranks[1].abort();
    assert!(first.wait().is_err());
}

#[test]
fn gloo_names_the_ranks_that_never_join() {
    let store = MemoryStore::new();
    let start = Instant::now();
    let error = Gloo::connect(store, "policy", 1, 4, Duration::from_millis(200)).unwrap_err();
    assert_eq!(error.absent(), [0, 2, 3]);
    assert!(error.to_string().contains("ranks 0, 2, 3 did not join within 0.2 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
}
