//! Loading, receiving, activating and refusing, over a tiny folder and an in-process group.

use plumb_collective::in_process::{self, InProcess};
use plumb_domain::SamplingParams;
use plumb_proto::rollout;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::tiny_model;

fn loading(folder: &Path) -> Loading {
    Loading {
        folder: folder.to_owned(),
        kind: Kind::Float,
        limits: Limits { max_sequences: 4, kv_cache_bytes: 1 << 24, prefill_tokens: 64 },
        deterministic: false,
        version: PolicyVersion(0),
    }
}

fn loaded() -> (State, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    tiny_model::write_folder(&model, 3);
    let mut state = State::new(Device::Cpu);
    state.load(&loading(&model)).unwrap();
    (state, folder)
}

fn generation(version: u64) -> Generation {
    Generation {
        prompts: vec![rollout::Prompt {
            id: "p".into(),
            label: "general".into(),
            messages: vec![rollout::ChatMessage { role: "user".into(), content: "w1 w2".into() }],
            ..rollout::Prompt::default()
        }],
        max_prompt_tokens: 8,
        samples_per_prompt: 2,
        sampling: SamplingParams {
            max_new_tokens: 6,
            temperature: 0.0,
            ignore_eos: true,
            ..SamplingParams::default()
        },
        seed: 1,
        step: 0,
        version: PolicyVersion(version),
    }
}

fn text(state: &mut State, version: u64) -> String {
    let id = state.submit(generation(version)).unwrap();
    loop {
        let mut collected = state.advance(id).unwrap();
        if let Some(group) = collected.groups.pop() {
            assert_eq!(group.prompt.question, "w1 w2");
            return group.samples[0].text.clone();
        }
    }
}

/// Sends a version as the policy's rank 0 does; returns its buckets.
fn send(group: &InProcess, version: i64, flats: Vec<Tensor>) -> Vec<WeightBucket> {
    let mut header = Tensor::from_slice(&[1, version, 6, flats.len() as i64]);
    group.broadcast(&mut header, 0).unwrap().wait().unwrap();
    let mut buckets = Vec::new();
    for (index, mut flat) in flats.into_iter().enumerate() {
        let bytes = plumb_torch::bytes(&flat).unwrap();
        group.broadcast(&mut flat, 0).unwrap().wait().unwrap();
        buckets.push(WeightBucket {
            name: format!("block-{index:04}"),
            bytes: bytes.len() as u64,
            digest: blake3::hash(&bytes).to_hex().to_string(),
        });
    }
    buckets
}

/// Receives version `version` of the weights from `seed` while a thread sends them.
fn receive(state: &mut State, version: u64, seed: u64) -> Vec<WeightBucket> {
    let mut ranks = in_process::group(2);
    let receiver = ranks.pop().unwrap();
    let sender = ranks.pop().unwrap();
    let name = receiver.group().to_owned();
    state.join(Box::new(receiver));
    let sending =
        std::thread::spawn(move || send(&sender, version as i64, tiny_model::flats(seed)));
    let arrived = state.receive(&name, PolicyVersion(version)).unwrap();
    let sent = sending.join().unwrap();
    assert_eq!(arrived, sent);
    sent
}

#[test]
fn a_received_version_becomes_live_when_its_digests_agree() {
    let (mut state, _folder) = loaded();
    let before = text(&mut state, 0);
    let sent = receive(&mut state, 1, 4);
    assert_eq!(state.version(), Some(PolicyVersion(0)), "staged is not live");
    assert_eq!(text(&mut state, 0), before);
    state.activate(PolicyVersion(1), &sent).unwrap();
    assert_ne!(text(&mut state, 1), before);
    // The other seed's folder says what the new weights write.
    let other = tempfile::tempdir().unwrap();
    tiny_model::write_folder(&other.path().join("model"), 4);
    let mut expected = State::new(Device::Cpu);
    expected.load(&loading(&other.path().join("model"))).unwrap();
    assert_eq!(text(&mut state, 1), text(&mut expected, 0));
}

#[test]
fn we_1_a_digest_mismatch_leaves_the_old_version_live() {
    let (mut state, _folder) = loaded();
    let before = text(&mut state, 0);
    let mut sent = receive(&mut state, 1, 4);
    sent[2].digest = blake3::hash(b"other").to_hex().to_string();
    let error = state.activate(PolicyVersion(1), &sent).unwrap_err().to_string();
    assert!(error.starts_with("WE-1: version 1, bucket block-0002: received "), "{error}");
    assert_eq!(state.version(), Some(PolicyVersion(0)));
    assert_eq!(text(&mut state, 0), before);
}

#[test]
fn generation_with_a_version_that_is_not_live_is_refused_by_name() {
    let (mut state, _folder) = loaded();
    let error = state.submit(generation(5)).unwrap_err();
    assert_eq!(error.to_string(), "generation with policy version 5 is refused: version 0 is live");
}

#[test]
fn a_version_that_is_not_the_expected_one_is_not_staged() {
    let (mut state, _folder) = loaded();
    let mut ranks = in_process::group(2);
    let receiver = ranks.pop().unwrap();
    let sender = ranks.pop().unwrap();
    let name = receiver.group().to_owned();
    state.join(Box::new(receiver));
    let sending = std::thread::spawn(move || {
        let mut header = Tensor::from_slice(&[1_i64, 9, 6, 4]);
        sender.broadcast(&mut header, 0).unwrap().wait().unwrap();
    });
    let error = state.receive(&name, PolicyVersion(1)).unwrap_err();
    sending.join().unwrap();
    let error = plumb_runtime::chain(&error);
    assert!(error.contains("policy version 9, expected 1"), "{error}");
    assert!(state.staged.is_none());
    let none = state.receive("weights-7", PolicyVersion(1)).unwrap_err().to_string();
    assert!(none.contains("not in group \"weights-7\""), "{none}");
}

