//! `x_t = d_t + c x_{t+1}` backwards over tokens, a vector register at a time.
//!
//! Within a register of `L` numbers the sums `s_t = sum_j c^j d_{t+j}` over what is in it are made
//! by doubling: of 2 terms, of 4, and so on. Then `x_t = s_t + c^(L-t) x_L`, where `x_L` is the next
//! register's first. Only that hangs on an earlier result: one multiply-add a register.

use pulp::{Simd, bytemuck};

/// Tokens that are worked on at once, in ascending order, which is what a processor foresees when it
/// fetches memory; a row itself is walked from its end.
pub(crate) const STAGE: usize = 1024;
/// No vector register holds more `f64`.
const MOST_LANES: usize = 8;
/// `2^DOUBLINGS = MOST_LANES`.
const DOUBLINGS: usize = 3;

/// The recurrence, and the tokens that it works on.
#[derive(Debug, Clone)]
pub(crate) struct Recurrence {
    /// `c^(L-t)` for each lane `t`.
    to_next: [f64; MOST_LANES],
    /// For the sums of 2, 4 and 8 terms: `c^1`, `c^2`, `c^4`, but 0 in lanes that would reach past
    /// the register.
    within: [[f64; MOST_LANES]; DOUBLINGS],
    x: [f64; STAGE + MOST_LANES],
}

impl Recurrence {
    #[inline(always)]
    pub(crate) fn of<S: Simd>(c: f64) -> Self {
        let mut to_next = [0.0; MOST_LANES];
        let mut power = 1.0;
        for lane in (0..S::F64_LANES).rev() {
            power *= c;
            to_next[lane] = power;
        }
        let mut within = [[0.0; MOST_LANES]; DOUBLINGS];
        let (mut terms, mut power) = (1, c);
        for powers in &mut within {
            powers[..S::F64_LANES.saturating_sub(terms)].fill(power);
            (terms, power) = (2 * terms, power * power);
        }
        Self { to_next, within, x: [0.0; STAGE + MOST_LANES] }
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
    /// because 0 times an infinity is NaN; it may make later ones so.
    #[inline(always)]
    pub(crate) fn solve<S: Simd>(&mut self, simd: S, n: usize, after: f64) -> &[f64] {
        // What follows stands past the end, as if it were one more d; then comes nothing.
        let whole = n.next_multiple_of(MOST_LANES);
        self.x[n..whole].fill(0.0);
        self.x[n] = after;
        let mut next = if n == whole { after } else { 0.0 };
        let vector = |lanes: &[f64; MOST_LANES]| S::as_simd_f64s(lanes).0[0];
        let [ones, twos, fours] = [&self.within[0], &self.within[1], &self.within[2]].map(vector);
        let to_next = vector(&self.to_next);
        for d in S::as_mut_simd_f64s(&mut self.x[..whole]).0.iter_mut().rev() {
            let mut s = *d;
            if S::F64_LANES > 1 {
                s = simd.mul_add_f64s(ones, simd.rotate_left_f64s(s, 1), s);
            }
            if S::F64_LANES > 2 {
                s = simd.mul_add_f64s(twos, simd.rotate_left_f64s(s, 2), s);
            }
            if S::F64_LANES > 4 {
                s = simd.mul_add_f64s(fours, simd.rotate_left_f64s(s, 4), s);
            }
            *d = simd.mul_add_f64s(to_next, simd.splat_f64s(next), s);
            let s: &[f64] = bytemuck::cast_slice(std::slice::from_ref(&s));
            next = multiply_add::<S>(self.to_next[0], next, s[0]);
        }
        &self.x[..=n]
    }
}

/// `a b + c`, rounded once where the processor can.
#[inline(always)]
pub(crate) fn multiply_add<S: Simd>(a: f64, b: f64, c: f64) -> f64 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}

/// Reads one number of each cache line, in ascending order, so that a row is in the cache before it
/// is walked from its end: processors foresee fetches that rise far better than those that fall.
#[inline(always)]
pub(crate) fn touch<T: Copy + Into<f64>>(values: &[T]) {
    let mut sum = 0.0;
    for line in values.chunks_exact(16) {
        sum += line[0].into();
    }
    std::hint::black_box(sum);
}
