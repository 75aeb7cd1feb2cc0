//! `x_t = d_t + c x_{t+1}` backwards over tokens, without waiting a multiplication and an addition
//! at each.
//!
//! Sixteen steps in one are `x_t = s_t + c^16 x_{t+16}` with `s_t = sum_{j<16} c^j d_{t+j}`. Only
//! `x` hangs on an earlier result, so sixteen tokens share one wait. `s` is made of sums of 2, 4, 8
//! and 16 terms, each from the one before.

/// Tokens that are worked on at once, in ascending order, which is what a processor foresees when it
/// fetches memory; a row itself is walked from its end. Their sums fit into the first-level cache.
pub(crate) const STAGE: usize = 1024;
/// Tokens that one step spans.
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

    /// The `x` of those tokens, and as the last entry the `x` of the token `after` them.
    ///
    /// A `d` that is not finite makes its `x` and every earlier one not finite, whatever `c`,
    /// because 0 times an infinity is NaN.
    #[inline(always)]
    pub(crate) fn solve(&mut self, n: usize, after: f64) -> &[f64] {
        // What follows stands past the end, as if it were one more d; then comes nothing.
        let whole = n.next_multiple_of(SPAN);
        self.x[n] = after;
        self.x[n + 1..whole + SPAN].fill(0.0);
        let c = self.c;
        let (c2, c4) = (c * c, c * c * (c * c));
        let (c8, c16) = (c4 * c4, c4 * c4 * (c4 * c4));
        self.twice_as_many::<1>(whole, c);
        self.twice_as_many::<2>(whole, c2);
        self.twice_as_many::<4>(whole, c4);
        self.twice_as_many::<8>(whole, c8);
        for start in (0..whole).step_by(SPAN).rev() {
            let (now, later) = self.x[start..start + 2 * SPAN].split_at_mut(SPAN);
            for (now, later) in now.iter_mut().zip(later) {
                *now += c16 * *later;
            }
        }
        &self.x[..=n]
    }

    /// What [`Self::solve`] gave last.
    #[inline(always)]
    pub(crate) fn x(&self) -> &[f64] {
        &self.x
    }

    /// From sums of `TERMS` terms to sums of twice as many, with `power` the constant's `TERMS`-th.
    #[inline(always)]
    fn twice_as_many<const TERMS: usize>(&mut self, whole: usize, power: f64) {
        let x = &mut self.x[..whole + TERMS];
        for t in 0..whole {
            x[t] += power * x[t + TERMS];
        }
    }
}
