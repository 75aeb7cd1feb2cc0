//! Processes that only run a whole model: rollout and reward workers.

use super::activations::Batch;
use super::{DecoderShape, Head, PhaseMemory};

/// One resident model.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidentModel {
    /// Its shape.
    pub model: DecoderShape,
    /// Its head.
    pub head: Head,
    /// c, bytes of a weight and an activation.
    pub compute_bytes: u64,
}

impl ResidentModel {
    /// `c` times the parameters.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.compute_bytes * self.model.parameters(&self.head)
    }

    /// A block read in fp32, and joined in the compute type.
    fn block_being_read(&self) -> u64 {
        let largest = self.model.embedding().max(self.model.layer());
        (8 + self.compute_bytes) * largest
    }

    fn running(&self, tokens: u64, longest_tokens: u64, cpu: bool) -> u64 {
        let batch = Batch { tokens, longest_tokens, compute_bytes: self.compute_bytes, cpu };
        batch.layer_without_gradients(&self.model) + batch.tables(&self.model)
    }
}

/// A process that generates.
#[derive(Debug, Clone, PartialEq)]
pub struct Generator {
    /// The model.
    pub model: ResidentModel,
    /// Limit for keys and values.
    pub kv_cache_bytes: u64,
    /// Sequences decoded together, at most.
    pub sequences: u64,
    /// Prompt and answer tokens of a sequence, at most.
    pub sequence_tokens: u64,
    /// Tokens of a prompt, at most.
    pub prompt_tokens: u64,
    /// Whether new weights arrive while the old ones are live.
    pub receives: bool,
    /// Whether it computes on the CPU.
    pub cpu: bool,
}

impl Generator {
    /// Keys and values, `2 c K` for each layer and token: of all sequences that run together,
    /// but no more than the limit.
    #[must_use]
    pub fn kv_cache(&self) -> u64 {
        let shape = &self.model.model;
        let token = 2 * self.model.compute_bytes * shape.kv_width() * shape.layers;
        (token * self.sequences * self.sequence_tokens).min(self.kv_cache_bytes)
    }

    /// Loading, generating, receiving new weights.
    #[must_use]
    pub fn phases(&self) -> Vec<PhaseMemory> {
        let model = &self.model;
        let (process, weights) = (process(self.cpu), ("weights", model.weights()));
        let cache = ("keys and values", self.kv_cache());
        // Prompts run packed together; a decoding step copies the keys of one layer at most.
        let prompts = self.sequences * self.prompt_tokens;
        let running = model.running(prompts, self.prompt_tokens, self.cpu);
        let logits = (model.compute_bytes + 8) * self.sequences * model.model.vocabulary;
        let mut phases = vec![
            PhaseMemory::new(
                "load",
                &[process, weights, ("block being read", model.block_being_read())],
            ),
            PhaseMemory::new(
                "generate",
                &[process, weights, cache, ("prompts", running), ("logits", logits)],
            ),
        ];
        if self.receives {
            let version = ("new weights", model.weights());
            phases.push(PhaseMemory::new("receive", &[process, weights, cache, version]));
        }
        phases
    }

    /// Bytes held between calls.
    #[must_use]
    pub fn idle_bytes(&self) -> u64 {
        process(self.cpu).1 + self.model.weights() + self.kv_cache()
    }
}

/// A process that scores with several models.
#[derive(Debug, Clone, PartialEq)]
pub struct Scorer {
    /// The models, all resident.
    pub models: Vec<ResidentModel>,
    /// Tokens in a packed batch.
    pub micro_batch_tokens: u64,
    /// Tokens of the longest text.
    pub longest_tokens: u64,
    /// Whether it computes on the CPU.
    pub cpu: bool,
}

impl Scorer {
    /// Loading and scoring.
    #[must_use]
    pub fn phases(&self) -> Vec<PhaseMemory> {
        let process = process(self.cpu);
        let weights = ("weights", self.weights());
        let most = |bytes: &dyn Fn(&ResidentModel) -> u64| self.models.iter().map(bytes).max();
        let reading = most(&ResidentModel::block_being_read).unwrap_or(0);
        let tokens = self.micro_batch_tokens.max(self.longest_tokens);
        let texts = most(&|m| m.running(tokens, self.longest_tokens, self.cpu)).unwrap_or(0);
        vec![
            PhaseMemory::new("load", &[process, weights, ("block being read", reading)]),
            PhaseMemory::new("score", &[process, weights, ("texts", texts)]),
        ]
    }

    fn weights(&self) -> u64 {
        self.models.iter().map(ResidentModel::weights).sum()
    }

    /// Bytes held between calls.
    #[must_use]
    pub fn idle_bytes(&self) -> u64 {
        process(self.cpu).1 + self.weights()
    }
}

fn process(cpu: bool) -> (&'static str, u64) {
    match cpu {
        true => ("process", super::PROCESS_BYTES),
        false => ("CUDA context", super::CUDA_CONTEXT_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::tests::qwen2_53m;
    use super::*;

    #[test]
    fn a_generator_by_hand() {
        let model =
            ResidentModel { model: qwen2_53m(), head: Head::LanguageModel, compute_bytes: 2 };
        let weights = 2 * (8_388_608 + 16 * 2_819_840 + 512);
        assert_eq!(model.weights(), weights);
        let generator = Generator {
            model,
            kv_cache_bytes: 1 << 30,
            sequences: 8,
            sequence_tokens: 96,
            prompt_tokens: 64,
            receives: true,
            cpu: true,
        };
        // 2 x 2 bytes x 128 x 16 layers = 8 KiB a token.
        assert_eq!(generator.kv_cache(), 8 * 96 * 8192);
        let limited = Generator { kv_cache_bytes: 1 << 20, ..generator.clone() };
        assert_eq!(limited.kv_cache(), 1 << 20);
        let receive = &generator.phases()[2];
        let cache = generator.kv_cache();
        assert_eq!(receive.bytes(), super::super::PROCESS_BYTES + 2 * weights + cache);
        assert_eq!(generator.idle_bytes(), super::super::PROCESS_BYTES + weights + cache);
    }

    #[test]
    fn a_scorer_holds_all_its_models() {
        let head = Head::Score { hidden_widths: vec![] };
        let one = ResidentModel { model: qwen2_53m(), head, compute_bytes: 4 };
        let scorer = Scorer {
            models: vec![one.clone(), one.clone()],
            micro_batch_tokens: 1024,
            longest_tokens: 128,
            cpu: true,
        };
        // A layer over 1,024 tokens: 4 bytes x (4 x 1408 + 3 x 512), and tables of 16 x 64.
        let texts = 1024 * (4 * 7168 + 16 * 64);
        let phases = scorer.phases();
        assert_eq!(phases[1].bytes(), super::super::PROCESS_BYTES + 2 * one.weights() + texts);
    }
}
