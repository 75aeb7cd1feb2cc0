//! Batches of sequences without padding.

use plumb_torch::VarlenAttention;
use tch::{Device, Kind, Tensor};

use crate::attention::TreeMasks;
use crate::error::{ModelError, Result};

/// A prompt and continuations of it that share its computation: every branch sees the prompt and
/// itself, no branch sees another. Without branches it is a plain sequence.
///
/// ```text
/// prompt [a b c], branches [[d e], [f]]  =>  tokens a b c d e f, positions 0 1 2 3 4 3
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Tree<'a> {
    /// Tokens that all branches start with; at least one.
    pub prompt: &'a [u32],
    /// What follows, branch by branch; a branch may be empty.
    pub branches: &'a [&'a [u32]],
}

impl Tree<'_> {
    fn tokens(&self) -> usize {
        self.prompt.len() + self.branches.iter().map(|b| b.len()).sum::<usize>()
    }
}

/// Several token sequences laid end to end: no padding, no compute on padding.
#[derive(Debug)]
pub struct Packed {
    /// Token ids, `[N]` i64.
    pub input_ids: Tensor,
    /// Position of each token in its own sequence, `[N]` i64, starting at 0.
    pub position_ids: Tensor,
    /// Where each sequence (or tree) starts, and N at the end: `B + 1` entries, `0` first.
    pub cu_seqlens: Vec<i64>,
    /// Prompt and branch lengths of each tree; `None` for a plain sequence.
    pub(crate) shapes: Vec<Option<TreeShape>>,
    /// Index of the last token of each sequence, and of each branch of a tree.
    ends: Vec<i64>,
    /// The largest token id and position, kept so that they can be checked without the device.
    max_id: u32,
    max_position: i64,
}

/// Lengths of a tree's parts in tokens.
#[derive(Debug, Clone)]
pub(crate) struct TreeShape {
    pub(crate) prompt: i64,
    pub(crate) branches: Vec<i64>,
}

impl Packed {
    /// Packs `sequences` on the CPU.
    ///
    /// # Errors
    /// If there is no sequence, or one of them is empty.
    pub fn new(sequences: &[&[u32]]) -> Result<Self> {
        let trees: Vec<_> = sequences.iter().map(|prompt| Tree { prompt, branches: &[] }).collect();
        Self::trees(&trees)
    }

