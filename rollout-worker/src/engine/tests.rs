//! The scheduler over a model whose logits are a hash of the whole sequence: any mix-up of slots,
//! prefixes or positions changes the text.

use plumb_domain::{FinishReason, SamplingParams};
use tch::{Kind, Tensor};

use super::*;
use crate::stop::StopRules;

const VOCABULARY: u64 = 11;
const CONTEXT: usize = 48;
const EOS: u32 = 0;

/// Remembers the tokens of each slot, as a KV cache would.
#[derive(Default)]
struct HashModel {
    slots: Vec<Vec<u32>>,
    prefilled_tokens: usize,
    widest_batch: usize,
    poison: bool,
    gaps: usize,
}

impl HashModel {
    fn logits(&self, history: &[u32]) -> Tensor {
        let values: Vec<f32> = (0..VOCABULARY)
            .map(|token| {
                let mut hasher = blake3::Hasher::new();
                history.iter().for_each(|id| {
                    hasher.update(&id.to_le_bytes());
                });
                hasher.update(&token.to_le_bytes());
                let byte = hasher.finalize().as_bytes()[0];
                if self.poison { f32::NAN } else { f32::from(byte) / 64.0 }
            })
            .collect();
        Tensor::from_slice(&values)
    }
}

impl Forward for HashModel {
    fn context_tokens(&self) -> usize {
        CONTEXT
    }

    fn kv_bytes_per_token(&self) -> u64 {
        10
    }

    fn allocate(&mut self, slots: usize, _tokens: usize) -> Result<(), ForwardError> {
        self.slots = vec![Vec::new(); slots];
        Ok(())
    }

    fn prefill(&mut self, prompts: &[(usize, &[u32])]) -> Result<Tensor, ForwardError> {
        for (slot, ids) in prompts {
            self.slots[*slot] = ids.to_vec();
            self.prefilled_tokens += ids.len();
        }
        let rows: Vec<Tensor> = prompts.iter().map(|(_, ids)| self.logits(ids)).collect();
        Ok(Tensor::stack(&rows, 0))
    }

    fn copy_prefix(&mut self, from: usize, to: &[usize], n: usize) -> Result<(), ForwardError> {
        let prefix = self.slots[from].get(..n).ok_or("the donor is shorter than its prompt")?;
        let prefix = prefix.to_vec();
        to.iter().for_each(|slot| self.slots[*slot] = prefix.clone());
        Ok(())
    }

    fn decode(&mut self, rows: &[Row]) -> Result<Tensor, ForwardError> {
        self.widest_batch = self.widest_batch.max(rows.len());
        self.gaps += rows.windows(2).filter(|pair| pair[0].slot + 1 != pair[1].slot).count();
        for row in rows {
            let slot = &mut self.slots[row.slot];
            if slot.len() < row.position {
                return Err(format!("slot {} is {} long", row.slot, slot.len()).into());
            }
            slot.truncate(row.position);
            slot.push(row.token);
        }
        let rows: Vec<Tensor> = rows.iter().map(|row| self.logits(&self.slots[row.slot])).collect();
        Ok(Tensor::stack(&rows, 0).to_kind(Kind::Float))
    }
}

struct Letters;

impl Detokenizer for Letters {
    fn text(&self, ids: &[u32]) -> String {
        ids.iter().filter(|id| **id != EOS).map(|id| char::from(b'a' + *id as u8)).collect()
    }
}

fn engine(max_sequences: usize) -> Engine<HashModel> {
    let limits = Limits { max_sequences, kv_cache_bytes: 1 << 20 };
    Engine::new(HashModel::default(), Box::new(Letters), limits, PolicyVersion(4))
}

fn prompt(id: &str, ids: &[u32]) -> EncodedPrompt {
    EncodedPrompt {
        id: id.into(),
        label: "general".into(),
        ids: ids.into(),
        question: id.into(),
        reference: None,
    }
}

fn prompts() -> Vec<EncodedPrompt> {
    (0..5u32)
        .map(|n| prompt(&format!("p{n}"), &(1..=n + 2).map(|t| t % 10 + 1).collect::<Vec<_>>()))
        .collect()
}

