use std::collections::BTreeSet;
use std::path::Path;

use plumb_model::export::{DEFAULT_SHARD_BYTES, Writer};
use plumb_model::{
    BlockSpec, Decoder, HeadSpec, MissingHead, ModelConfig, Packed, ScoreHead, TensorSource,
    Weights,
};
use tch::{Device, Kind};

use crate::{copy_of, model};

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn load(folder: &Path, head: &HeadSpec) -> (Decoder, Weights, Vec<BlockSpec>) {
    let decoder = Decoder::new(ModelConfig::from_folder(folder).unwrap()).unwrap();
    let source = TensorSource::open(folder).unwrap();
    let init = MissingHead::Init { seed: 1 };
    let weights =
        Weights::load_from(&decoder, &source, head, Kind::Float, Device::Cpu, init).unwrap();
    let blocks = decoder.blocks(head);
    (decoder, weights, blocks)
}

fn write_all(writer: &mut Writer, weights: &Weights) {
    // Last block first: any order will do.
    for (spec, params) in weights.specs().iter().zip(&weights.blocks).rev() {
        for (param, tensor) in spec.params.iter().zip(params) {
            writer.tensor(&param.name, tensor).unwrap();
        }
    }
}

#[test]
fn an_export_loads_to_the_same_numbers() {
    let scored = HeadSpec::Score(ScoreHead::Mlp { hidden_dims: vec![6, 4] });
    let linear = HeadSpec::Score(ScoreHead::Linear);
    let cases =
        [("tiny-qwen3", HeadSpec::CausalLm), ("tiny-qwen2", scored), ("tiny-llama3", linear)];
    for (name, head) in cases {
        let source = copy_of(name);
        std::fs::write(source.path().join("tokenizer.json"), "{}").unwrap();
        let (decoder, weights, blocks) = load(source.path(), &head);
        for shard_bytes in [20_000, DEFAULT_SHARD_BYTES] {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join("export");
            let mut writer = Writer::create(
                &target,
                decoder.config(),
                &head,
                &blocks,
                Some(source.path()),
                Kind::Float,
                shard_bytes,
            )
            .unwrap();
            assert!(!target.exists(), "nothing is in place before the end");
            write_all(&mut writer, &weights);
            let bytes = writer.finish().unwrap();
            assert_eq!(names(out.path()), ["export".to_owned()].into());
            let files = names(&target);
            assert_eq!(files.contains("model.safetensors"), shard_bytes == DEFAULT_SHARD_BYTES);
            assert!(files.contains("tokenizer.json"));
            let on_disk: u64 = files
                .iter()
                .filter(|name| name.ends_with(".safetensors"))
                .map(|name| target.join(name).metadata().unwrap().len())
                .sum();
            assert_eq!(bytes, on_disk);

            let config = ModelConfig::from_folder(&target).unwrap();
            let expected = match &head {
                HeadSpec::CausalLm => None,
                HeadSpec::Score(score) => Some(score.clone()),
            };
            assert_eq!(config.score_head, expected);
            let again = Weights::load(&decoder, &target, &head, Kind::Float, Device::Cpu).unwrap();
            let packed = Packed::new(&[&[3, 4, 5], &[6, 7, 8, 9]]).unwrap();
            let before = decoder.forward(&weights, &packed).unwrap();
            assert!(before.equal(&decoder.forward(&again, &packed).unwrap()));
            for (a, b) in weights.head_params().iter().zip(again.head_params()) {
                assert!(a.equal(b));
            }
        }
    }
}

#[test]
fn config_fields_of_the_source_survive() {
    let (decoder, weights, blocks) = load(&model("stories260k"), &HeadSpec::CausalLm);
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m");
    let mut writer = Writer::create(
        &target,
        decoder.config(),
        &HeadSpec::CausalLm,
        &blocks,
        None,
        Kind::Float,
        DEFAULT_SHARD_BYTES,
    )
    .unwrap();
    write_all(&mut writer, &weights);
    let _ = writer.finish().unwrap();
    let exported = ModelConfig::from_folder(&target).unwrap();
    assert_eq!(exported.raw, decoder.config().raw);
}

#[test]
fn an_unfinished_or_wrong_export_leaves_nothing() {
    let (decoder, weights, blocks) = load(&model("tiny-llama3"), &HeadSpec::CausalLm);
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m");
    let create = || {
        Writer::create(
            &target,
            decoder.config(),
            &HeadSpec::CausalLm,
            &blocks,
            None,
            Kind::Float,
            DEFAULT_SHARD_BYTES,
        )
    };
    let norm = &weights.head_params()[0];
    let mut writer = create().unwrap();
    writer.tensor("model.norm.weight", norm).unwrap();
    let error = writer.tensor("model.norm.weight", norm).unwrap_err().to_string();
    assert!(error.contains("was written before"), "{error}");
    let error = writer.tensor("lm_head.weight", norm).unwrap_err().to_string();
    assert!(error.contains("shape [32], expected [96, 32]"), "{error}");
    let error = writer.tensor("model.ghost", norm).unwrap_err().to_string();
    assert!(error.contains("`model.ghost` is not of this model"), "{error}");
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("was not written"), "{error}");
    assert_eq!(names(out.path()), BTreeSet::new());

    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("thesis.txt"), "precious").unwrap();
    let error = create().err().unwrap().to_string();
    assert!(error.contains("not a model folder"), "{error}");
    assert_eq!(names(out.path()), ["m".to_owned()].into());
}

#[test]
fn an_earlier_export_is_replaced_whole() {
    let (decoder, weights, blocks) = load(&model("tiny-llama3"), &HeadSpec::CausalLm);
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m");
    for stale in ["config.json", "model-00001-of-00002.safetensors"] {
        std::fs::create_dir_all(&target).unwrap();
        std::fs::write(target.join(stale), "{}").unwrap();
    }
    let mut writer = Writer::create(
        &target,
        decoder.config(),
        &HeadSpec::CausalLm,
        &blocks,
        None,
        Kind::Float,
        DEFAULT_SHARD_BYTES,
    )
    .unwrap();
    write_all(&mut writer, &weights);
    let _ = writer.finish().unwrap();
    assert_eq!(names(&target), ["config.json", "model.safetensors"].map(String::from).into());
    assert_eq!(names(out.path()), ["m".to_owned()].into());
}
