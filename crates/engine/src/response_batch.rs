//! Prompts with responses, packed so that only response positions meet the head.

use plumb_model::{Packed, Tree};
use tch::{Device, Tensor};

use crate::head::ChosenTokens;
use crate::micro_batch::Plan;
use crate::{EngineError, EngineSettings, Result};

/// One prompt and one response to it, with what is known of each response token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResponseSample {
    /// Sample id, for messages and results.
    pub id: String,
    /// Token ids of the prompt, at least one.
    pub prompt_ids: Vec<u32>,
    /// Token ids of the response, `[T]`.
    pub response_ids: Vec<u32>,
    /// Log-probs recorded by the sampler, `[T]`.
    pub rollout_logps: Vec<f32>,
}

impl ResponseSample {
    /// Tokens that go through the layers: the last response token predicts nothing.
    #[must_use]
    pub fn input_tokens(&self) -> usize {
        self.prompt_ids.len() + self.response_ids.len().saturating_sub(1)
    }

    /// Response tokens that go through the layers.
    fn response_inputs(&self) -> &[u32] {
        &self.response_ids[..self.response_ids.len().saturating_sub(1)]
    }

    /// Refuses a sample without prompt, or with log-probs of another length than its response.
    ///
    /// # Errors
    /// [`EngineError::Sample`] with the lengths.
    pub fn validate(&self) -> Result<()> {
        let refuse = |problem: String| Err(EngineError::Sample { id: self.id.clone(), problem });
        if self.prompt_ids.is_empty() {
            return refuse("has no prompt token, so nothing predicts its first token".to_owned());
        }
        let (tokens, logps) = (self.response_ids.len(), self.rollout_logps.len());
        if tokens != logps {
            return refuse(format!("has {tokens} response tokens but {logps} log-probs"));
        }
        Ok(())
    }
}

/// Cuts samples into micro-batches for each rank. Neighbours with the same prompt stay together,
/// so that the prompt is computed once for all of them; a group above the budget is cut.
///
/// Returns the sample indices of each of this rank's micro-batches.
///
/// # Errors
/// [`EngineError::SequenceTooLong`] when one sample alone exceeds the budget.
pub(crate) fn micro_batches(
    samples: &[&ResponseSample],
    ranks: usize,
    rank: usize,
    settings: &EngineSettings,
) -> Result<Vec<Vec<usize>>> {
    let budget_tokens = settings.micro_batch_tokens;
    if settings.one_sample_a_pass {
        return single(samples, ranks, rank, budget_tokens);
    }
    let mut groups: Vec<(Vec<usize>, usize)> = Vec::new();
    for (index, sample) in samples.iter().enumerate() {
        let tokens = sample.input_tokens();
        if tokens > budget_tokens {
            return Err(EngineError::SequenceTooLong { index, tokens, budget_tokens });
        }
        let branch_tokens = tokens - sample.prompt_ids.len();
        match groups.last_mut() {
            Some((members, total))
                if samples[members[0]].prompt_ids == sample.prompt_ids
                    && *total + branch_tokens <= budget_tokens =>
            {
                members.push(index);
                *total += branch_tokens;
            }
            _ => groups.push((vec![index], tokens)),
        }
    }
    let lengths: Vec<_> = groups.iter().map(|(_, tokens)| *tokens).collect();
    let plan = Plan::new(&lengths, ranks, budget_tokens)?;
    let members = |group: &usize| groups[*group].0.iter().copied();
    Ok(plan.rank(rank).iter().map(|round| round.iter().flat_map(members).collect()).collect())
}

