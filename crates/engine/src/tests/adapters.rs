//! LORA-1, LORA-2, and adapters through disk and to receivers. The curves against PyTorch are in
//! `training_curve`.

use std::path::PathBuf;

use plumb_loss::policy::Objective;
use plumb_loss::preference::Pairwise;
use plumb_model::{HeadSpec, LoraConfig, LoraTarget, ScoreHead};

use super::support::*;
use crate::{
    EngineSettings, LoadPlan, LoraPlan, OldLogProbs, PolicyUpdate, Precision, ResponseSample,
    ScoreLoss, ShardedModel, TextPair, log_probs, score_pairs, train_pairs, update_policy,
};

fn lora_plan(dropout: f64, targets: &[LoraTarget], folder: Option<PathBuf>) -> LoraPlan {
    LoraPlan { config: LoraConfig::new(3, 6.0, dropout, targets).unwrap(), seed: 5, folder }
}

fn adapted(settings: EngineSettings, dropout: f64) -> LoadPlan {
    LoadPlan { lora: Some(lora_plan(dropout, &LoraTarget::ALL, None)), ..plan(settings) }
}

/// Two steps, so that B is no longer zero and reaches A.
fn train(model: &mut ShardedModel) -> f64 {
    let update = PolicyUpdate {
        objective: Objective::default(),
        norm_tokens: 1.0,
        old_logps: OldLogProbs::Rollout,
        mini_batches: 2,
        epochs: 1,
        learning_rate: 0.05,
        temperature: 1.0,
        importance: None,
    };
    update_policy(model, &samples(), &update).unwrap()["adapter_delta_norm"]
}

fn logps(model: &mut ShardedModel) -> Vec<f32> {
    let samples: Vec<ResponseSample> = samples().into_iter().map(|s| s.sample).collect();
    let rows = log_probs(model, &samples, 1.0).unwrap();
    rows.into_iter().flat_map(|row| row.logps).collect()
}

#[test]
fn lora_1_a_fresh_adapter_is_the_same_at_every_world_size_and_changes_nothing() {
    let tiny = TinyModel::new(true, 7);
    let base = ranks(1, |comm| logps(&mut tiny.load(plan(settings()), comm))).remove(0);
    let fresh = |world: usize| {
        ranks(world, |comm| {
            let model = tiny.load(adapted(settings(), 0.0), comm);
            (weights(&model), model.adapter_delta_norm().unwrap(), model.shard_bytes())
        })
        .remove(0)
    };
    let (alone, norm, _) = fresh(1);
    assert_eq!(norm, Some(0.0));
    for world in [2, 4] {
        assert_eq!(fresh(world).0, alone, "{world} ranks");
    }
    let mut model = ranks(1, |comm| tiny.load(adapted(settings(), 0.1), comm)).remove(0);
    assert_eq!(logps(&mut model), base);
    // A is uniform within 1 / sqrt(in): the largest of 3 x 16 values is near the bound.
    let first = model.blocks[model.specs.len()].master().narrow(0, 0, 48);
    let largest = first.abs().max().double_value(&[]);
    assert!((0.2..=0.25).contains(&largest), "{largest}");
}

#[test]
fn training_moves_the_adapters_only_and_switching_them_off_gives_the_reference() {
    let tiny = TinyModel::new(false, 7);
    let frozen = LoadPlan { optimizer: None, ..plan(settings()) };
    let separate = logps(&mut tiny.load(frozen, Box::new(plumb_collective::solo())));
    for world in [1, 2] {
        ranks(world, |comm| {
            let mut model = tiny.load(adapted(settings(), 0.0), comm);
            let (before, reference) = (weights(&model), logps(&mut model));
            let norm = train(&mut model);
            let after = weights(&model);
            let own: i64 = model.specs.iter().map(plumb_model::BlockSpec::numel).sum();
            let own = own as usize;
            assert_eq!(before[..own], after[..own], "the frozen weights moved");
            assert_ne!(before[own..], after[own..]);
            assert!(norm > 1e-3, "norm {norm}");
            assert_ne!(logps(&mut model), reference);
            let off = model.without_adapters(|model| Ok(logps(model))).unwrap();
            assert_eq!(off, reference);
            if world == 1 {
                assert_eq!(off, separate, "a reference of its own gives others");
            }
            let sample = plumb_model::Packed::new(&[&[1, 2, 3]]).unwrap();
            let refused = model.without_adapters(|model| model.forward(&sample).map(|_| ()));
            assert!(refused.unwrap_err().to_string().contains("switched off"));
        });
    }
}