fn request(prompts: Vec<EncodedPrompt>, samples: u32, temperature: f64) -> Request {
    Request {
        prompts,
        samples_per_prompt: samples,
        sampling: SamplingParams {
            max_new_tokens: 24,
            temperature,
            top_p: 1.0,
            top_k: None,
            stop: vec![],
            ignore_eos: false,
        },
        stop: StopRules { eos_ids: vec![EOS], ..StopRules::default() },
        seed: 17,
        step: 2,
    }
}

fn run(
    engine: &mut Engine<HashModel>,
    requests: Vec<Request>,
) -> BTreeMap<String, Vec<FinishedSample>> {
    let ids: Vec<RequestId> = requests.into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let mut open = ids;
    let mut samples = BTreeMap::new();
    for _ in 0..2000 {
        engine.step();
        open.retain(|id| {
            let collected = engine.collect(*id).unwrap();
            for group in collected.groups {
                samples.insert(group.prompt.id, group.samples);
            }
            !collected.done
        });
        if open.is_empty() {
            return samples;
        }
    }
    panic!("requests {open:?} do not end");
}

#[test]
fn ro_1_the_batch_does_not_enter_a_sample() {
    for temperature in [0.0, 1.0] {
        let mut alone = BTreeMap::new();
        for prompt in prompts() {
            alone.append(&mut run(&mut engine(1), vec![request(vec![prompt], 3, temperature)]));
        }
        assert_eq!(alone.len(), 5);
        for width in [2, 3, 4, 7, 64] {
            let together = run(&mut engine(width), vec![request(prompts(), 3, temperature)]);
            assert_eq!(together, alone, "batch of {width}, temperature {temperature}");
        }
        let mut backwards = prompts();
        backwards.reverse();
        let two = vec![
            request(backwards.drain(..2).collect(), 3, temperature),
            request(backwards, 3, temperature),
        ];
        assert_eq!(run(&mut engine(4), two), alone, "other order of arrival");
    }
}

#[test]
fn samples_of_a_prompt_differ_and_repeat_with_the_seed() {
    let samples = run(&mut engine(8), vec![request(prompts(), 4, 1.0)]);
    let again = run(&mut engine(8), vec![request(prompts(), 4, 1.0)]);
    assert_eq!(samples, again);
    let texts: std::collections::BTreeSet<_> = samples["p0"].iter().map(|s| &s.text).collect();
    assert!(texts.len() > 1, "four samples, one text: {texts:?}");
    let other = Request { seed: 18, ..request(prompts(), 4, 1.0) };
    assert_ne!(run(&mut engine(8), vec![other]), samples);
}

#[test]
fn ro_2_a_prompt_is_prefilled_once_though_its_samples_start_apart() {
    let mut engine = engine(3);
    let samples = run(&mut engine, vec![request(prompts(), 7, 1.0)]);
    assert!(samples.values().all(|group| group.len() == 7));
    let tokens: usize = prompts().iter().map(|p| p.ids.len()).sum();
    assert_eq!(engine.forward.prefilled_tokens, tokens);
    assert_eq!(engine.forward.widest_batch, 3);
}

#[test]
fn the_batch_is_one_run_of_slots_though_sequences_leave() {
    let mut engine = engine(64);
    let samples = run(&mut engine, vec![request(prompts(), 6, 1.0)]);
    let lengths: std::collections::BTreeSet<_> =
        samples.values().flatten().map(|s| s.response_ids.len()).collect();
    assert!(lengths.len() > 3, "responses of one length leave no gaps: {lengths:?}");
    assert!(engine.forward.widest_batch > 20);
    assert_eq!(engine.forward.gaps, 0);
}

#[test]
fn ro_3_each_token_carries_the_version_that_wrote_it() {
    let mut engine = engine(1);
    let request =
        Request { stop: StopRules::default(), ..request(vec![prompt("p", &[3])], 1, 1.0) };
    let id = engine.submit(request).unwrap();
    engine.step();
    engine.step();
    engine.activate(PolicyVersion(5), |_| {});
    while engine.running() > 0 {
        engine.step();
    }
    let sample = engine.collect(id).unwrap().groups.remove(0).samples.remove(0);
    let segments: Vec<_> = sample.segments.iter().map(|s| (s.version.0, s.tokens)).collect();
    // The first step admits and decodes: two tokens, then one, then the rest of 24.
    assert_eq!(segments, [(4, 3), (5, 21)]);
    assert_eq!(sample.finish, FinishReason::Length);
    assert_eq!((sample.response_ids.len(), sample.logps.len()), (24, 24));
}

