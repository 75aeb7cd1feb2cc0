//! The scheduler over a model whose logits are a hash of the whole sequence: any mix-up of blocks,
//! prefixes or positions changes the text.

use plumb_domain::{FinishReason, SamplingParams};
use tch::{Kind, Tensor};

use super::*;
use crate::stop::{Detokenizer, StopRules};

pub(super) const VOCABULARY: u64 = 11;
pub(super) const CONTEXT: usize = 96;
pub(super) const EOS: u32 = 0;
/// Bytes of a block: 10 for each token.
pub(super) const BLOCK_BYTES: u64 = 10 * BLOCK_TOKENS as u64;

/// Remembers the tokens of each block, as a KV cache would.
#[derive(Default)]
pub(super) struct HashModel {
    blocks: Vec<[Option<u32>; BLOCK_TOKENS]>,
    /// First position and number of tokens of each span, step by step.
    pub(super) spans: Vec<Vec<(usize, usize)>>,
    poison: bool,
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

    /// The tokens that the table's blocks hold up to `end`.
    fn history(&self, table: &[u32], end: usize) -> Result<Vec<u32>, ForwardError> {
        (0..end)
            .map(|at| {
                self.blocks[table[at / BLOCK_TOKENS] as usize][at % BLOCK_TOKENS]
                    .ok_or_else(|| format!("nothing at position {at}").into())
            })
            .collect()
    }
}

impl Forward for HashModel {
    fn context_tokens(&self) -> usize {
        CONTEXT
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY as usize
    }

    fn kv_bytes_per_token(&self) -> u64 {
        10
    }