/// One sample in each micro-batch, dealt in turn; the last round may leave ranks without one.
fn single(
    samples: &[&ResponseSample],
    ranks: usize,
    rank: usize,
    budget_tokens: usize,
) -> Result<Vec<Vec<usize>>> {
    let tokens = |index: usize| samples[index].input_tokens();
    if let Some(index) = (0..samples.len()).find(|index| tokens(*index) > budget_tokens) {
        return Err(EngineError::SequenceTooLong { index, tokens: tokens(index), budget_tokens });
    }
    let rounds = samples.len().div_ceil(ranks).max(1);
    let own = |round: usize| Some(round * ranks + rank).filter(|index| *index < samples.len());
    Ok((0..rounds).map(|round| own(round).into_iter().collect()).collect())
}

/// Some samples laid end to end. M response tokens in all.
#[derive(Debug)]
pub struct ResponseBatch {
    /// Inputs of the layers.
    pub packed: Packed,
    /// Where the response tokens are predicted.
    pub chosen: ChosenTokens,
    /// First response token of each sample among the M, and M.
    pub cu_responses: Vec<i64>,
}

impl ResponseBatch {
    /// Packs samples in the given order; neighbours with the same prompt become one tree, whose
    /// prompt is computed once (the row that predicts their first tokens is then shared).
    /// Without any sample, one token that nothing depends on keeps this rank in step with the
    /// others' collectives.
    ///
    /// # Errors
    /// Token ids that the model refuses.
    pub fn new<'a>(
        samples: impl IntoIterator<Item = &'a ResponseSample>,
        device: Device,
    ) -> Result<Self> {
        let samples = samples.into_iter().filter(|sample| !sample.response_ids.is_empty());
        let samples: Vec<_> = samples.collect();
        Self::of_groups(samples.chunk_by(|a, b| a.prompt_ids == b.prompt_ids), device)
    }

    /// Packs groups of samples, each of one prompt and with responses that are not empty; each
    /// group becomes one tree, within which attention costs the square of its tokens.
    ///
    /// # Errors
    /// Token ids that the model refuses.
    pub(crate) fn of_groups<'a: 'b, 'b>(
        samples: impl IntoIterator<Item = &'b [&'a ResponseSample]>,
        device: Device,
    ) -> Result<Self> {
        let (mut rows, mut targets, mut cu_responses) = (Vec::new(), Vec::new(), vec![0]);
        let mut groups: Vec<(&[u32], Vec<&[u32]>)> = Vec::new();
        let mut first = 0;
        for group in samples {
            let prompt = &group[0].prompt_ids;
            let prompt_end = first + prompt.len() as i64;
            let mut branch = prompt_end;
            for sample in group {
                // The last response token predicts nothing.
                let inputs = sample.response_ids.len() as i64 - 1;
                rows.push(prompt_end - 1);
                rows.extend(branch..branch + inputs);
                branch += inputs;
                targets.extend(sample.response_ids.iter().map(|&id| i64::from(id)));
                cu_responses.push(targets.len() as i64);
            }
            first = branch;
            groups.push((prompt, group.iter().map(|sample| sample.response_inputs()).collect()));
        }
        let trees = groups.iter().map(|(prompt, branches)| Tree { prompt, branches });
        let mut trees: Vec<_> = trees.collect();
        if trees.is_empty() {
            trees.push(EMPTY_ROUND);
        }
        let packed = Packed::trees(&trees)?.to_device(device);
        let chosen = ChosenTokens {
            rows_m: Tensor::from_slice(&rows).to_device(device),
            targets_m: Tensor::from_slice(&targets).to_device(device),
        };
        Ok(Self { packed, chosen, cu_responses })
    }
}

