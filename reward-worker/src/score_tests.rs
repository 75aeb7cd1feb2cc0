//! Whole requests: models and rules side by side.

use std::time::Duration;

use plumb_model::ScoreHead;
use tch::Device;

use super::*;
use crate::component::{Input, ModelKey, Precision};
use crate::tiny_model::{self, sample};
use crate::transform::Transform;

fn rule(name: &str, json: &str, timeout: Duration) -> Component {
    Component {
        name: name.into(),
        timeout,
        kind: Kind::Rule(Box::new(Rule::from_json(json).unwrap())),
    }
}

const SHORT: &str = r#"{"rule": "length", "unit": "words", "min": 1, "max": 2}"#;
const HOUR: Duration = Duration::from_secs(3600);

fn mix(label: &str, components: &[&str]) -> reward::LabelMix {
    reward::LabelMix {
        label: label.into(),
        components: components.iter().map(|c| (*c).to_owned()).collect(),
    }
}

#[tokio::test]
async fn each_sample_gets_the_components_of_its_label() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    tiny_model::write_folder(&folder, Some(ScoreHead::Linear), 7);
    let classifier = |name: &str, transform| Component {
        name: name.into(),
        timeout: HOUR,
        kind: Kind::Classifier(ClassifierSpec {
            model: ModelKey { folder: folder.clone(), precision: Precision::Fp32 },
            transform,
            micro_batch_tokens: 64,
            input: Input::Tokens,
        }),
    };
    let components = Arc::new(vec![
        classifier("safe", Transform::SigmoidNegated),
        classifier("unsafe", Transform::Sigmoid),
        rule("short", SHORT, HOUR),
        rule("late", SHORT, Duration::ZERO),
    ]);
    let models = DeviceThread::spawn("reward-test", || Models::new(Device::Cpu)).unwrap();
    let wanted = components.clone();
    models.run(move |models| models.load(&wanted).map(|_| ())).await.unwrap().unwrap();

    let mut general = sample("g", &[1], &[2, 3, 4]);
    general.label = "general".into();
    let samples = Arc::new(vec![sample("s", &[1], &[2, 3]), general]);
    let labels = [mix("safety", &["safe", "unsafe", "short"]), mix("general", &["short", "late"])];
    let names: Vec<String> = components.iter().map(|c| c.name.clone()).collect();
    let plan = Plan::new(&names, &labels, &samples).unwrap();
    let scores = score(&components, &models, samples, &plan).await.unwrap();

    let of = |place: usize| -> Vec<&str> {
        scores[place].scores.iter().map(|s| s.component.as_str()).collect()
    };
    assert_eq!(of(0), ["safe", "unsafe", "short"]);
    assert_eq!(of(1), ["short", "late"]);
    let safety = &scores[0].scores;
    // sigmoid(x) + sigmoid(-x) = 1.
    assert!((safety[0].score + safety[1].score - 1.0).abs() < 1e-9);
    assert_eq!((safety[2].score, safety[2].error.as_deref()), (1.0, None));
    let late = &scores[1].scores[1];
    assert_eq!(late.error.as_deref(), Some("timed out after 0ns"));
    assert!(late.score.is_nan(), "a failure is not a number");
}

#[tokio::test]
async fn a_model_that_is_not_loaded_fails_its_component_only() {
    let components = Arc::new(vec![
        Component {
            name: "model".into(),
            timeout: HOUR,
            kind: Kind::Classifier(ClassifierSpec {
                model: ModelKey { folder: "gone".into(), precision: Precision::Fp32 },
                transform: Transform::Identity,
                micro_batch_tokens: 64,
                input: Input::Tokens,
            }),
        },
        rule("short", SHORT, HOUR),
    ]);
    let models = DeviceThread::spawn("reward-test", || Models::new(Device::Cpu)).unwrap();
    let samples = Arc::new(vec![sample("s", &[1], &[2])]);
    let names = ["model".to_owned(), "short".to_owned()];
    let plan = Plan::new(&names, &[mix("safety", &["model", "short"])], &samples).unwrap();
    let scores = score(&components, &models, samples, &plan).await.unwrap();
    assert_eq!(scores[0].scores[0].error.as_deref(), Some("model gone is not loaded"));
    assert_eq!(scores[0].scores[1].score, 1.0);
}
