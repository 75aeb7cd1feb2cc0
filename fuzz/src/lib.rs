//! What every fuzz target does with its input.

use std::time::{Duration, Instant};

/// Bytes of the short stretched text; the long one has [`GROWTH`] times as many.
const SHORT_BYTES: usize = 8 << 10;
/// How much longer the long text is.
const GROWTH: usize = 16;
/// Share of inputs that are stretched: one in this many, chosen by their hash, so that an input
/// does the same each time it is run.
const STRETCHED_ONE_IN: u64 = 256;
/// A long text that takes less than this is fast enough, whatever the short one took.
const FAST_ENOUGH: Duration = Duration::from_secs(1);
/// Measurements that must all be too slow: on a busy machine one may be, whatever the function.
const MEASUREMENTS: usize = 4;

/// Calls `parse` on the input as text (what is not UTF-8 becomes U+FFFD). Now and then it is also
/// called on the input repeated to 8 KiB and to 128 KiB.
///
/// # Panics
/// When the long text takes over a second and over four times what a linear function would, each
/// time it is measured: 16 times the text costs a linear function 16 times as much, a quadratic one
/// 256 times.
pub fn check(data: &[u8], mut parse: impl FnMut(&str)) {
    let text = String::from_utf8_lossy(data);
    parse(&text);
    let hash = fnv(data);
    if text.is_empty() || hash % STRETCHED_ONE_IN != 0 {
        return;
    }
    let tail = if hash & STRETCHED_ONE_IN == 0 { "" } else { second_half(&text) };
    let repeated = &text[..text.len() - tail.len()];
    let mut slow = None;
    for _ in 0..MEASUREMENTS {
        let short = seconds(&mut parse, &stretched(repeated, tail, SHORT_BYTES));
        let long = seconds(&mut parse, &stretched(repeated, tail, SHORT_BYTES * GROWTH));
        if long < FAST_ENOUGH.as_secs_f64() || long < 4.0 * GROWTH as f64 * short {
            return;
        }
        slow = Some((short, long));
    }
    if let Some((short, long)) = slow {
        panic!(
            "more than linear: {repeated:?} repeated, then {tail:?}: {short} s for {SHORT_BYTES} \
             bytes, {long} s for {GROWTH} times as many"
        );
    }
}

/// The second half of a text of two characters or more, else nothing.
fn second_half(text: &str) -> &str {
    let mut middle = text.len() / 2;
    while !text.is_char_boundary(middle) {
        middle -= 1;
    }
    if middle == 0 { "" } else { &text[middle..] }
}

fn stretched(repeated: &str, tail: &str, bytes: usize) -> String {
    repeated.repeat(bytes.div_ceil(repeated.len())) + tail
}

fn seconds(parse: &mut impl FnMut(&str), text: &str) -> f64 {
    let started = Instant::now();
    parse(text);
    started.elapsed().as_secs_f64()
}

/// The FNV-1a hash, finished with a shift so that the low bits depend on every byte.
fn fnv(data: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = data.iter().fold(0xcbf2_9ce4_8422_2325, step);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `per_square * bytes^2` seconds.
    fn slow(text: &str, per_square: f64) {
        std::thread::sleep(Duration::from_secs_f64(per_square * (text.len() as f64).powi(2)));
    }

    /// The first short inputs that are stretched: one with a tail, one without.
    fn stretched_inputs() -> Vec<String> {
        (0..2000u32)
            .map(|i| format!("{i:08}"))
            .filter(|text| fnv(text.as_bytes()).is_multiple_of(STRETCHED_ONE_IN))
            .take(3)
            .collect()
    }

    #[test]
    #[should_panic(expected = "more than linear")]
    fn quadratic_time_is_told() {
        for input in stretched_inputs() {
            check(input.as_bytes(), |text| slow(text, 1.5e-10));
        }
    }

    #[test]
    fn linear_time_passes_and_texts_grow_by_16() {
        let mut lengths = Vec::new();
        for input in stretched_inputs() {
            check(input.as_bytes(), |text| {
                lengths.push(text.len());
                std::thread::sleep(Duration::from_micros(10 * text.len() as u64));
            });
        }
        assert_eq!(lengths.len(), 9);
        assert!(lengths.chunks(3).all(|own| own[2] / own[1] >= 15 && own[1] >= 8192));
        check("é".as_bytes(), |_| ());
        check(b"", |text| assert!(text.is_empty()));
    }
}