#[test]
fn lora_2_a_layer_that_runs_again_sees_the_masks_it_saw() {
    let tiny = TinyModel::new(true, 7);
    for world in [1, 2] {
        let run = |recompute, dropout| {
            let settings = EngineSettings { recompute, micro_batch_tokens: 20, ..settings() };
            ranks(world, |comm| {
                let mut model = tiny.load(adapted(settings.clone(), dropout), comm);
                train(&mut model);
                weights(&model)
            })
            .remove(0)
        };
        assert_eq!(run(true, 0.3), run(false, 0.3), "{world} ranks");
        assert_ne!(run(true, 0.3), run(true, 0.0), "dropout does nothing");
    }
}

#[test]
fn an_adapter_checkpoint_holds_adapters_only_and_resumes_at_any_world_size() {
    let tiny = TinyModel::new(true, 7);
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("checkpoint");
    let (saved, continued) = ranks(2, |comm| {
        let mut model = tiny.load(adapted(settings(), 0.0), comm);
        train(&mut model);
        let files = model.save_checkpoint(&folder).unwrap();
        let saved = weights(&model);
        // fp32 adapters, their two moments, and a header.
        let adapters: u64 = model.blocks[model.specs.len()..]
            .iter()
            .map(|block| block.master().numel() as u64 * 12)
            .sum();
        assert!((adapters..adapters + 4096).contains(&files[0].bytes), "{}", files[0].bytes);
        train(&mut model);
        (saved, weights(&model))
    })
    .remove(0);
    for world in [1, 2, 4] {
        ranks(world, |comm| {
            let mut model = tiny.load(adapted(settings(), 0.0), comm);
            model.load_checkpoint(&folder).unwrap();
            assert_eq!(weights(&model), saved, "{world} ranks");
            train(&mut model);
            assert_close(&weights(&model), &continued, 1e-6, "continued");
        });
    }
    let load = |plan: LoadPlan| {
        let mut model = tiny.load(plan, Box::new(plumb_collective::solo()));
        model.load_checkpoint(&folder).unwrap_err().to_string()
    };
    assert!(load(plan(settings())).contains("adapters alone"));
    let mut stronger = adapted(settings(), 0.0);
    stronger.lora.as_mut().unwrap().config.alpha = 3.0;
    assert!(load(stronger).contains("alpha / rank = 2, the model's have 1"));
}

