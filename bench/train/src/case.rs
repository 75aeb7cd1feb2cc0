//! What is measured.

use crate::model::Size;

/// Rows of a batch.
const ROWS: usize = 16;
/// Longest row.
const MAX_TOKENS: usize = 256;

/// How long the rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lengths {
    /// All 256 tokens.
    Even,
    /// 16 to 256 tokens.
    Mixed,
}

/// One case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) size: Size,
    pub(crate) dtype: &'static str,
    pub(crate) ranks: usize,
    pub(crate) lengths: Lengths,
    /// Both sides recompute activations, or neither.
    pub(crate) recompute: bool,
}

impl Case {
    /// Every case.
    pub(crate) fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for size in [Size::M10, Size::M50] {
            for dtype in ["fp32", "bf16"] {
                let plain = Self { size, dtype, ranks: 1, lengths: Lengths::Even, recompute: true };
                cases.push(plain);
                cases.push(Self { ranks: 2, ..plain });
                cases.push(Self { lengths: Lengths::Mixed, ..plain });
            }
        }
        let kept = Self { recompute: false, ..cases[0] };
        cases.push(kept);
        cases.push(Self { dtype: "bf16", ..kept });
        cases
    }

    /// Its name in the report.
    pub(crate) fn name(&self) -> String {
        let size = match self.size {
            Size::M10 => "10M",
            Size::M50 => "50M",
        };
        let lengths = match self.lengths {
            Lengths::Even => "16x256",
            Lengths::Mixed => "16x16..256",
        };
        let kept = if self.recompute { "" } else { "-kept-activations" };
        format!("{size}-{}-{lengths}-{}-rank{kept}", self.dtype, self.ranks)
    }

    /// Least ratio to PyTorch.
    pub(crate) fn bound(&self) -> f64 {
        if self.lengths == Lengths::Mixed { 1.5 } else { 1.0 }
    }

    /// Names of cases that differ in the number of ranks alone: one, two.
    pub(crate) fn scaling_pairs() -> Vec<(String, String)> {
        let two: Vec<_> = Self::all().into_iter().filter(|case| case.ranks == 2).collect();
        two.into_iter().map(|case| (Self { ranks: 1, ..case }.name(), case.name())).collect()
    }

    /// The rows' token ids, the same in every run.
    pub(crate) fn rows(&self) -> Vec<Vec<u32>> {
        let vocabulary = self.size.vocabulary();
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut draw = |below: u64| {
            // Xorshift: any spread of ids will do.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let row = |index: usize, draw: &mut dyn FnMut(u64) -> u64| {
            let tokens = match self.lengths {
                Lengths::Even => MAX_TOKENS,
                // Evenly spread over 16..=256, so that the share of padding is no accident.
                Lengths::Mixed => 16 + (MAX_TOKENS - 16) * index / (ROWS - 1),
            };
            (0..tokens).map(|_| 3 + draw(vocabulary - 3) as u32).collect()
        };
        (0..ROWS).map(|index| row(index, &mut draw)).collect()
    }
}