    fn allocate(&mut self, blocks: usize) -> Result<(), ForwardError> {
        self.blocks = vec![[None; BLOCK_TOKENS]; blocks];
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<(), ForwardError> {
        for (from, to) in copies {
            self.blocks[*to as usize] = self.blocks[*from as usize];
        }
        Ok(())
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<Option<Tensor>, ForwardError> {
        self.spans.push(spans.iter().map(|s| (s.first_position, s.ids.len())).collect());
        for span in spans {
            for (at, id) in (span.first_position..).zip(span.ids) {
                let block = span.blocks[at / BLOCK_TOKENS] as usize;
                self.blocks[block][at % BLOCK_TOKENS] = Some(*id);
                // What the block held behind this token was another sequence's.
                self.blocks[block][at % BLOCK_TOKENS + 1..].fill(None);
            }
        }
        let mut rows = Vec::new();
        for span in spans {
            let history = self.history(span.blocks, span.first_position + span.ids.len())?;
            if span.wants_logits {
                rows.push(self.logits(&history));
            }
        }
        Ok((!rows.is_empty()).then(|| Tensor::stack(&rows, 0).to_kind(Kind::Float)))
    }

    fn trainer_logps(
        &mut self,
        _prompt_ids: &[u32],
        _response_ids: &[u32],
        _temperature: f64,
    ) -> Result<Option<Vec<f32>>, ForwardError> {
        Ok(None)
    }
}

pub(super) struct Letters;

impl Detokenizer for Letters {
    fn text(&self, ids: &[u32]) -> String {
        ids.iter().filter(|id| **id != EOS).map(|id| char::from(b'a' + *id as u8)).collect()
    }
}

pub(super) fn engine(max_sequences: usize) -> Engine<HashModel> {
    engine_of(Limits { max_sequences, ..WIDE })
}

/// Room for everything.
pub(super) const WIDE: Limits =
    Limits { max_sequences: 64, kv_cache_bytes: 1 << 20, prefill_tokens: 4096 };

pub(super) fn engine_of(limits: Limits) -> Engine<HashModel> {
    Engine::new(HashModel::default(), Box::new(Letters), limits, PolicyVersion(4))
}

pub(super) fn prompt(id: &str, ids: &[u32]) -> EncodedPrompt {
    EncodedPrompt {
        id: id.into(),
        label: "general".into(),
        ids: ids.into(),
        question: id.into(),
        reference: None,
    }
}

pub(super) fn prompts() -> Vec<EncodedPrompt> {
    (0..5u32)
        .map(|n| prompt(&format!("p{n}"), &(1..=n + 2).map(|t| t % 10 + 1).collect::<Vec<_>>()))
        .collect()
}

pub(super) fn request(prompts: Vec<EncodedPrompt>, samples: u32, temperature: f64) -> Request {
    Request {
        prompts,
        samples_per_prompt: samples,
        sampling: SamplingParams { max_new_tokens: 24, temperature, ..SamplingParams::default() },
        stop: StopRules { eos_ids: vec![EOS], ..StopRules::default() },
        seed: 17,
        step: 2,
    }
}

pub(super) fn run(
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
fn a_prompt_is_computed_once_though_its_samples_start_apart() {
    let mut engine = engine(3);
    let samples = run(&mut engine, vec![request(prompts(), 7, 1.0)]);
    assert!(samples.values().all(|group| group.len() == 7));
    let tokens: usize = prompts().iter().map(|p| p.ids.len()).sum();
    assert_eq!(engine.figures().prefilled_tokens, tokens as u64);
    assert_eq!(engine.figures().widest_batch, 3);
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
    // Two steps, two tokens, then the rest of 24.
    assert_eq!(segments, [(4, 2), (5, 22)]);
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
        "prompt big has 96 tokens, the model's context is 96: shorten the prompt"
    );
    engine.limits.kv_cache_bytes = 100;
    let error = engine.submit(request(vec![prompt("p", &[1])], 1, 1.0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "one sequence of 25 tokens needs 320 bytes of KV cache, but kv_cache_bytes is 100: raise \
         it or lower max_new_tokens"
    );
    let error = engine.submit(request(vec![prompt("odd", &[1, 11])], 1, 1.0)).unwrap_err();
    assert_eq!(error.to_string(), "prompt odd has token 11, the model's vocabulary has 11");
    engine.limits = WIDE;
    let with = |sampling: SamplingParams| Request { sampling, ..request(prompts(), 1, 1.0) };
    let plain = SamplingParams { max_new_tokens: 4, ..SamplingParams::default() };
    let biased = SamplingParams { logit_bias: [(12, 1.0)].into(), ..plain.clone() };
    let error = engine.submit(with(biased)).unwrap_err();
    assert_eq!(error.to_string(), "sampling names token 12, the model's vocabulary has 11");
    let stuck = SamplingParams { allowed_tokens: [EOS].into(), min_new_tokens: 2, ..plain };
    let error = engine.submit(with(stuck)).unwrap_err();
    assert!(matches!(error, EngineError::NothingAllowed), "{error}");
    assert!(engine.requests.is_empty() && engine.waiting.is_empty());
}

#[test]
fn a_minimum_withholds_the_end_and_a_constraint_holds() {
    let sampling = SamplingParams {
        max_new_tokens: 24,
        min_new_tokens: 9,
        allowed_tokens: [EOS, 2, 3, 7].into(),
        top_logps: 2,
        ..SamplingParams::default()
    };
    let request = Request { sampling, ..request(prompts(), 6, 1.0) };
    let samples = run(&mut engine(16), vec![request]);
    let lengths: Vec<usize> = samples.values().flatten().map(|s| s.response_ids.len()).collect();
    assert!(lengths.iter().all(|length| *length >= 10), "{lengths:?}");
    assert!(lengths.iter().any(|length| *length < 24), "{lengths:?}");
    for sample in samples.values().flatten() {
        assert!(sample.response_ids.iter().all(|id| [EOS, 2, 3, 7].contains(id)));
        assert_eq!(sample.top_logps.len(), sample.response_ids.len());
        assert!(sample.top_logps.iter().all(|best| best.len() == 2 && best[0].1 >= best[1].1));
    }
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
fn a_cancelled_request_frees_its_blocks() {
    let mut engine = engine(4);
    let endless = Request { stop: StopRules::default(), ..request(prompts(), 4, 1.0) };
    let id = engine.submit(endless).unwrap();
    engine.step();
    assert_eq!(engine.running(), 4);
    engine.cancel(id);
    assert_eq!(engine.running(), 0);
    assert_eq!(engine.pool.available(), engine.pool.len());
    assert!(matches!(engine.collect(id), Err(EngineError::UnknownRequest(_))));
    assert_eq!(run(&mut engine, vec![request(prompts(), 2, 1.0)]).len(), 5);
}
