//! Log-probs of given tokens.

use tch::{Kind, Tensor};

use crate::{LossError, check};

/// `logp = z[id] - logsumexp(z)`, the log-prob of each id under softmax of its logits.
///
/// Source: verl `logprobs_from_logits_v2` (torch_functional.py).
///
/// `logits` is `[.., V]` (any float kind, cast up to float unless double), `ids` `[..]` i64 in
/// `0..V`; the result is `[..]`. Gradients flow to `logits`. Temperature, where there is one, has
/// already divided the logits.
///
/// # Errors
/// [`LossError::Shape`] when `ids` is not `logits` without its last dimension,
/// [`LossError::Kind`] for ids that are not i64 or logits that are not floats,
/// [`LossError::Parameter`] for an id outside the vocabulary.
pub fn log_probs(logits: &Tensor, ids: &Tensor) -> Result<Tensor, LossError> {
    const F: &str = "log_probs";
    check::float(F, "logits", logits)?;
    let shape = logits.size();
    let Some((_, batch)) = shape.split_last() else {
        let expected = "[.., V]";
        return Err(LossError::Rank { function: F, argument: "logits", expected, got: shape });
    };
    check::shape(F, "ids", batch, ids)?;
    if ids.kind() != Kind::Int64 {
        let expected = "Int64";
        return Err(LossError::Kind { function: F, argument: "ids", expected, got: ids.kind() });
    }
    let vocabulary = logits.size()[batch.len()];
    if ids.numel() > 0 {
        let (least, most) = (ids.min().int64_value(&[]), ids.max().int64_value(&[]));
        let outside = if least < 0 { least } else { most };
        let known = (0..vocabulary).contains(&least) && (0..vocabulary).contains(&most);
        check::parameter(F, "ids", outside as f64, known, "from 0 to the vocabulary's size")?;
    }
    let logits = logits.to_kind(check::maths_kind(logits));
    let chosen = logits.gather(-1, &ids.unsqueeze(-1), false).squeeze_dim(-1);
    Ok(chosen - logits.logsumexp([-1], false))
}
