//! Log-probs and entropies of chosen tokens, and their gradients, without ever holding `[M, V]`.
//!
//! M rows (response positions), H hidden, V vocabulary, C rows of a chunk, S rows of a slice.
//!
//! With z = h Wᵀ / τ, p = softmax(z), y the chosen token:
//!   log p_y = z_y − logsumexp(z),           ∂ log p_y / ∂z_v = 1[v = y] − p_v
//!   𝓗      = −Σ_v p_v log p_v,              ∂𝓗 / ∂z_v = −p_v (log p_v + 𝓗)
//! The loss is a sum over tokens whose weights are known beforehand, so one pass over the chunks
//! yields values and gradients: the logits are computed once and overwritten by their gradient.

use tch::{Kind, Tensor, no_grad_guard};

use crate::Result;

/// Bytes of one chunk of logits in the compute type; the matrix products work on whole chunks.
const CHUNK_BYTES: i64 = 96 << 20;
/// fp32 elements of one slice; softmax works slice by slice so that it stays near the cache.
const SLICE_ELEMENTS: i64 = 4 << 20;

/// The response positions of a packed batch and the tokens that were chosen there.
#[derive(Debug)]
pub struct ChosenTokens {
    /// Rows of the hidden states that predict the tokens, `[M]` int64.
    pub rows_m: Tensor,
    /// The tokens, `[M]` int64.
    pub targets_m: Tensor,
}

impl ChosenTokens {
    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows_m.size().first().map_or(0, |&rows| rows as usize)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the head computes for each chosen token, fp32.
#[derive(Debug)]
pub struct TokenValues {
    /// log p of the chosen token, `[M]`.
    pub logp_m: Tensor,
    /// Entropy of the distribution, `[M]`.
    pub entropy_m: Tensor,
}

/// Derivatives of the loss by [`TokenValues`].
#[derive(Debug)]
pub struct TokenGradients {
    /// ∂loss/∂log p, `[M]`.
    pub logp_m: Tensor,
    /// ∂loss/∂entropy, `[M]`; absent when the loss does not use the entropy.
    pub entropy_m: Option<Tensor>,
}

/// Gradients by the head's inputs.
#[derive(Debug)]
pub struct HeadGradients {
    /// By the normalised hidden states of the chosen rows, `[M, H]`.
    pub hidden_mh: Tensor,
    /// By the output matrix, `[V, H]`: fp32 sums when there was more than one chunk.
    pub weight_vh: Option<Tensor>,
}

/// The output matrix applied to chosen rows.
#[derive(Debug)]
pub struct FusedHead<'a> {
    /// Output matrix `[V, H]`.
    pub weight_vh: &'a Tensor,
    /// Softmax temperature τ.
    pub temperature: f64,
}

