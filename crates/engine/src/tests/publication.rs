//! Weights to receivers, to disk as a model folder, and over Gloo.

use std::sync::Arc;
use std::time::Duration;

use plumb_collective::gloo::Gloo;
use plumb_collective::{Collective, in_process};
use plumb_loss::policy::Objective;
use plumb_model::HeadSpec;
use plumb_torch::MemoryStore;
use tch::{Device, Kind};

use super::support::*;
use crate::publish::{Bucket, receive};
use crate::{EngineSettings, OldLogProbs, PolicyUpdate, Precision, update_policy};

/// Values and buckets that arrived, or the refusal.
type Arrival = Result<(Vec<f32>, Vec<Bucket>), String>;

/// Publishes from two policy ranks to one receiver: what was sent, what arrived, the weights.
fn publish(compute: Precision, version: u64, expected: u64) -> (Vec<Bucket>, Arrival, Vec<f32>) {
    let tiny = TinyModel::new(true, 4);
    let specs = tiny.decoder.blocks(&HeadSpec::CausalLm);
    let mut everybody = in_process::group(3);
    let receiver = everybody.pop().unwrap();
    std::thread::scope(|scope| {
        let specs = &specs;
        let received = scope.spawn(move || {
            let received = receive(&receiver, specs, expected, Kind::Float, Device::Cpu);
            let received = received.map_err(|error| error.to_string())?;
            let values = received.flats.iter().flat_map(|flat| Vec::<f32>::try_from(flat).unwrap());
            Ok((values.collect(), received.buckets))
        });
        let tiny = &tiny;
        let senders: Vec<_> = in_process::group(2)
            .into_iter()
            .zip(everybody)
            .map(|(policy, weights_group)| {
                scope.spawn(move || {
                    let settings = EngineSettings { compute, ..settings() };
                    let mut model = tiny.load(plan(settings), Box::new(policy));
                    let sent = model.publish(&weights_group, version);
                    (sent, weights(&model))
                })
            })
            .collect();
        let mut sent: Vec<_> = senders.into_iter().map(|thread| thread.join().unwrap()).collect();
        let (second, _) = sent.pop().unwrap();
        let (first, weights) = sent.pop().unwrap();
        assert!(second.unwrap_or_default().is_empty());
        (first.unwrap_or_default(), received.join().unwrap(), weights)
    })
}

#[test]
fn what_arrives_is_what_was_sent() {
    let (sent, received, weights) = publish(Precision::Fp32, 7, 7);
    let (values, buckets) = received.unwrap();
    assert_eq!(values, weights);
    assert_eq!(buckets, sent);
    assert_eq!((sent.len(), sent[0].name.as_str(), sent[0].bytes), (5, "block-0000", 29 * 16 * 4));
    assert_eq!(sent[0].digest.len(), 64);
}

#[test]
fn bf16_weights_arrive_rounded_with_equal_digests() {
    let (sent, received, weights) = publish(Precision::Bf16, 1, 1);
    let (values, buckets) = received.unwrap();
    assert_eq!(buckets, sent);
    assert_eq!(sent[0].bytes, 29 * 16 * 2);
    assert_ne!(values, weights);
    let rounding = weights.iter().fold(0.0f32, |most, w| most.max(w.abs())) / 128.0;
    assert_close(&values, &weights, rounding, "bf16 rounding");
}

#[test]
fn another_version_than_expected_is_refused_with_both() {
    let error = publish_to_wrong_version();
    assert!(error.contains("version 7") && error.contains("expected 8"), "{error}");
}

/// The receiver leaves after the header; its group is then dead for the senders.
fn publish_to_wrong_version() -> String {
    publish(Precision::Fp32, 7, 8).1.unwrap_err()
}

#[test]
fn an_exported_folder_loads_to_the_same_weights() {
    let tiny = TinyModel::new(false, 4);
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("export");
    let outcome = ranks(2, |comm| {
        let mut model = tiny.load(plan(settings()), comm);
        let bytes = model.export(&folder, Precision::Fp32).unwrap();
        (bytes, weights(&model))
    });
    assert_eq!(outcome[0].0, outcome[1].0);
    assert!(outcome[0].0 >= outcome[0].1.len() as u64 * 4);
    let reloaded = ranks(1, |comm| {
        let model = crate::ShardedModel::load(&folder, plan(settings()), comm).unwrap();
        weights(&model)
    });
    assert_eq!(reloaded[0], outcome[0].1);
}

#[test]
fn a_step_over_gloo_equals_a_step_alone() {
    let tiny = TinyModel::new(true, 6);
    let update = PolicyUpdate {
        objective: Objective::default(),
        importance: None,
        norm_tokens: 1.0,
        old_logps: OldLogProbs::Rollout,
        mini_batches: 1,
        epochs: 1,
        learning_rate: 0.05,
        temperature: 1.0,
    };
    let train = |comm: Box<dyn Collective>| {
        let settings = EngineSettings { micro_batch_tokens: 20, ..settings() };
        let mut model = tiny.load(plan(settings), comm);
        update_policy(&mut model, &samples(), &update).unwrap();
        weights(&model)
    };
    let alone = ranks(1, train).swap_remove(0);
    let store = MemoryStore::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|rank| {
                let (store, train) = (Arc::clone(&store), &train);
                scope.spawn(move || {
                    let limit = Duration::from_secs(20);
                    train(Box::new(Gloo::connect(store, "policy", rank, 2, limit).unwrap()))
                })
            })
            .collect();
        for thread in threads {
            assert_close(&thread.join().unwrap(), &alone, 1e-5, "over Gloo");
        }
    });
}
