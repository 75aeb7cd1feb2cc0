//! `x_t = d_t + c x_{t+1}` backwards over tokens, without waiting a multiplication and an addition
//! at each.
//!
//! Sixteen steps in one are `x_t = s_t + c^16 x_{t+16}` with `s_t = sum_{j<16} c^j d_{t+j}`. Only
//! `x` hangs on an earlier result, so sixteen tokens share one wait. `s` is made of sums of 2, 4, 8
//! and 16 terms, each from the one before.

use pulp::Simd;

/// Tokens that are worked on at once, in ascending order, which is what a processor foresees when it
/// fetches memory; a row itself is walked from its end. Their sums fit into the first-level cache.
pub(crate) const STAGE: usize = 1024;
/// Tokens that one step spans. No vector register holds more numbers.
const SPAN: usize = 16;

/// The recurrence, and the tokens that it works on.
#[derive(Debug, Clone)]
pub(crate) struct Recurrence {
    c: f64,
    x: [f64; STAGE + 2 * SPAN],
}

impl Recurrence {
    #[inline(always)]
    pub(crate) fn of(c: f64) -> Self {
        Self { c, x: [0.0; STAGE + 2 * SPAN] }
    }

    /// Where the `d` of `n` tokens, at most [`STAGE`], are put for [`Self::solve`].
    #[inline(always)]
    pub(crate) fn d(&mut self, n: usize) -> &mut [f64] {
        &mut self.x[..n]
    }

    /// What [`Self::solve`] gave last.
    #[inline(always)]
    pub(crate) fn x(&self) -> &[f64] {
        &self.x
    }

    /// The `x` of those tokens, and as the last entry the `x` of the token `after` them.
    ///
    /// A `d` that is not finite makes its `x` and every earlier one not finite, whatever `c`,
    /// because 0 times an infinity is NaN.
    #[inline(always)]
    pub(crate) fn solve<S: Simd>(&mut self, simd: S, n: usize, after: f64) -> &[f64] {
        // What follows stands past the end, as if it were one more d; then comes nothing.
        let whole = n.next_multiple_of(SPAN);
        self.x[n] = after;
        self.x[n + 1..whole + SPAN].fill(0.0);
        let c = self.c;
        let (c2, c4) = (c * c, c * c * (c * c));
        let (c8, c16) = (c4 * c4, c4 * c4 * (c4 * c4));
        self.twice_as_many::<S, 1>(whole, c);
        self.twice_as_many::<S, 2>(whole, c2);
        self.twice_as_many::<S, 4>(whole, c4);
        self.twice_as_many::<S, 8>(whole, c8);
        let (x, _) = S::as_mut_simd_f64s(&mut self.x[..whole + SPAN]);
        let span = SPAN / S::F64_LANES;
        let power = simd.splat_f64s(c16);
        for at in (0..x.len() - span).rev() {
            x[at] = simd.mul_add_f64s(power, x[at + span], x[at]);
        }
        &self.x[..=n]
    }

    /// From sums of `TERMS` terms to sums of twice as many, with `power` the constant's `TERMS`-th.
    #[inline(always)]
    fn twice_as_many<S: Simd, const TERMS: usize>(&mut self, whole: usize, power: f64) {
        let x = &mut self.x[..whole + TERMS];
        for t in 0..whole {
            x[t] = multiply_add::<S>(power, x[t + TERMS], x[t]);
        }
    }
}

/// `a b + c`, rounded once where the processor can.
#[inline(always)]
pub(crate) fn multiply_add<S: Simd>(a: f64, b: f64, c: f64) -> f64 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}
