//! Blocks running out, prompts in parts, prefixes found again.

use super::tests::*;
use super::*;
use crate::stop::StopRules;

fn long_prompts() -> Vec<EncodedPrompt> {
    (0..6u32)
        .map(|n| {
            let ids: Vec<u32> = (0..3 + 9 * n).map(|t| (t * (n + 2)) % 10 + 1).collect();
            prompt(&format!("p{n}"), &ids)
        })
        .collect()
}

fn blocks(count: u64) -> Limits {
    Limits { kv_cache_bytes: count * BLOCK_BYTES, ..WIDE }
}

#[test]
fn ro_1_a_sample_does_not_depend_on_who_lost_blocks_when() {
    let endless = || Request { stop: StopRules::default(), ..request(long_prompts(), 4, 1.0) };
    let expected = run(&mut engine_of(WIDE), vec![endless()]);
    let mut preemptions = Vec::new();
    for count in [5, 6, 7, 9, 12, 17, 200] {
        let mut engine = engine_of(blocks(count));
        assert_eq!(run(&mut engine, vec![endless()]), expected, "{count} blocks");
        assert_eq!(engine.pool.available(), engine.pool.len(), "blocks were lost");
        preemptions.push(engine.figures().preemptions);
    }
    assert!(preemptions[..6].iter().sum::<u64>() > 2, "{preemptions:?}");
    assert_eq!(preemptions[6], 0, "with room for all");
}

#[test]
fn ro_4_every_sample_comes_back_once_under_any_limits() {
    let expected = run(&mut engine_of(WIDE), vec![request(long_prompts(), 4, 1.0)]);
    for seed in 0..40u64 {
        let draw = |salt: u64, below: u64| {
            let hash = blake3::hash(&[seed.to_le_bytes(), salt.to_le_bytes()].concat());
            u64::from(hash.as_bytes()[0]) % below
        };
        let limits = Limits {
            max_sequences: 1 + draw(0, 9) as usize,
            prefill_tokens: 1 + draw(1, 40) as usize,
            kv_cache_bytes: (5 + draw(2, 12)) * BLOCK_BYTES,
        };
        let mut prompts = long_prompts();
        prompts.rotate_left(draw(3, 6) as usize);
        let later = prompts.split_off(draw(4, 6) as usize);
        let requests = [prompts, later].into_iter().filter(|part| !part.is_empty());
        let requests = requests.map(|part| request(part, 4, 1.0)).collect();
        let samples = run(&mut engine_of(limits), requests);
        assert_eq!(samples, expected, "seed {seed}: {limits:?}");
    }
}

#[test]
fn a_long_prompt_in_parts_does_not_hold_up_who_is_writing() {
    let whole = run(&mut engine_of(WIDE), vec![request(long_prompts(), 1, 0.0)]);
    let mut engine = engine_of(Limits { prefill_tokens: 8, ..WIDE });
    let endless =
        Request { stop: StopRules::default(), ..request(vec![prompt("short", &[1, 2])], 1, 0.0) };
    let id = engine.submit(endless).unwrap();
    engine.step();
    let long = engine.submit(request(vec![long_prompts().remove(5)], 1, 0.0)).unwrap();
    // 48 tokens in parts of 8 beside one token each of the other.
    for part in 0..6 {
        engine.step();
        let spans = engine.forward().spans.last().unwrap();
        assert_eq!(spans, &[(2 + part, 1), (8 * part, 8)], "part {part}");
    }
    let mut samples = Vec::new();
    while samples.is_empty() {
        engine.step();
        samples = engine.collect(long).unwrap().groups;
    }
    assert_eq!(samples[0].samples, whole["p5"]);
    assert_eq!(engine.figures().prefilled_tokens, 50);
    engine.cancel(id);
}

