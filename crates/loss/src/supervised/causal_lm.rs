//! The language-model loss of supervised fine-tuning and pretraining text (PTX).

use tch::{Kind, Tensor};

use crate::{LossError, check};

/// Settings of the language-model loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CausalLm {
    /// Label of positions that are not learnt: prompts, padding. Default -100.
    pub ignore_index: i64,
}

impl Default for CausalLm {
    fn default() -> Self {
        Self { ignore_index: -100 }
    }
}

impl CausalLm {
    /// Number of targets in rows of labels: those after the first of each row that are not
    /// ignored. Summed over the whole batch this is the denominator of [`causal_lm`].
    #[must_use]
    pub fn target_count<'a>(&self, rows: impl IntoIterator<Item = &'a [i64]>) -> usize {
        let targets = rows.into_iter().flat_map(|row| row.iter().skip(1));
        targets.filter(|label| **label != self.ignore_index).count()
    }
}

/// A language-model loss with its counts; all of it adds up over micro-batches.
#[derive(Debug)]
pub struct CausalLmTerms {
    /// This batch's contribution, a scalar with gradients to the logits.
    pub loss: Tensor,
    /// Targets in this batch.
    pub targets: usize,
}

/// `sum -log p(label_{t+1} | tokens up to t) / N` over the targets that are not ignored.
///
/// Source: transformers `ForCausalLMLoss` (loss/loss_utils.py), which safe-rlhf's SFT and PTX
/// losses call. Labels are the input ids with prompts and padding replaced by
/// [`CausalLm::ignore_index`]; the shift by one is done here.
///
/// `logits` is `[B, T, V]` of any float kind (cast up to float unless double), `labels` `[B, T]`
/// i64; `targets` is N, the targets of the whole batch ([`CausalLm::target_count`]). Gradients
/// flow to the logits that predict a target; all others have no effect, whatever they hold.
///
/// # Errors
/// [`LossError::Rank`], [`LossError::Shape`], [`LossError::Kind`] for arguments that do not fit,
/// [`LossError::Empty`] for `targets` = 0 (the reference gives 0/0),
/// [`LossError::Label`] for a label outside the vocabulary, [`LossError::NonFinite`] for a loss
/// that is no number.
pub fn causal_lm(
    spec: &CausalLm,
    logits: &Tensor,
    labels: &Tensor,
    targets: usize,
) -> Result<CausalLmTerms, LossError> {
    const F: &str = "causal_lm";
    check::float(F, "logits", logits)?;
    let size = logits.size();
    let &[rows, width, vocabulary] = size.as_slice() else {
        let expected = "[B, T, V]";
        return Err(LossError::Rank { function: F, argument: "logits", expected, got: size });
    };
    check::shape(F, "labels", &[rows, width], labels)?;
    if labels.kind() != Kind::Int64 {
        let (expected, got) = ("Int64", labels.kind());
        return Err(LossError::Kind { function: F, argument: "labels", expected, got });
    }
    if targets == 0 {
        return Err(LossError::Empty { function: F, what: "targets" });
    }
    let kind = check::maths_kind(logits);
    // Without a second token there is nothing to predict.
    let predicted = (width - 1).max(0);
    let next = labels.narrow(1, width - predicted, predicted).reshape([-1]);
    let at = next.ne(spec.ignore_index).nonzero().squeeze_dim(-1);
    let here = at.size()[0];
    let next = next.index_select(0, &at);
    if here > 0 {
        check_labels(F, &next, vocabulary)?;
    }
    let before = logits.narrow(1, 0, predicted).reshape([-1, vocabulary]);
    let before = before.index_select(0, &at).to_kind(kind);
    let chosen = before.gather(-1, &next.unsqueeze(-1), false).squeeze_dim(-1);
    let loss = (before.logsumexp([-1], false) - chosen).sum(kind) / targets as f64;
    check::finite(F, "the loss", loss.detach().to_kind(Kind::Double).double_value(&[]))?;
    Ok(CausalLmTerms { loss, targets: here as usize })
}

fn check_labels(function: &'static str, labels: &Tensor, vocabulary: i64) -> Result<(), LossError> {
    let (least, most) = (labels.min().int64_value(&[]), labels.max().int64_value(&[]));
    for label in [least, most] {
        if !(0..vocabulary).contains(&label) {
            return Err(LossError::Label { function, label, vocabulary });
        }
    }
    Ok(())
}