#[test]
fn prompts_that_cannot_be_answered_are_named() {
    let (mut state, _folder) = loaded();
    let mut error = |change: fn(&mut Generation)| {
        let mut generation = generation(0);
        change(&mut generation);
        state.submit(generation).unwrap_err().to_string()
    };
    assert_eq!(
        error(|g| g.max_prompt_tokens = 1),
        "prompt p has 2 tokens, max_prompt_tokens is 1: shorten it or raise the limit"
    );
    assert_eq!(error(|g| g.prompts.push(g.prompts[0].clone())), "prompt p is given twice");
    assert_eq!(
        error(|g| g.prompts[0].messages.clear()),
        "prompt p has neither messages nor a text"
    );
    let long = error(|g| {
        g.max_prompt_tokens = 0;
        g.prompts[0].text = Some("w1 ".repeat(tiny_model::CONTEXT));
    });
    assert!(long.contains("the model's context is 96"), "{long}");
    assert!(error(|g| g.prompts[0].id = "../p".into()).contains("prompt id"));
}

#[test]
fn folders_that_cannot_be_used_are_named() {
    let mut state = State::new(Device::Cpu);
    let root = tempfile::tempdir().unwrap();
    let missing = root.path().join("nowhere");
    let error = state.load(&loading(&missing)).unwrap_err();
    assert!(plumb_runtime::chain(&error).contains("nowhere"), "{error}");

    let model = root.path().join("model");
    tiny_model::write_folder(&model, 3);
    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let error = plumb_runtime::chain(&state.load(&loading(&model)).unwrap_err());
    assert!(error.contains("model.safetensors"), "{error}");
    assert!(state.version().is_none());
    assert!(matches!(state.submit(generation(0)), Err(StateError::NotLoaded)));
}

#[test]
fn stop_strings_end_a_response_as_text_or_as_a_special_token() {
    let (mut state, _folder) = loaded();
    let free = text(&mut state, 0);
    let words: Vec<&str> = free.split(' ').collect();
    assert_eq!(words.len(), 6, "{free}");
    let mut stopped = generation(0);
    // Word-level text puts a space between tokens, so this string spans two of them.
    stopped.sampling.stop = vec![format!("{} {}", words[1], words[2])];
    let id = state.submit(stopped).unwrap();
    let sample = loop {
        if let Some(mut group) = state.advance(id).unwrap().groups.pop() {
            break group.samples.remove(0);
        }
    };
    assert_eq!(sample.finish, plumb_domain::FinishReason::StopString);
    let cut = free.find(&format!("{} {}", words[1], words[2])).unwrap();
    assert_eq!(sample.text, free[..cut]);

    let texts = &state.loaded.as_ref().unwrap().texts;
    let rules = texts.stop_rules(&SamplingParams {
        stop: vec!["<|im_end|>".into(), "w7".into()],
        ignore_eos: true,
        ..SamplingParams::default()
    });
    assert_eq!((rules.token_ids, rules.strings), (vec![tiny_model::EOS], vec!["w7".to_owned()]));
    assert_eq!(texts.stop_rules(&SamplingParams::default()).eos_ids, [tiny_model::EOS]);
}

#[test]
fn token_prompts_go_in_as_they_are_and_a_later_turn_finds_the_earlier_ones() {
    let (mut state, _folder) = loaded();
    let turn = |state: &mut State, token_ids: Vec<u32>| {
        let mut asked = generation(0);
        asked.max_prompt_tokens = 0;
        asked.samples_per_prompt = 1;
        asked.prompts[0].messages.clear();
        asked.prompts[0].token_ids = token_ids;
        let id = state.submit(asked).unwrap();
        loop {
            if let Some(group) = state.advance(id).unwrap().groups.pop() {
                return group;
            }
        }
    };
    let first: Vec<u32> = (0..27).collect();
    let answered = turn(&mut state, first.clone());
    assert_eq!(answered.prompt.ids, first);
    assert!(answered.prompt.question.starts_with("w0 w1"), "{}", answered.prompt.question);
    assert_eq!(state.figures().reused_tokens, 0);
    // 27 + 6 tokens, of which all but the newest are in the cache: two blocks.
    let second = [first, answered.samples[0].response_ids.clone(), vec![3, 4]].concat();
    turn(&mut state, second);
    assert_eq!(state.figures().reused_tokens, 32);
}

#[test]
fn a_top_p_of_zero_and_a_prompt_beyond_the_context_are_refused_by_name() {
    let (mut state, _folder) = loaded();
    let mut long = generation(0);
    long.max_prompt_tokens = 0;
    long.prompts[0].token_ids = vec![1; tiny_model::CONTEXT];
    assert_eq!(
        state.submit(long).unwrap_err().to_string(),
        "prompt p has 96 tokens, the model's context is 96: shorten the prompt"
    );
    let sampling = rollout::SamplingParams {
        max_new_tokens: 4,
        temperature: 1.0,
        top_p: 0.0,
        ..rollout::SamplingParams::default()
    };
    assert_eq!(
        SamplingParams::try_from(sampling).unwrap_err().to_string(),
        "sampling.top_p = 0 is out of range: in (0, 1]"
    );
}