#[test]
fn a_peft_folder_and_a_merged_export_hold_the_trained_model() {
    let tiny = TinyModel::new(true, 7);
    let run = tempfile::tempdir().unwrap();
    let (peft, merged) = (run.path().join("peft"), run.path().join("merged"));
    let targets = [LoraTarget::Q, LoraTarget::V, LoraTarget::Down];
    let load_plan = |folder| LoadPlan {
        lora: Some(lora_plan(0.0, &targets, folder)),
        ..plan(EngineSettings { frozen_layers: 1, ..settings() })
    };
    let trained = ranks(2, |comm| {
        let mut model = tiny.load(load_plan(None), comm);
        train(&mut model);
        model.export_adapter(&peft, Precision::Fp32).unwrap();
        model.export(&merged, Precision::Fp32).unwrap();
        weights(&model)
    })
    .remove(0);
    let expected =
        logps(&mut tiny.load(load_plan(Some(peft.clone())), Box::new(plumb_collective::solo())));
    ranks(4, |comm| {
        let model = tiny.load(load_plan(Some(peft.clone())), comm);
        assert_eq!(weights(&model), trained);
    });
    let mut whole =
        ShardedModel::load(&merged, plan(settings()), Box::new(plumb_collective::solo())).unwrap();
    assert_close(&logps(&mut whole), &expected, 1e-5, "merged");
    let text = std::fs::read_to_string(peft.join("adapter_config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["target_modules"], serde_json::json!(["q_proj", "v_proj", "down_proj"]));
    assert_eq!(json["layers_to_transform"], serde_json::json!([1, 2]));
    let mut other = load_plan(Some(peft));
    other.lora.as_mut().unwrap().config.rank = 4;
    let solo = Box::new(plumb_collective::solo());
    let error = ShardedModel::load(&tiny.path(), other, solo).err().unwrap().to_string();
    assert!(error.contains("rank 3") && error.contains("rank 4"), "{error}");
}

#[test]
fn a_score_head_is_trained_whole_beside_adapters_and_travels_with_them() {
    let tiny = TinyModel::new(true, 7);
    let folder = tempfile::tempdir().unwrap();
    let peft = folder.path().join("peft");
    let pair = |index: u32| TextPair {
        id: format!("pair-{index}"),
        better_ids: vec![index, 3, 5 + index],
        worse_ids: vec![index, 3, 11, index],
        safe: None,
    };
    let pairs: Vec<TextPair> = (0..4).map(pair).collect();
    let load_plan = |folder| LoadPlan {
        head: HeadSpec::Score(ScoreHead::Mlp { hidden_dims: vec![6] }),
        head_seed: 9,
        lora: Some(lora_plan(0.0, &[LoraTarget::Q, LoraTarget::Down], folder)),
        ..plan(settings())
    };
    let loss = ScoreLoss::Reward(Pairwise::default());
    let mut trained = Vec::new();
    for world in [1, 2] {
        let outcome = ranks(world, |comm| {
            let mut model = tiny.load(load_plan(None), comm);
            let before = weights(&model);
            let first = train_pairs(&mut model, &pairs, &loss, 0.05).unwrap();
            let metrics = train_pairs(&mut model, &pairs, &loss, 0.05).unwrap();
            assert!(metrics["loss"] < first["loss"], "{first:?} {metrics:?}");
            model.export_adapter(&peft, Precision::Fp32).unwrap();
            (before, weights(&model), metrics["adapter_delta_norm"])
        })
        .remove(0);
        let (before, after, norm) = outcome;
        assert!(norm > 1e-3, "norm {norm}");
        let model = tiny.load(load_plan(None), Box::new(plumb_collective::solo()));
        let own: usize = model.specs.iter().map(|spec| spec.numel() as usize).sum();
        let head = model.specs.last().unwrap().params.iter();
        let head = head.filter(|param| param.name.starts_with("score."));
        let head: usize = head.map(|param| param.shape.iter().product::<i64>() as usize).sum();
        assert_eq!(before[..own - head], after[..own - head], "the frozen weights moved");
        assert_ne!(before[own - head..own], after[own - head..own], "the head did not");
        trained.push(after);
    }
    assert_close(&trained[1], &trained[0], 1e-5, "two ranks");
    let mut again = tiny.load(load_plan(Some(peft)), Box::new(plumb_collective::solo()));
    assert_eq!(weights(&again), trained[1]);
    let mut fresh = tiny.load(load_plan(None), Box::new(plumb_collective::solo()));
    let margin = |model: &mut ShardedModel| {
        let scores = score_pairs(model, &pairs).unwrap();
        scores.iter().map(|row| row.better - row.worse).sum::<f64>()
    };
    assert!(margin(&mut again) > margin(&mut fresh));
}