/// One token that nothing depends on: a rank without work in a round still takes part in the
/// round's collectives.
pub(crate) const EMPTY_ROUND: Tree<'static> = Tree { prompt: &[0], branches: &[] };

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(prompt: &[u32], response: &[u32]) -> ResponseSample {
        ResponseSample {
            id: "0/p/0".to_owned(),
            prompt_ids: prompt.to_vec(),
            response_ids: response.to_vec(),
            rollout_logps: vec![-1.0; response.len()],
        }
    }

    #[test]
    fn rows_predict_the_token_after_them() {
        // Inputs: 5 6 7 | 8 9 ; targets 7 1 (after 6, 7) and 9 2 3 would need 8 9 2.
        let samples = [sample(&[5, 6], &[7, 1]), sample(&[8], &[9, 2, 3])];
        let batch = ResponseBatch::new(&samples, Device::Cpu).unwrap();
        let ints = |tensor: &Tensor| Vec::<i64>::try_from(tensor).unwrap();
        assert_eq!(ints(&batch.packed.input_ids), [5, 6, 7, 8, 9, 2]);
        assert_eq!(ints(&batch.chosen.rows_m), [1, 2, 3, 4, 5]);
        assert_eq!(ints(&batch.chosen.targets_m), [7, 1, 9, 2, 3]);
        assert_eq!(batch.cu_responses, [0, 2, 5]);
    }

    #[test]
    fn neighbours_with_one_prompt_share_it_and_the_row_that_predicts_their_first_tokens() {
        let samples = [sample(&[5, 6], &[7, 1]), sample(&[5, 6], &[9, 2, 3])];
        let batch = ResponseBatch::new(&samples, Device::Cpu).unwrap();
        let ints = |tensor: &Tensor| Vec::<i64>::try_from(tensor).unwrap();
        assert_eq!(ints(&batch.packed.input_ids), [5, 6, 7, 9, 2]);
        assert_eq!(ints(&batch.packed.position_ids), [0, 1, 2, 2, 3]);
        assert_eq!(ints(&batch.chosen.rows_m), [1, 2, 1, 3, 4]);
        assert_eq!(ints(&batch.chosen.targets_m), [7, 1, 9, 2, 3]);
    }

    #[test]
    fn micro_batches_keep_groups_together_and_cut_those_above_the_budget() {
        let owned = [
            sample(&[1, 2, 3], &[4, 4]),
            sample(&[1, 2, 3], &[5, 5]),
            sample(&[9, 9], &[4, 4]),
            sample(&[1, 2, 3], &[6, 6]),
        ];
        let samples: Vec<_> = owned.iter().collect();
        // Groups of 3 + 1 + 1 = 5, 3 and 4 tokens: 5 | 3 + 4, the heavier one first.
        let cut = |ranks, rank, micro_batch_tokens, one_sample_a_pass| {
            let settings = EngineSettings {
                micro_batch_tokens,
                one_sample_a_pass,
                ..crate::tests::support::settings()
            };
            micro_batches(&samples, ranks, rank, &settings)
        };
        let rank = |rank| cut(2, rank, 8, false).unwrap();
        assert_eq!((rank(0), rank(1)), (vec![vec![2, 3]], vec![vec![0, 1]]));
        // A budget of 4 holds one sample of the first group.
        assert_eq!(cut(1, 0, 4, false).unwrap().len(), 4);
        for alone in [false, true] {
            let error = cut(1, 0, 3, alone).unwrap_err().to_string();
            assert!(error.contains("sequence 0"), "{error}");
        }
        let rank = |rank| cut(3, rank, 8, true).unwrap();
        assert_eq!(
            (rank(0), rank(1), rank(2)),
            (vec![vec![0], vec![3]], vec![vec![1], vec![]], vec![vec![2], vec![]],)
        );
    }

    #[test]
    fn no_samples_make_a_batch_without_chosen_tokens() {
        let batch = ResponseBatch::new(&[], Device::Cpu).unwrap();
        assert!(batch.chosen.is_empty());
        assert_eq!(batch.packed.input_ids.size(), [1]);
    }

    #[test]
    fn a_sample_that_does_not_fit_together_is_named() {
        let mut bad = sample(&[1], &[2, 3]);
        bad.rollout_logps.pop();
        let message = bad.validate().unwrap_err().to_string();
        assert!(message.contains("0/p/0") && message.contains("2 response tokens"), "{message}");
        assert!(sample(&[], &[2]).validate().unwrap_err().to_string().contains("no prompt"));
    }
}
