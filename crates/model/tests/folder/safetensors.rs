use std::path::Path;

use plumb_model::{Decoder, HeadSpec, ModelConfig, TensorSource, Weights};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::{copy_of, model};

fn load(folder: &Path) -> Result<Weights, String> {
    let decoder = Decoder::new(ModelConfig::from_folder(folder).unwrap()).unwrap();
    Weights::load(&decoder, folder, &HeadSpec::CausalLm, Kind::Float, Device::Cpu)
        .map_err(|error| error.to_string())
}

/// Rewrites the header of `model.safetensors`, keeping the data.
fn edit_header(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = header.to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&bytes[8 + length..]);
    std::fs::write(path, out).unwrap();
}

#[test]
fn slices_are_parts_of_the_tensor() {
    let source = TensorSource::open(&model("tiny-qwen3")).unwrap();
    assert!(source.folder().join("model.safetensors.index.json").exists(), "a sharded model");
    let name = "model.layers.1.mlp.up_proj.weight";
    assert_eq!(source.shape(name), Some([56, 32].as_slice()));
    assert_eq!(source.kind(name), Some(Kind::Float));
    let whole = source.tensor(name).unwrap();
    assert_eq!(whole.size(), [56, 32]);
    let slice = source.slice(name, 37, 100).unwrap();
    assert!(slice.equal(&whole.view([-1]).narrow(0, 37, 100)));
    for (start, elements) in [(1700, 100), (-1, 5), (0, i64::MAX), (i64::MAX, i64::MAX)] {
        let error = source.slice(name, start, elements).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("1792"), "{error}");
    }
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let folder = copy_of("tiny-llama3");
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, 3000, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(error.contains("model.safetensors: not a whole safetensors file"), "{error}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    std::fs::write(&path, longer).unwrap();
    assert!(load(folder.path()).unwrap_err().contains("not a whole safetensors file"));
}

#[test]
fn a_header_of_nonsense_is_refused() {
    let folder = copy_of("tiny-llama3");
    let path = folder.path().join("model.safetensors");
    for header in [
        &b"\xff\xff\xff\xff\xff\xff\xff\xff{}"[..],
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x04\0\0\0\0\0\0\0\x80abc",
    ] {
        std::fs::write(&path, header).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(error.contains("not a whole safetensors file"), "{error}");
    }
}

#[test]
fn missing_extra_and_misshapen_tensors_are_named_with_their_file() {
    let folder = copy_of("tiny-llama3");
    edit_header(folder.path(), |header| {
        let entry = header.as_object_mut().unwrap().remove("model.norm.weight").unwrap();
        header["model.other.weight"] = entry;
    });
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains("model.safetensors: tensor `model.norm.weight`: missing"), "{error}");

    let folder = copy_of("tiny-llama3");
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["num_hidden_layers"] = json!(2);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains("tensor `model.layers.2.") && error.contains("unexpected"), "{error}");

    let folder = copy_of("tiny-llama3");
    edit_header(folder.path(), |header| {
        header["model.layers.0.self_attn.k_proj.weight"]["shape"] = json!([32, 16]);
    });
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains("model.layers.0.self_attn.k_proj.weight"), "{error}");
    assert!(error.contains("shape [32, 16]; config.json asks for [16, 32]"), "{error}");

    let folder = copy_of("tiny-llama3");
    edit_header(folder.path(), |header| {
        header["model.norm.weight"]["dtype"] = json!("I32");
    });
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains("`model.norm.weight`: dtype I32; supported: F32, BF16, F16"), "{error}");
}

#[test]
fn shards_and_index_must_agree() {
    let folder = copy_of("tiny-qwen3");
    let index = folder.path().join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let shard = json["weight_map"]["model.norm.weight"].as_str().unwrap().to_owned();
    std::fs::rename(folder.path().join(&shard), folder.path().join("elsewhere")).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains(&shard) && error.contains("No such file"), "{error}");
    std::fs::rename(folder.path().join("elsewhere"), folder.path().join(&shard)).unwrap();

    json["weight_map"]["model.ghost.weight"] = json!(shard);
    std::fs::write(&index, json.to_string()).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains("`model.ghost.weight`") && error.contains(&shard), "{error}");

    json["weight_map"]["model.ghost.weight"] = json!("../../etc/passwd");
    std::fs::write(&index, json.to_string()).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains("weight_map.model.ghost.weight"), "{error}");
}

#[test]
fn half_precision_files_are_converted() {
    let folder = copy_of("tiny-llama3");
    let reference = load(folder.path()).unwrap();
    for kind in [Kind::BFloat16, Kind::Half] {
        let decoder = Decoder::new(ModelConfig::from_folder(folder.path()).unwrap()).unwrap();
        let blocks = decoder.blocks(&HeadSpec::CausalLm);
        let tensors = blocks.iter().zip(&reference.blocks).flat_map(|(block, params)| {
            block.params.iter().zip(params).map(|(spec, t)| (spec.name.clone(), t.shallow_clone()))
        });
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("m");
        plumb_model::export::write_folder(
            &target,
            decoder.config(),
            &HeadSpec::CausalLm,
            &blocks,
            None,
            kind,
            tensors,
        )
        .unwrap();
        let source = TensorSource::open(&target).unwrap();
        assert_eq!(source.kind("model.norm.weight"), Some(kind));
        let loaded = load(&target).unwrap();
        let expected: Tensor = reference.blocks[1][0].to_kind(kind).to_kind(Kind::Float);
        assert_eq!(loaded.kind(), Kind::Float);
        assert!(loaded.blocks[1][0].equal(&expected));
    }
}
