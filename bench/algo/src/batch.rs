//! The token arrays that every operation works on.

use clap::ValueEnum;

/// Which tokens the masks keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// One response a row, of 1/16 to all of its tokens, then padding.
    Padded,
    /// Dialogues: turns of 64 to 575 tokens, every other one kept.
    Turns,
}

/// B rows of T tokens, laid flat. An operation reads and writes what it likes of them.
pub(crate) struct Batch {
    /// T.
    pub(crate) tokens: usize,
    /// Samples of a group.
    pub(crate) group: usize,
    /// A reward a sample, `[B]`.
    pub(crate) rewards: Vec<f64>,
    /// Inputs, `[B * T]`.
    pub(crate) x: Vec<f32>,
    pub(crate) y: Vec<f32>,
    /// `[B * T]`.
    pub(crate) mask: Vec<bool>,
    /// Outputs, `[B * T]`.
    pub(crate) out: Vec<f32>,
    pub(crate) out2: Vec<f32>,
}

impl Batch {
    pub(crate) fn new(prompts: usize, group: usize, tokens: usize, layout: Layout) -> Self {
        let rows = prompts * group;
        let mut random = Random(17);
        let mut array = || (0..rows * tokens).map(|_| random.unit()).collect::<Vec<f32>>();
        let (x, y) = (array(), array());
        let mut random = Random(23);
        let mut mask = vec![false; rows * tokens];
        mask.chunks_mut(tokens.max(1)).for_each(|row| layout.fill(row, &mut random));
        let rewards = (0..rows).map(|_| f64::from(random.unit())).collect();
        // Written, so that no page is touched for the first time while the clock runs.
        let (out, out2) = (vec![1.0; rows * tokens], vec![1.0; rows * tokens]);
        Self { tokens, group, rewards, x, y, mask, out, out2 }
    }

    pub(crate) fn entries(&self) -> usize {
        self.mask.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.entries() * (4 * size_of::<f32>() + size_of::<bool>())
    }
}

impl Layout {
    fn fill(self, row: &mut [bool], random: &mut Random) {
        match self {
            Self::Padded => {
                let least = row.len() / 16;
                let kept = least + random.below(row.len() - least + 1);
                row[..kept].fill(true);
            }
            Self::Turns => {
                let (mut at, mut keep) = (0, false);
                while at < row.len() {
                    let end = row.len().min(at + 64 + random.below(512));
                    row[at..end].fill(keep);
                    (at, keep) = (end, !keep);
                }
            }
        }
    }
}

/// Marsaglia's xorshift64, good enough for numbers that only have to be unlike.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In `[-1, 1)`.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound
    }
}