impl FusedHead<'_> {
    /// Values only. `hidden_mh`: normalised hidden states of the chosen rows.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn values(&self, hidden_mh: &Tensor, targets_m: &Tensor) -> Result<TokenValues> {
        let _guard = no_grad_guard();
        let (mut logps, mut entropies) = (Vec::new(), Vec::new());
        for chunk in self.chunks(hidden_mh) {
            let logits_cv = self.logits(&chunk.of(hidden_mh));
            let values = self.softmax_slices(&logits_cv, &chunk.of(targets_m), None)?;
            logps.push(values.logp_m);
            entropies.push(values.entropy_m);
        }
        Ok(TokenValues { logp_m: join(&logps, hidden_mh), entropy_m: join(&entropies, hidden_mh) })
    }

    /// Values and gradients in one pass. `loss` is called with the values of consecutive tokens,
    /// in order, the position of the first of them, and returns the derivatives.
    ///
    /// # Errors
    /// What `loss` returns, or a failed tensor operation.
    pub fn backward(
        &self,
        hidden_mh: &Tensor,
        targets_m: &Tensor,
        weight_needs_gradient: bool,
        loss: &mut TokenLoss<'_>,
    ) -> Result<HeadGradients> {
        let _guard = no_grad_guard();
        let mut hidden_grads = Vec::new();
        let mut weight_grad_vh: Option<Tensor> = None;
        for chunk in self.chunks(hidden_mh) {
            let hidden_ch = chunk.of(hidden_mh);
            let logits_cv = self.logits(&hidden_ch);
            let mut loss_at = |values: &TokenValues, first: i64| loss(values, chunk.first + first);
            self.softmax_slices(&logits_cv, &chunk.of(targets_m), Some(&mut loss_at))?;
            let grad_cv = logits_cv;
            hidden_grads.push(grad_cv.matmul(self.weight_vh));
            if weight_needs_gradient {
                let grad_vh = grad_cv.transpose(0, 1).matmul(&hidden_ch);
                weight_grad_vh = Some(match weight_grad_vh.take() {
                    None => grad_vh,
                    Some(sum_vh) => sum_vh.to_kind(Kind::Float).g_add_(&grad_vh),
                });
            }
        }
        let hidden_grad_mh = match hidden_grads.is_empty() {
            true => hidden_mh.zeros_like(),
            false => Tensor::cat(&hidden_grads, 0),
        };
        Ok(HeadGradients { hidden_mh: hidden_grad_mh, weight_vh: weight_grad_vh })
    }

    fn logits(&self, hidden_ch: &Tensor) -> Tensor {
        hidden_ch.matmul(&self.weight_vh.transpose(0, 1))
    }

    /// Walks a chunk's logits in slices. With a loss, the logits are overwritten by ∂loss/∂logits.
    fn softmax_slices(
        &self,
        logits_cv: &Tensor,
        targets_c: &Tensor,
        mut loss: Option<&mut TokenLoss<'_>>,
    ) -> Result<TokenValues> {
        let (mut logps, mut entropies) = (Vec::new(), Vec::new());
        let vocabulary = self.weight_vh.size()[0];
        for slice in Rows::cut(logits_cv.size()[0], SLICE_ELEMENTS / vocabulary) {
            let mut logits_sv = slice.of(logits_cv);
            let targets_s1 = slice.of(targets_c).unsqueeze(1);
            let logp_sv = self.log_softmax(&logits_sv);
            let logp_s = logp_sv.gather(1, &targets_s1, false).squeeze_dim(1);
            let mut p_sv = logp_sv.exp();
            let entropy_s = -(&p_sv * &logp_sv).sum_dim_intlist(1, false, Kind::Float);
            let values = TokenValues { logp_m: logp_s, entropy_m: entropy_s };
            if let Some(loss) = &mut loss {
                let grads = loss(&values, slice.first)?;
                self.logit_gradient(&mut p_sv, &logp_sv, &values, &targets_s1, &grads);
                logits_sv.copy_(&p_sv);
            }
            logps.push(values.logp_m);
            entropies.push(values.entropy_m);
        }
        Ok(TokenValues { logp_m: join(&logps, logits_cv), entropy_m: join(&entropies, logits_cv) })
    }

    fn log_softmax(&self, logits_sv: &Tensor) -> Tensor {
        if self.temperature == 1.0 {
            return logits_sv.log_softmax(1, Kind::Float);
        }
        (logits_sv.to_kind(Kind::Float) / self.temperature).log_softmax(1, Kind::Float)
    }

    /// Turns probabilities into ∂loss/∂logits, in place.
    fn logit_gradient(
        &self,
        p_sv: &mut Tensor,
        logp_sv: &Tensor,
        values: &TokenValues,
        targets_s1: &Tensor,
        grads: &TokenGradients,
    ) {
        let scale_s1 = grads.logp_m.unsqueeze(1) / self.temperature;
        match &grads.entropy_m {
            None => drop(p_sv.g_mul_(&-&scale_s1)),
            Some(entropy_grad_s) => {
                let entropy_scale_s1 = entropy_grad_s.unsqueeze(1) / self.temperature;
                let slope_sv =
                    (logp_sv + values.entropy_m.unsqueeze(1)) * entropy_scale_s1 + &scale_s1;
                drop(p_sv.g_mul_(&-slope_sv));
            }
        }
        let _ = p_sv.scatter_add_(1, targets_s1, &scale_s1);
    }

    fn chunks(&self, hidden_mh: &Tensor) -> Vec<Rows> {
        let row_bytes = self.weight_vh.size()[0] * hidden_mh.kind().elt_size_in_bytes() as i64;
        Rows::cut(hidden_mh.size()[0], CHUNK_BYTES / row_bytes)
    }
}

/// Derivatives of the loss by the values of tokens `first..`.
pub type TokenLoss<'a> = dyn FnMut(&TokenValues, i64) -> Result<TokenGradients> + 'a;

/// Derivatives of the loss by the values of all chosen tokens at once.
pub type SequenceLoss<'a> = dyn FnMut(&TokenValues) -> Result<TokenGradients> + 'a;

