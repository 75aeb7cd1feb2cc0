//! Scores of tiny models, against the model code's own forward pass of one sequence.

use std::path::{Path, PathBuf};
use std::time::Duration;

use plumb_model::ScoreHead;
use tch::Device;

use super::*;
use crate::component::{Component, Kind as ComponentKind, Precision};
use crate::models::Models;
use crate::tiny_model::{self, EOS, sample};
use crate::transform::Transform;

fn spec(folder: &Path) -> ClassifierSpec {
    ClassifierSpec {
        model: ModelKey { folder: folder.to_owned(), precision: Precision::Fp32 },
        transform: Transform::Identity,
        micro_batch_tokens: 12,
        input: Input::Tokens,
    }
}

fn component(name: &str, spec: ClassifierSpec) -> Component {
    Component {
        name: name.into(),
        timeout: Duration::from_secs(60),
        kind: ComponentKind::Classifier(spec),
    }
}

fn samples() -> Vec<Sample> {
    vec![
        sample("a", &[1, 2, 3], &[4, 5]),
        sample("b", &[6], &[7, 8, 9, 10]),
        sample("c", &[11, 12], &[13]),
    ]
}

fn long() -> Deadline {
    Deadline::after(Duration::from_secs(600))
}

struct Fixture {
    _root: tempfile::TempDir,
    folder: PathBuf,
    model: Classifier,
}

fn fixture(head: ScoreHead) -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    tiny_model::write_folder(&folder, Some(head), 7);
    let model = Classifier::load(&spec(&folder).model, Device::Cpu).unwrap();
    Fixture { _root: root, folder, model }
}

/// The score of one sequence: hidden state of the last token through the head, by hand.
fn by_hand(model: &Classifier, ids: &[u32]) -> f64 {
    let packed = Packed::new(&[ids]).unwrap();
    let hidden_nh = model.decoder.forward(&model.weights, &packed).unwrap();
    let mut x_h = hidden_nh.get(-1);
    let params = &model.weights.head_params()[1..];
    for layer in params.chunks(2) {
        x_h = layer[0].mv(&x_h);
        if let Some(bias) = layer.get(1) {
            x_h += bias;
        }
        if layer[0].size()[0] > 1 {
            x_h = x_h.maximum(&(&x_h * 0.01));
        }
    }
    x_h.double_value(&[0])
}

#[test]
fn packed_scores_are_those_of_each_sequence_alone_for_both_heads() {
    for head in [ScoreHead::Linear, ScoreHead::Mlp { hidden_dims: vec![6, 3] }] {
        let fixture = fixture(head);
        let samples = samples();
        let refs: Vec<&Sample> = samples.iter().collect();
        for transform in [Transform::Identity, Transform::SigmoidNegated] {
            let spec = ClassifierSpec { transform, ..spec(&fixture.folder) };
            let outcomes = fixture.model.score(&spec, &refs, &long());
            for (sample, outcome) in samples.iter().zip(outcomes) {
                let ids = [sample.prompt_ids.as_slice(), &sample.response_ids].concat();
                let expected = transform.apply(by_hand(&fixture.model, &ids));
                assert!((outcome.unwrap() - expected).abs() < 1e-5, "sample {}", sample.id);
            }
        }
    }
}

#[test]
fn text_input_is_rendered_by_the_model_s_own_template() {
    let fixture = fixture(ScoreHead::Linear);
    let sample = sample("a", &[1, 2], &[3]);
    let spec = ClassifierSpec { input: Input::Text, ..spec(&fixture.folder) };
    let outcome = fixture.model.score(&spec, &[&sample], &long()).remove(0).unwrap();
    let expected = by_hand(&fixture.model, &[1, 2, EOS, 3, EOS]);
    assert!((outcome - expected).abs() < 1e-5);
}

