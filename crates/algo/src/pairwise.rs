//! Summation in halves.

/// Values that are added without halving.
const BLOCK: usize = 128;

/// The sum of the values, added in halves down to blocks of 128 and within a block in eight
/// strands: the rounding error grows with the logarithm of the count. The order is that of
/// numpy's `sum` and `mean` of `float64`, so that figures rounded to a few decimals agree.
#[must_use]
pub fn pairwise_sum(values: &[f64]) -> f64 {
    if values.len() > BLOCK {
        let half = values.len() / 2;
        let (left, right) = values.split_at(half - half % 8);
        return pairwise_sum(left) + pairwise_sum(right);
    }
    let (strands, rest) = values.as_chunks::<8>();
    let Some((first, others)) = strands.split_first() else {
        return rest.iter().sum();
    };
    let mut sums = *first;
    for strand in others {
        for (sum, value) in sums.iter_mut().zip(strand) {
            *sum += value;
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    rest.iter().fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |sum, value| sum + value)
}
