//! Score heads: transformers' sequence classifiers, and UPS-RM's MLP.

use plumb_model::{Decoder, HeadSpec, ModelConfig, ScoreHead, Weights};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::vectors::{TOLERANCE, vectors};

#[test]
fn linear_scores_agree_with_transformers() {
    let mut models = 0;
    for (name, vector) in vectors().into_iter().filter(|(_, v)| !v.scores.is_empty()) {
        models += 1;
        let folder = vector.folder().unwrap();
        let config = ModelConfig::from_folder(&folder).unwrap();
        assert_eq!(config.score_head, Some(ScoreHead::Linear), "{name}");
        let head = HeadSpec::Score(ScoreHead::Linear);
        let decoder = Decoder::new(config).unwrap();
        let weights = Weights::load(&decoder, &folder, &head, Kind::Float, Device::Cpu).unwrap();
        let scores = decoder.score_sequences(&weights, &vector.packed()).unwrap();
        let scores = Vec::<f32>::try_from(scores).unwrap();
        assert_eq!(scores.len(), vector.scores.len());
        for (got, expected) in scores.iter().zip(&vector.scores) {
            let difference = (f64::from(*got) - expected).abs();
            assert!(difference < TOLERANCE, "{name}: {got} against {expected}");
        }
    }
    assert_eq!(models, 2);
}

fn tensor(value: &Value) -> Tensor {
    let row = |v: &Value| -> Vec<f32> {
        v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let rows = value.as_array().unwrap();
    if rows[0].is_array() {
        let rows: Vec<Tensor> = rows.iter().map(|v| Tensor::from_slice(&row(v))).collect();
        return Tensor::stack(&rows, 0);
    }
    Tensor::from_slice(&row(value))
}

/// UPS-RM commit 3b44b72, `merge/template/llama/modeling_myrm.py` (see the file's `reference`).
#[test]
fn mlp_scores_agree_with_ups_rm() {
    let golden: Value = serde_json::from_str(include_str!("../data/rm_mlp_head.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let dims = case["params"]["hidden_dim_str"].as_str().unwrap();
        let head = ScoreHead::from_hidden_dim_str(dims).unwrap();
        assert_eq!(head.hidden_dim_str().as_deref(), Some(dims));
        let inputs = &case["inputs"];
        let layers = inputs["layers"].as_array().unwrap();
        let params: Vec<Tensor> = layers
            .iter()
            .chain([&inputs["output_layer"]])
            .flat_map(|layer| [tensor(&layer["weight"]), tensor(&layer["bias"])])
            .collect();
        let specs = head.params(4);
        assert_eq!(specs.len(), params.len());
        for (spec, param) in specs.iter().zip(&params) {
            assert_eq!(spec.shape, param.size(), "{}", spec.name);
        }
        let masks = inputs["attention_mask"].as_array().unwrap();
        let hidden = inputs["last_hidden_state"].as_array().unwrap();
        let last: Vec<Tensor> = masks
            .iter()
            .zip(hidden)
            .map(|(mask, states)| {
                let ones = mask.as_array().unwrap().iter().filter(|x| x.as_f64() == Some(1.0));
                tensor(&states[ones.count() - 1])
            })
            .collect();
        let scores = head.score(&params, &Tensor::stack(&last, 0)).unwrap();
        let expected = tensor(&case["expected"]["logits"]).view([-1]);
        assert_eq!(scores.size(), expected.size());
        let worst = (&scores - &expected).abs().max().double_value(&[]);
        assert!(worst < 1e-6, "{dims}: {worst:.2e}");
        let safe = (-scores).sigmoid();
        let expected = tensor(&case["expected"]["safe_scores"]).view([-1]);
        assert!((safe - expected).abs().max().double_value(&[]) < 1e-6);
    }
}
