use super::fixture::{GgufWriter, json, safetensors};
use crate::chat_template::ChatTemplate;
use crate::import::{ImportError, import};
use crate::tokenizer::Tokenizer;

/// A Llama of one layer, width 4, two heads, one key/value head, with a byte-level vocabulary of
/// five tokens in which "12" could be joined.
fn tiny() -> GgufWriter {
    GgufWriter::default()
        .text("general.architecture", "llama")
        .count("llama.block_count", 1)
        .count("llama.context_length", 64)
        .count("llama.embedding_length", 4)
        .count("llama.feed_forward_length", 6)
        .count("llama.attention.head_count", 1)
        .count("llama.attention.head_count_kv", 1)
        .number("llama.rope.freq_base", 100_000.0)
        .number("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &["<|end|>", "1", "2", "12", "a", "b", "ab"])
        .counts("tokenizer.ggml.token_type", &[3, 1, 1, 1, 1, 1, 1])
        .texts("tokenizer.ggml.merges", &["1 2", "a b"])
        .count("tokenizer.ggml.bos_token_id", 0)
        .count("tokenizer.ggml.eos_token_id", 0)
        .text("tokenizer.chat_template", "{{ messages[0].content }}{{ eos_token }}")
}

fn tiny_with_tensors() -> GgufWriter {
    tiny()
        .tensor("token_embd.weight", &[7, 4], 0.0)
        .tensor("blk.0.attn_norm.weight", &[4], 1.0)
        .tensor("blk.0.attn_q.weight", &[4, 4], 0.0)
        .tensor("blk.0.attn_k.weight", &[4, 4], 100.0)
        .tensor("blk.0.attn_v.weight", &[4, 4], 200.0)
        .tensor("blk.0.attn_output.weight", &[4, 4], 300.0)
        .tensor("blk.0.ffn_norm.weight", &[4], 1.0)
        .tensor("blk.0.ffn_gate.weight", &[6, 4], 0.0)
        .tensor("blk.0.ffn_up.weight", &[6, 4], 0.0)
        .tensor("blk.0.ffn_down.weight", &[4, 6], 0.0)
        .tensor("output_norm.weight", &[4], 1.0)
}

#[test]
fn a_small_llama_becomes_a_folder() {
    let work = tempfile::tempdir().unwrap();
    let source = tiny_with_tensors().write(work.path());
    let folder = work.path().join("out/model");
    std::fs::create_dir(work.path().join("out")).unwrap();
    let report = import(&source, None, &folder).unwrap();
    assert_eq!(
        (report.format, report.tensors, report.parameters, report.vocab_size),
        ("gguf", 11, 176, 7)
    );
    assert_eq!(report.number_formats["F32"], 11);

    let config = json(&folder, "config.json");
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(config["rope_theta"], 100_000.0);
    assert_eq!(config["rms_norm_eps"], 1e-5);
    assert_eq!(config["tie_word_embeddings"], true);
    let tensors = safetensors(&folder);
    // Rows of q: 0 1 2 3 in pairs become 0 2 1 3 in halves. v stays.
    let q = &tensors["model.layers.0.self_attn.q_proj.weight"];
    assert_eq!(
        (q.0.as_slice(), &q.1[..8]),
        ([4, 4].as_slice(), [0., 1., 2., 3., 8., 9., 10., 11.].as_slice())
    );
    assert_eq!(tensors["model.layers.0.self_attn.v_proj.weight"].1[4], 204.0);
    assert_eq!(tensors["model.layers.0.mlp.down_proj.weight"].0, [4, 6]);

    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    // Digits stand alone although the merge list joins them.
    assert_eq!(tokenizer.encode("ab12", false).unwrap(), [6, 1, 2]);
    assert_eq!(tokenizer.encode("ab<|end|>", false).unwrap(), [6, 0]);
    assert_eq!(tokenizer.eos_ids(), [0]);
    let template = ChatTemplate::from_folder(&folder, &tokenizer).unwrap().unwrap();
    let hello = plumb_domain::ChatMessage { role: "user".into(), content: "ab".into() };
    assert_eq!(template.render(&[hello], true).unwrap(), "ab<|end|>");
    let left: Vec<_> = std::fs::read_dir(work.path().join("out")).unwrap().collect();
    assert_eq!(left.len(), 1, "staging folder left behind");
}

/// Any prefix of the file is refused as truncated, and nothing is written.
#[test]
fn every_truncation_is_refused_with_its_offset() {
    let work = tempfile::tempdir().unwrap();
    let whole = tiny_with_tensors().bytes();
    let path = work.path().join("cut.gguf");
    let folder = work.path().join("model");
    // The last tensor is padded to 32 bytes behind its 16.
    for length in (4..whole.len() - 16).step_by(7) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = import(&path, None, &folder).unwrap_err();
        let ImportError::Truncated { offset, needed, bytes, .. } = error else {
            panic!("{length}: {error}")
        };
        assert!(offset + needed > bytes && bytes == length as u64, "{length}: {offset} + {needed}");
        assert!(!folder.exists());
    }
    let message = import(&path, None, &folder).unwrap_err().to_string();
    assert!(
        message.contains("cut.gguf: truncated: tensor `output_norm.weight` at byte "),
        "{message}"
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let work = tempfile::tempdir().unwrap();
    let message = |writer: GgufWriter| {
        let folder = work.path().join("model");
        let error = import(&writer.write(work.path()), None, &folder).unwrap_err().to_string();
        assert!(!folder.exists());
        error
    };
    let falcon = GgufWriter::default().text("general.architecture", "falcon");
    assert!(
        message(falcon)
            .ends_with("architecture `falcon` is not supported; supported: llama, qwen2, qwen3")
    );
    let q2 = tiny().raw_tensor("token_embd.weight", &[1, 256], 10, vec![0; 84]);
    assert!(
        message(q2).contains("number format `Q2_K of tensor token_embd.weight` is not supported")
    );
    let short = tiny().tensor("token_embd.weight", &[7, 4], 0.0);
    assert!(message(short).ends_with("tensor `blk.0.attn_norm.weight`: missing"));
    let unknown = tiny_with_tensors().tensor("blk.0.ffn_gate_inp.weight", &[4], 0.0);
    assert!(
        message(unknown)
            .contains("tensor `blk.0.ffn_gate_inp.weight`: not a tensor of a dense decoder")
    );
    let moe = tiny_with_tensors().count("llama.expert_count", 8);
    assert!(message(moe).contains("mixture of experts `8 experts` is not supported"));
    let odd = tiny().raw_tensor("token_embd.weight", &[7, 4], 3, vec![0; 64]);
    assert!(message(odd).contains("of shape [7, 4] does not fit Q4_1 blocks of 32"));
}

#[test]
fn a_tokenizer_without_an_end_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let writer = tiny_with_tensors();
    let source = writer.write(work.path());
    let bytes = std::fs::read(&source).unwrap();
    let key = b"tokenizer.ggml.eos_token_id";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
    let renamed =
        [&bytes[..at], b"tokenizer.ggml.xxx_token_id".as_slice(), &bytes[at + key.len()..]]
            .concat();
    std::fs::write(&source, renamed).unwrap();
    let message = import(&source, None, &work.path().join("m")).unwrap_err().to_string();
    assert!(message.contains("has no end-of-sequence token"), "{message}");
    assert!(!work.path().join("m").exists());
}

#[test]
fn a_destination_in_use_is_left_alone() {
    let work = tempfile::tempdir().unwrap();
    std::fs::write(work.path().join("kept"), "x").unwrap();
    let source = tiny_with_tensors().write(work.path());
    let error = import(&source, None, work.path()).unwrap_err();
    assert!(matches!(error, ImportError::DestinationExists { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(work.path().join("kept")).unwrap(), "x");
}