/// Consecutive rows of a tensor.
#[derive(Debug, Clone, Copy)]
struct Rows {
    first: i64,
    count: i64,
}

impl Rows {
    /// Cuts `total` rows into runs of nearly equal length, none above `at_most` (at least 1).
    fn cut(total: i64, at_most: i64) -> Vec<Rows> {
        let runs = (total + at_most.max(1) - 1) / at_most.max(1);
        let start = |run: i64| total * run / runs;
        (0..runs)
            .map(|run| Rows { first: start(run), count: start(run + 1) - start(run) })
            .collect()
    }

    fn of(&self, tensor: &Tensor) -> Tensor {
        tensor.narrow(0, self.first, self.count)
    }
}

fn join(parts: &[Tensor], like: &Tensor) -> Tensor {
    match parts.is_empty() {
        true => Tensor::empty([0], (Kind::Float, like.device())),
        false => Tensor::cat(parts, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn case(rows: i64) -> (Tensor, Tensor, Tensor) {
        tch::manual_seed(7);
        let options = (Kind::Float, Device::Cpu);
        let hidden = Tensor::randn([rows, 8], options);
        let weight = Tensor::randn([11, 8], options);
        let targets = Tensor::randint(11, [rows], (Kind::Int64, Device::Cpu));
        (hidden, weight, targets)
    }

    /// loss = Σ a_i logp_i + b_i 𝓗_i, by autograd over the whole matrix.
    fn reference(
        h: &Tensor,
        w: &Tensor,
        y: &Tensor,
        a: &Tensor,
        b: &Tensor,
        t: f64,
    ) -> Vec<Tensor> {
        let (h, w) = (h.detach().set_requires_grad(true), w.detach().set_requires_grad(true));
        let logp_mv = (h.matmul(&w.transpose(0, 1)) / t).log_softmax(1, Kind::Float);
        let logp = logp_mv.gather(1, &y.unsqueeze(1), false).squeeze_dim(1);
        let entropy = -(logp_mv.exp() * &logp_mv).sum_dim_intlist(1, false, Kind::Float);
        let loss = (a * &logp + b * &entropy).sum(Kind::Float);
        let mut out = Tensor::run_backward(&[loss], &[h, w], false, false);
        out.extend([logp.detach(), entropy.detach()]);
        out
    }

    #[test]
    fn gradients_equal_autograd_over_the_full_matrix() {
        for (rows, temperature) in [(1, 1.0), (9, 1.0), (9, 0.7)] {
            let (h, w, y) = case(rows);
            let (a, b) = (
                Tensor::randn([rows], (Kind::Float, Device::Cpu)),
                Tensor::rand([rows], (Kind::Float, Device::Cpu)),
            );
            let expected = reference(&h, &w, &y, &a, &b, temperature);
            let head = FusedHead { weight_vh: &w, temperature };
            let mut loss = |values: &TokenValues, first: i64| {
                let count = values.logp_m.size()[0];
                Ok(TokenGradients {
                    logp_m: a.narrow(0, first, count),
                    entropy_m: Some(b.narrow(0, first, count)),
                })
            };
            let grads = head.backward(&h, &y, true, &mut loss).unwrap();
            let values = head.values(&h, &y).unwrap();
            let got = [grads.hidden_mh, grads.weight_vh.unwrap(), values.logp_m, values.entropy_m];
            for (got, expected) in got.iter().zip(&expected) {
                assert!(got.allclose(expected, 1e-5, 1e-6, false), "{got} != {expected}");
            }
        }
    }

    #[test]
    fn no_rows_give_zero_gradients() {
        let (h, w, y) = case(0);
        let head = FusedHead { weight_vh: &w, temperature: 1.0 };
        let grads = head.backward(&h, &y, true, &mut |_, _| unreachable!("no chunk")).unwrap();
        assert_eq!(grads.hidden_mh.size(), [0, 8]);
        assert!(grads.weight_vh.is_none());
        assert_eq!(head.values(&h, &y).unwrap().logp_m.size(), [0]);
    }

    #[test]
    fn rows_are_cut_without_gaps() {
        for (total, at_most) in [(0, 4), (1, 4), (10, 4), (7, 0)] {
            let cut = Rows::cut(total, at_most);
            assert_eq!(cut.iter().map(|run| run.count).sum::<i64>(), total);
            assert!(cut.iter().all(|run| run.count <= at_most.max(1)));
        }
    }
}