#[test]
fn a_response_ends_at_eos_at_a_stop_string_or_with_the_context() {
    let samples = run(&mut engine(8), vec![request(prompts(), 6, 1.0)]);
    let eos = samples.values().flatten().filter(|s| s.finish == FinishReason::Eos);
    assert!(eos.clone().count() > 0);
    assert!(eos.into_iter().all(|s| s.response_ids.last() == Some(&EOS)));

    let endless =
        Request { stop: StopRules::default(), ..request(vec![prompt("p", &[3, 4])], 1, 0.0) };
    let free = run(&mut engine(1), vec![endless]);
    let text = &free["p"][0].text;
    let stop = StopRules { strings: vec![text[2..4].to_owned()], ..StopRules::default() };
    let stopped = Request { stop, ..request(vec![prompt("p", &[3, 4])], 1, 0.0) };
    let stopped = &run(&mut engine(1), vec![stopped])["p"][0];
    assert_eq!(stopped.finish, FinishReason::StopString);
    assert_eq!(stopped.text, text[..text.find(&text[2..4]).unwrap()]);

    let long = Request {
        stop: StopRules::default(),
        ..request(vec![prompt("p", &[5; CONTEXT - 3])], 1, 0.0)
    };
    let long = &run(&mut engine(1), vec![long])["p"][0];
    assert_eq!((long.response_ids.len(), long.finish), (3, FinishReason::Length));
}

#[test]
fn rows_drawn_in_different_ways_share_a_batch() {
    let greedy = request(vec![prompt("g", &[1, 2])], 1, 0.0);
    let sampled = request(vec![prompt("s", &[1, 2])], 2, 1.0);
    let mut alone = run(&mut engine(1), vec![greedy.clone()]);
    alone.append(&mut run(&mut engine(1), vec![sampled.clone()]));
    assert_eq!(run(&mut engine(8), vec![greedy, sampled]), alone);
}

#[test]
fn prompts_that_cannot_run_are_refused_by_name() {
    let mut engine = engine(1);
    let error = engine.submit(request(vec![prompt("void", &[])], 1, 1.0)).unwrap_err();
    assert_eq!(error.to_string(), "prompt void has no tokens");
    let error = engine.submit(request(vec![prompt("big", &[1; CONTEXT])], 1, 1.0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "prompt big has 48 tokens, the model's context is 48: shorten the prompt"
    );
    engine.limits.kv_cache_bytes = 100;
    let error = engine.submit(request(vec![prompt("p", &[1])], 1, 1.0)).unwrap_err();
    assert!(matches!(error, EngineError::CacheTooSmall { needed: 480, available: 100, .. }));
    assert!(engine.requests.is_empty() && engine.waiting.is_empty());
}

#[test]
fn the_cache_budget_bounds_the_batch() {
    let mut engine = engine(8);
    engine.limits.kv_cache_bytes = 2 * 10 * CONTEXT as u64;
    run(&mut engine, vec![request(prompts(), 3, 1.0)]);
    assert_eq!(engine.forward.widest_batch, 2);
}

#[test]
fn a_failed_step_fails_its_requests_and_leaves_the_engine_usable() {
    let mut engine = engine(2);
    engine.forward.poison = true;
    let id = engine.submit(request(vec![prompt("p", &[1])], 1, 1.0)).unwrap();
    engine.step();
    let error = engine.collect(id).unwrap_err().to_string();
    assert_eq!(
        error,
        "generation failed: sample p/0: the model's logits are not finite at response token 0"
    );
    engine.forward.poison = false;
    assert_eq!(run(&mut engine, vec![request(prompts(), 1, 1.0)]).len(), 5);
}

#[test]
fn a_cancelled_request_frees_its_slots() {
    let mut engine = engine(4);
    let endless = Request { stop: StopRules::default(), ..request(prompts(), 4, 1.0) };
    let id = engine.submit(endless).unwrap();
    engine.step();
    assert_eq!(engine.running(), 4);
    engine.cancel(id);
    assert_eq!(engine.running(), 0);
    assert!(matches!(engine.collect(id), Err(EngineError::UnknownRequest(_))));
    assert_eq!(run(&mut engine, vec![request(prompts(), 2, 1.0)]).len(), 5);
}