#[test]
fn samples_of_a_prompt_share_its_full_blocks_and_copy_the_last() {
    let mut engine = engine_of(WIDE);
    let ids: Vec<u32> = (0..40).map(|t| t % 10 + 1).collect();
    let endless =
        Request { stop: StopRules::default(), ..request(vec![prompt("p", &ids)], 8, 1.0) };
    let id = engine.submit(endless).unwrap();
    engine.step();
    engine.step();
    assert_eq!(engine.running(), 8);
    // Two full blocks for all, and one partly filled block each.
    assert_eq!(engine.pool.len() - engine.pool.available(), 2 + 8);
    assert_eq!(engine.figures().prefilled_tokens, 40);
    assert_eq!(engine.figures().reused_tokens, 7 * 40);
    engine.cancel(id);
    assert_eq!(engine.pool.available(), engine.pool.len());
}

/// Greedy continuation of one prompt.
fn answer(engine: &mut Engine<HashModel>, id: &str, ids: &[u32]) -> FinishedSample {
    let request = Request { stop: StopRules::default(), ..request(vec![prompt(id, ids)], 1, 0.0) };
    let mut samples = run(engine, vec![request]);
    samples.remove(id).unwrap().remove(0)
}

#[test]
fn a_conversation_goes_on_from_the_tokens_of_its_earlier_turns() {
    let mut engine = engine_of(WIDE);
    let first: Vec<u32> = (0..20).map(|t| t % 7 + 1).collect();
    let answered = answer(&mut engine, "turn-1", &first);
    assert_eq!(answered.response_ids.len(), 24);
    let second = [first, answered.response_ids, vec![3, 1, 4, 1, 5]].concat();
    let before = engine.figures();
    let continued = answer(&mut engine, "turn-2", &second);
    let after = engine.figures();
    // 20 + 23 tokens were in the cache: two full blocks. 49 - 32 tokens are computed.
    assert_eq!(after.reused_tokens - before.reused_tokens, 32);
    assert_eq!(after.prefilled_tokens - before.prefilled_tokens, 17);
    assert_eq!(continued, answer(&mut engine_of(WIDE), "turn-2", &second), "as if from nothing");
    // A prompt that is all in the cache still has its last block computed, for its logits.
    let again = answer(&mut engine, "turn-2", &second[..48]);
    assert_eq!(engine.figures().reused_tokens - after.reused_tokens, 32);
    assert_eq!(again, answer(&mut engine_of(WIDE), "turn-2", &second[..48]));
}

#[test]
fn the_longest_unused_blocks_make_room_first() {
    // 12 blocks; each answer fills three and a part.
    let mut engine = engine_of(blocks(12));
    let ids = |n: u32| -> Vec<u32> { (0..32).map(|t| (t * n) % 10 + 1).collect() };
    for n in 1..=6 {
        answer(&mut engine, "p", &ids(n));
    }
    let reused = |engine: &mut Engine<HashModel>, n| {
        let before = engine.figures().reused_tokens;
        let sample = answer(engine, "p", &[ids(n), vec![1]].concat());
        assert_eq!(sample, answer(&mut engine_of(WIDE), "p", &[ids(n), vec![1]].concat()));
        engine.figures().reused_tokens - before
    };
    assert_eq!(reused(&mut engine, 6), 32);
    assert_eq!(reused(&mut engine, 1), 0);
}

#[test]
fn ro_3_no_sequence_starts_from_another_version_s_blocks() {
    let mut engine = engine_of(WIDE);
    let ids: Vec<u32> = (0..40).map(|t| t % 10 + 1).collect();
    answer(&mut engine, "p", &ids);
    engine.activate(PolicyVersion(5), |_| {});
    answer(&mut engine, "p", &ids);
    assert_eq!(engine.figures().reused_tokens, 0);
    // Samples that have not started when the version changes compute the prompt again.
    let mut engine = engine_of(Limits { max_sequences: 2, ..WIDE });
    let id = engine.submit(request(vec![prompt("p", &ids)], 5, 1.0)).unwrap();
    engine.step();
    engine.step();
    engine.activate(PolicyVersion(5), |_| {});
    let mut groups = Vec::new();
    while groups.is_empty() {
        engine.step();
        groups = engine.collect(id).unwrap().groups;
    }
    assert_eq!(groups[0].samples.len(), 5);
    assert_eq!(engine.figures().prefilled_tokens, 80);
}
