use plumb_model::{
    BatchShape, Decoder, HeadSpec, KvCache, MissingHead, ModelConfig, Packed, ScoreHead, Span,
    TensorSource, Weights,
};
use tch::{Device, Kind, Tensor};

use crate::model;

fn decoder(name: &str) -> Decoder {
    Decoder::new(ModelConfig::from_folder(&model(name)).unwrap()).unwrap()
}

fn language_model(name: &str) -> (Decoder, Weights) {
    let decoder = decoder(name);
    let folder = model(name);
    let weights =
        Weights::load(&decoder, &folder, &HeadSpec::CausalLm, Kind::Float, Device::Cpu).unwrap();
    (decoder, weights)
}

#[test]
fn a_new_head_is_made_only_when_asked_for() {
    let decoder = decoder("tiny-llama3");
    let source = TensorSource::open(&model("tiny-llama3")).unwrap();
    for score in [ScoreHead::Linear, ScoreHead::Mlp { hidden_dims: vec![6, 4] }] {
        let head = HeadSpec::Score(score);
        let load = |missing| {
            Weights::load_from(&decoder, &source, &head, Kind::Float, Device::Cpu, missing)
        };
        let error = load(MissingHead::Refuse).unwrap_err().to_string();
        assert!(error.contains("tensor `score.") && error.contains("missing"), "{error}");
        let packed = Packed::new(&[&[5, 6, 7], &[8, 9]]).unwrap();
        let scores = |seed| {
            let weights = load(MissingHead::Init { seed }).unwrap();
            let scores = decoder.score_sequences(&weights, &packed).unwrap();
            Vec::<f32>::try_from(scores).unwrap()
        };
        assert_eq!(scores(3), scores(3));
        assert_ne!(scores(3), scores(4));
    }
}

#[test]
fn replacing_every_block_gives_the_other_model() {
    let (decoder, mut weights) = language_model("tiny-qwen2");
    let other = plumb_model::random_blocks(weights.specs(), 5).unwrap();
    let packed = Packed::new(&[&[3, 4, 5, 6], &[7, 8]]).unwrap();
    let before = decoder.forward(&weights, &packed).unwrap();
    for (index, params) in other.iter().enumerate() {
        weights.replace_block_params(index, params).unwrap();
    }
    let flats = (0..other.len()).map(|i| weights.flat(i).unwrap().copy()).collect();
    let expected = Weights::from_flats(&decoder, &HeadSpec::CausalLm, flats).unwrap();
    let after = decoder.forward(&weights, &packed).unwrap();
    assert!(after.equal(&decoder.forward(&expected, &packed).unwrap()));
    assert!(!after.equal(&before));
    // The tied output weight is the new embedding.
    assert!(weights.output_weight().unwrap().equal(&other[0][0]));
    let short = Tensor::zeros([7], (Kind::Float, Device::Cpu));
    let error = weights.replace_block(1, short).unwrap_err().to_string();
    assert!(error.contains("Layer(0)") && error.contains("[7]"), "{error}");
}

#[test]
fn arguments_that_do_not_fit_are_errors_not_panics() {
    let (decoder, weights) = language_model("tiny-llama3");
    let mut cache = KvCache::new(decoder.config(), 3, Kind::Float, Device::Cpu).unwrap();
    let packed = |ids: &[u32]| Packed::new(&[ids]).unwrap();
    let error = |result: Result<Tensor, plumb_model::ModelError>, part: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    };
    error(decoder.forward(&weights, &packed(&[96])), "token id 96");
    error(decoder.forward(&weights, &packed(&[5; 129])), "context of 128 tokens");
    let mut refused = |ids: &[u32], first_position, blocks: &[u32], part: &str| {
        let span = Span { ids, first_position, blocks, wants_logits: true };
        let step = decoder.step(&weights, &[span], &mut cache, BatchShape::Ragged);
        let error = step.unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    };
    refused(&[5; 17], 0, &[0], "ends at position 16 but has 1 blocks of 16 tokens");
    refused(&[5], 0, &[3], "block 3 of a KV cache of 3 blocks");
    refused(&[], 0, &[0], "span 0 has no tokens");
    refused(&[5], 128, &[0; 9], "position 128 is beyond");
    refused(&[96], 0, &[0], "token id 96");
    error(decoder.score_sequences(&weights, &packed(&[5])), "score head");
    assert!(cache.copy_blocks(&[(0, 1), (1, 3)]).unwrap_err().to_string().contains("block 3"));
    assert!(KvCache::new(decoder.config(), 0, Kind::Float, Device::Cpu).is_err());
    assert!(Packed::new(&[]).is_err());
    assert!(Packed::new(&[&[1], &[]]).unwrap_err().to_string().contains("sequence 1 of 2"));
    let mut half = KvCache::new(decoder.config(), 1, Kind::BFloat16, Device::Cpu).unwrap();
    let span = Span { ids: &[5], first_position: 0, blocks: &[0], wants_logits: true };
    let step = decoder.step(&weights, &[span], &mut half, BatchShape::Ragged);
    assert!(step.unwrap_err().to_string().contains("BFloat16"));
}