    /// Packs trees on the CPU. A prompt is computed once for all its branches.
    ///
    /// # Errors
    /// If there is no tree, or one of them has an empty prompt.
    pub fn trees(trees: &[Tree<'_>]) -> Result<Self> {
        if trees.is_empty() {
            return Err(ModelError::input("a packed batch needs at least one sequence, got none"));
        }
        let tokens: usize = trees.iter().map(Tree::tokens).sum();
        let mut ids: Vec<i64> = Vec::with_capacity(tokens);
        let mut positions: Vec<i64> = Vec::with_capacity(tokens);
        let (mut cu_seqlens, mut ends) = (vec![0], Vec::new());
        let mut shapes = Vec::with_capacity(trees.len());
        let mut max_id = 0;
        for (index, tree) in trees.iter().enumerate() {
            if tree.prompt.is_empty() {
                return Err(ModelError::input(format!(
                    "sequence {index} of {} in a packed batch is empty",
                    trees.len()
                )));
            }
            let mut append = |part: &[u32], first: usize| {
                ids.extend(part.iter().map(|&id| i64::from(id)));
                positions.extend((first..first + part.len()).map(|p| p as i64));
                max_id = part.iter().copied().fold(max_id, u32::max);
                ids.len() as i64
            };
            let prompt_end = append(tree.prompt, 0);
            if tree.branches.is_empty() {
                ends.push(prompt_end - 1);
            }
            for branch in tree.branches {
                let end = append(branch, tree.prompt.len());
                ends.push(if branch.is_empty() { prompt_end } else { end } - 1);
            }
            cu_seqlens.push(ids.len() as i64);
            shapes.push((!tree.branches.is_empty()).then(|| TreeShape {
                prompt: tree.prompt.len() as i64,
                branches: tree.branches.iter().map(|b| b.len() as i64).collect(),
            }));
        }
        Ok(Self {
            max_position: positions.iter().copied().max().unwrap_or(0),
            input_ids: Tensor::from_slice(&ids),
            position_ids: Tensor::from_slice(&positions),
            cu_seqlens,
            shapes,
            ends,
            max_id,
        })
    }

    /// The same batch with its tensors on `device`.
    pub fn to_device(&self, device: Device) -> Self {
        Self {
            input_ids: self.input_ids.to_device(device),
            position_ids: self.position_ids.to_device(device),
            cu_seqlens: self.cu_seqlens.clone(),
            shapes: self.shapes.clone(),
            ends: self.ends.clone(),
            max_id: self.max_id,
            max_position: self.max_position,
        }
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> i64 {
        self.cu_seqlens.last().copied().unwrap_or(0)
    }

    /// Number of sequences (or trees), B.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// Length of each sequence (or tree) in tokens.
    pub fn lengths(&self) -> Vec<i64> {
        self.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect()
    }

    /// Whether a prompt is shared by branches anywhere in the batch.
    pub fn has_branches(&self) -> bool {
        self.shapes.iter().any(Option::is_some)
    }

    /// Index in `0..N` of the last token of each sequence, and of each branch of a tree, in
    /// order, i64, on the batch's device.
    pub fn last_indices(&self) -> Tensor {
        Tensor::from_slice(&self.ends).to_device(self.input_ids.device())
    }

    /// The largest token id in the batch.
    pub fn max_id(&self) -> u32 {
        self.max_id
    }

    /// The largest position in the batch.
    pub fn max_position(&self) -> i64 {
        self.max_position
    }
}

/// What every layer needs to know about one packed batch, computed once:
/// rotary tables, sequence lengths and attention masks.
#[derive(Debug)]
pub struct Layout {
    /// Sequence lengths in tokens.
    pub(crate) lengths: Vec<i64>,
    /// Rotary cosines `[N, 1, D]` in the compute dtype.
    pub(crate) cos_n1d: Tensor,
    /// Rotary sines `[N, 1, D]`, first half negated, in the compute dtype.
    pub(crate) sin_n1d: Tensor,
    /// Additive causal mask `[L, L]` for the longest sequence, where the attention needs one.
    pub(crate) causal_ll: Option<Tensor>,
    /// Additive causal mask with the sliding window, when a sequence is longer than the window.
    pub(crate) window_ll: Option<Tensor>,
    /// Masks of the trees; `None` for a plain sequence.
    pub(crate) trees: Vec<Option<TreeMasks>>,
    /// The flash kernel for all sequences at once, where it takes them: CUDA, bf16, no tree.
    pub(crate) flash: Option<VarlenAttention>,
    /// Compute dtype.
    pub(crate) kind: Kind,
}

impl Layout {
    /// Compute dtype of the tables and masks; the hidden states must have the same.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> i64 {
        self.lengths.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn a_tree_lays_its_branches_behind_one_prompt() {
        let tree = Tree { prompt: &[7, 8, 9], branches: &[&[4, 5], &[], &[6]] };
        let plain = Tree { prompt: &[1, 2], branches: &[] };
        let packed = Packed::trees(&[tree, plain]).unwrap();
        assert_eq!(ints(&packed.input_ids), [7, 8, 9, 4, 5, 6, 1, 2]);
        assert_eq!(ints(&packed.position_ids), [0, 1, 2, 3, 4, 3, 0, 1]);
        assert_eq!(packed.cu_seqlens, [0, 6, 8]);
        // The empty branch ends where the prompt does.
        assert_eq!(ints(&packed.last_indices()), [4, 2, 5, 7]);
        assert_eq!((packed.max_id(), packed.max_position()), (9, 4));
        assert!(packed.has_branches());
    }

    #[test]
    fn empty_prompts_and_empty_batches_are_refused() {
        assert!(Packed::trees(&[]).is_err());
        let message = Packed::new(&[&[1], &[]]).unwrap_err().to_string();
        assert!(message.contains("sequence 1 of 2"), "{message}");
    }
}