#[test]
fn a_sample_that_fails_says_why_and_the_others_are_scored() {
    let fixture = fixture(ScoreHead::Linear);
    let long_sample = sample("long", &[1; 30], &[2; 5]);
    let mut foreign = sample("foreign", &[1], &[2, 3]);
    foreign.response = "x2 x3".into();
    let empty = Sample { response_ids: vec![], ..sample("empty", &[1], &[]) };
    let mut outside = sample("outside", &[1], &[2]);
    outside.prompt_ids = vec![1000];
    let good = sample("good", &[1], &[2]);
    let all = [&long_sample, &foreign, &empty, &good];
    let outcomes = fixture.model.score(&spec(&fixture.folder), &all, &long());
    let error = |place: usize| outcomes[place].clone().unwrap_err();
    assert_eq!(error(0), "37 tokens, the reward model's context is 32");
    assert!(error(1).contains("the tokenizers differ; set input = \"text\""), "{}", error(1));
    assert_eq!(error(2), "the response has no tokens");
    assert!(outcomes[3].is_ok());
    let outcomes = fixture.model.score(&spec(&fixture.folder), &[&outside], &long());
    assert!(outcomes[0].clone().unwrap_err().contains("1000"), "{outcomes:?}");
}

#[test]
fn an_answer_cut_before_a_stop_string_is_still_the_same_tokens() {
    let fixture = fixture(ScoreHead::Linear);
    let mut cut = sample("cut", &[1], &[2, 3, 4]);
    cut.response = "w2 w3".into();
    assert!(fixture.model.score(&spec(&fixture.folder), &[&cut], &long())[0].is_ok());
}

#[test]
fn what_comes_up_after_the_deadline_is_an_error() {
    let fixture = fixture(ScoreHead::Linear);
    let samples = samples();
    let refs: Vec<&Sample> = samples.iter().collect();
    let over = Deadline::after(Duration::ZERO);
    for outcome in fixture.model.score(&spec(&fixture.folder), &refs, &over) {
        assert_eq!(outcome, Err("timed out after 0ns".into()));
    }
}

#[test]
fn components_of_one_model_share_its_weights() {
    let fixture = fixture(ScoreHead::Linear);
    let negated = ClassifierSpec { transform: Transform::SigmoidNegated, ..spec(&fixture.folder) };
    let mut models = Models::new(Device::Cpu);
    let both = [component("a", spec(&fixture.folder)), component("b", negated)];
    let parameters = models.load(&both).unwrap();
    assert_eq!((models.len(), parameters), (1, fixture.model.parameters()));
    assert!(models.get(&spec(&fixture.folder).model).is_some());
    models.load(&[]).unwrap();
    assert!(models.is_empty());
}

#[test]
fn folders_that_cannot_be_used_are_named_and_leave_what_was_loaded() {
    let fixture = fixture(ScoreHead::Linear);
    let root = tempfile::tempdir().unwrap();
    let mut models = Models::new(Device::Cpu);
    models.load(&[component("a", spec(&fixture.folder))]).unwrap();
    let mut error = |folder: &Path| {
        let text = plumb_runtime::chain(&models.load(&[component("b", spec(folder))]).unwrap_err());
        assert_eq!(models.len(), 1);
        text
    };
    let missing = root.path().join("nowhere");
    assert!(error(&missing).contains("nowhere"));

    let language = root.path().join("language");
    tiny_model::write_folder(&language, None, 7);
    assert!(error(&language).contains("config.json names no score head"));

    let truncated = root.path().join("truncated");
    tiny_model::write_folder(&truncated, Some(ScoreHead::Linear), 7);
    let weights = truncated.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    assert!(error(&truncated).contains("model.safetensors"));

    let base = root.path().join("base");
    tiny_model::write_folder(&base, Some(ScoreHead::Linear), 7);
    std::fs::write(base.join("tokenizer_config.json"), r#"{"eos_token": "<|im_end|>"}"#).unwrap();
    let text = ClassifierSpec { input: Input::Text, ..spec(&base) };
    let error = models.load(&[component("t", text)]).unwrap_err().to_string();
    assert!(error.contains("\"t\": input is \"text\", but model"), "{error}");
}
