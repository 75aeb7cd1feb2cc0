use std::path::Path;

use plumb_model::{Architecture, ModelConfig, RopeScaling, ScoreHead};
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96,
        "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    })
}

fn qwen3() -> Value {
    let mut config = llama();
    config["architectures"] = json!(["Qwen3ForCausalLM"]);
    config["model_type"] = json!("qwen3");
    config
}

fn parse(config: &Value) -> Result<ModelConfig, String> {
    ModelConfig::from_json(&config.to_string(), Path::new("m/config.json"))
        .map_err(|error| error.to_string())
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

#[test]
fn transformers_4_and_5_say_the_same() {
    let scaling = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    let old = with(with(llama(), "rope_theta", json!(500000.0)), "rope_scaling", scaling.clone());
    let new = with(llama(), "rope_parameters", with(scaling, "rope_theta", json!(500000.0)));
    let (old, new) = (parse(&old).unwrap(), parse(&new).unwrap());
    assert_eq!(old.rope, new.rope);
    assert_eq!(old.rope.theta, 500000.0);
    assert!(matches!(old.rope.scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = parse(&llama()).unwrap();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.head_dim, config.rope.theta), (8, 10_000.0));
    assert!(!config.qkv_bias && !config.tie_word_embeddings && !config.qk_norm);
    assert_eq!(config.score_head, None);
    assert_eq!(parse(&qwen3()).unwrap().head_dim, 128);
    let linear = with(llama(), "rope_scaling", json!({ "type": "linear", "factor": 4 }));
    let linear = parse(&linear).unwrap();
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(linear.max_positions, 512);
}

#[test]
fn sliding_windows_follow_the_config() {
    let sliding =
        with(with(qwen3(), "use_sliding_window", json!(true)), "sliding_window", json!(9));
    let from_second = with(sliding.clone(), "max_window_layers", json!(1));
    assert_eq!(parse(&from_second).unwrap().windows, [None, Some(9), Some(9)]);
    // Default of max_window_layers: 28, beyond this model.
    assert_eq!(parse(&sliding).unwrap().windows, [None; 3]);
    let typed = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    let typed = with(sliding, "layer_types", typed);
    assert_eq!(parse(&typed).unwrap().windows, [Some(9), None, Some(9)]);
    let unused = with(qwen3(), "sliding_window", json!(9));
    assert_eq!(parse(&unused).unwrap().windows, [None; 3]);
}

#[test]
fn score_heads_are_named_by_the_architecture() {
    let mlp = with(llama(), "architectures", json!(["LlamaForMlpScore"]));
    let mlp = with(mlp, "hidden_dim_str", json!("512, 64"));
    let expected = ScoreHead::Mlp { hidden_dims: vec![512, 64] };
    assert_eq!(parse(&mlp).unwrap().score_head, Some(expected));
    let linear = with(llama(), "architectures", json!(["LlamaForSequenceClassification"]));
    let one = with(linear.clone(), "id2label", json!({ "0": "LABEL_0" }));
    assert_eq!(parse(&one).unwrap().score_head, Some(ScoreHead::Linear));
    let two = with(linear, "id2label", json!({ "0": "a", "1": "b" }));
    assert!(parse(&two).unwrap_err().contains("id2label"));
}

/// Every refusal names the file, the key or thing, and what was found.
#[test]
fn what_is_not_supported_is_refused_by_name() {
    let rope = |kind: &str| json!({ "rope_type": kind, "factor": 2.0 });
    let cases = [
        (with(llama(), "architectures", json!(["MistralForCausalLM"])), "`MistralForCausalLM`"),
        (with(llama(), "architectures", json!(["Qwen3MoeForCausalLM"])), "`Qwen3MoeForCausalLM`"),
        (with(llama(), "model_type", json!("gemma2")), "`gemma2`"),
        (with(llama(), "model_type", json!("qwen2")), "LlamaForCausalLM"),
        (with(llama(), "hidden_act", json!("gelu")), "activation `gelu`"),
        (with(llama(), "quantization_config", json!({ "quant_method": "gptq" })), "`gptq`"),
        (with(llama(), "rope_scaling", rope("yarn")), "rope type `yarn`"),
        (with(llama(), "rope_parameters", rope("dynamic")), "rope type `dynamic`"),
        (with(llama(), "rope_scaling", json!({ "rope_type": "linear" })), "`rope_scaling.factor`"),
        (with(llama(), "partial_rotary_factor", json!(0.5)), "`partial_rotary_factor` is 0.5"),
        (with(llama(), "num_key_value_heads", json!(3)), "`num_key_value_heads` is 3"),
        (with(llama(), "hidden_size", json!(30)), "hidden_size, 30"),
        (with(llama(), "head_dim", json!(7)), "`head_dim` is 7"),
        (with(llama(), "vocab_size", json!("many")), "`vocab_size` is \"many\""),
        (with(llama(), "num_hidden_layers", json!(-1)), "`num_hidden_layers` is -1"),
        (with(llama(), "intermediate_size", Value::Null), "`intermediate_size` is null"),
        (with(llama(), "rms_norm_eps", json!(0)), "`rms_norm_eps` is 0"),
        (with(qwen3(), "layer_types", json!(["full_attention"])), "a list of 3 names"),
        (with(qwen3(), "layer_types", json!(vec!["linear_attention"; 3])), "linear_attention"),
    ];
    for (config, named) in cases {
        let error = parse(&config).unwrap_err();
        assert!(error.contains(named), "{error:?} does not name {named:?}");
        assert!(error.starts_with("m/config.json"), "{error:?}");
    }
}

#[test]
fn a_missing_or_broken_config_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = ModelConfig::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("No such file"), "{error}");
    std::fs::write(folder.path().join("config.json"), "{\"vocab_size\": 9").unwrap();
    let error = ModelConfig::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("config.json is not valid JSON"), "{error}");
}
