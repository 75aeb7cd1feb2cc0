//! The blocks of the KV cache: who holds them, and which ones can be found again.

use std::collections::BTreeMap;

use plumb_domain::PolicyVersion;

/// Names the content of a full block: its tokens and all that stand before it, under one policy
/// version.
pub(super) type BlockHash = [u8; 32];

/// The name that a sequence's first block continues.
pub(super) fn root(version: PolicyVersion) -> BlockHash {
    blake3::derive_key("plumbline kv block v1", &version.0.to_le_bytes())
}

/// The name of a full block of these tokens behind the block named `before`.
pub(super) fn chained(before: &BlockHash, tokens: &[u32]) -> BlockHash {
    let mut hasher = blake3::Hasher::new_keyed(before);
    tokens.iter().for_each(|id| {
        hasher.update(&id.to_le_bytes());
    });
    *hasher.finalize().as_bytes()
}

#[derive(Debug, Clone, Default)]
struct Block {
    holders: u32,
    hash: Option<BlockHash>,
    /// When its last holder let go of it.
    released: u64,
}

/// Counts holders of each block. A block without holders is free; if its content has a name, it can
/// be found again until the memory is needed, longest unused first.
#[derive(Debug, Default)]
pub(super) struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Unheld blocks with a name, by when they were released.
    idle: BTreeMap<u64, u32>,
    by_hash: BTreeMap<BlockHash, u32>,
    clock: u64,
}

impl BlockPool {
    pub(super) fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).unwrap_or(u32::MAX);
        Self {
            blocks: vec![Block::default(); count as usize],
            // The lowest first: memory that was never touched stays so.
            free: (0..count).rev().collect(),
            ..Self::default()
        }
    }

    /// Blocks in all.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`BlockPool::take`] can still give.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A block for new content, held once.
    pub(super) fn take(&mut self) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                let (_, number) = self.idle.pop_first()?;
                if let Some(hash) = self.blocks[number as usize].hash.take() {
                    self.by_hash.remove(&hash);
                }
                number
            }
        };
        self.blocks[number as usize].holders = 1;
        Some(number)
    }

    /// One more holder.
    pub(super) fn hold(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        if block.holders == 0 {
            self.idle.remove(&block.released);
        }
        block.holders += 1;
    }

    /// One holder fewer.
    pub(super) fn release(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        block.holders = block.holders.saturating_sub(1);
        if block.holders > 0 {
            return;
        }
        if block.hash.is_some() {
            self.clock += 1;
            block.released = self.clock;
            self.idle.insert(self.clock, number);
        } else {
            self.free.push(number);
        }
    }

    /// Lets go of a whole table, its end first: a chain is found from its start, so the start is
    /// kept longest.
    pub(super) fn release_all(&mut self, table: &mut Vec<u32>) {
        while let Some(number) = table.pop() {
            self.release(number);
        }
    }

    /// Whether somebody else holds the block, too: it must not be written then.
    pub(super) fn is_shared(&self, number: u32) -> bool {
        self.blocks[number as usize].holders > 1
    }

    /// Gives a full block its name. Of two blocks with the same content the first keeps it.
    pub(super) fn name(&mut self, number: u32, hash: BlockHash) {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.by_hash.entry(hash) {
            entry.insert(number);
            self.blocks[number as usize].hash = Some(hash);
        }
    }

    /// The block of that name.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<u32> {
        self.by_hash.get(hash).copied()
    }

    /// Forgets what nobody holds: of no use once the weights have changed.
    pub(super) fn forget_idle(&mut self) {
        while let Some((_, number)) = self.idle.pop_last() {
            if let Some(hash) = self.blocks[number as usize].hash.take() {
                self.by_hash.remove(&hash);
            }
            self.free.push(number);
        }
        self.free.sort_unstable_by(|a, b| b.cmp(a));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u8) -> BlockHash {
        [n; 32]
    }

    #[test]
    fn a_block_is_free_again_when_its_last_holder_is_gone() {
        let mut pool = BlockPool::new(2);
        let block = pool.take().unwrap();
        pool.hold(block);
        assert!(pool.is_shared(block));
        pool.release(block);
        assert!(!pool.is_shared(block));
        assert_eq!(pool.available(), 1);
        pool.release(block);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn a_named_block_is_found_until_its_memory_is_needed_longest_unused_first() {
        let mut pool = BlockPool::new(3);
        let blocks: Vec<u32> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert_eq!(pool.take(), None);
        for (n, block) in blocks.iter().enumerate() {
            pool.name(*block, hash(n as u8));
        }
        for block in [1, 0, 2] {
            pool.release(blocks[block]);
        }
        // 1 was released first, but is used again.
        pool.hold(blocks[1]);
        pool.release(blocks[1]);
        assert_eq!(pool.take(), Some(blocks[0]));
        assert_eq!(pool.find(&hash(0)), None);
        assert_eq!(pool.find(&hash(1)), Some(blocks[1]));
        assert_eq!(pool.take(), Some(blocks[2]));
        pool.forget_idle();
        assert_eq!((pool.find(&hash(1)), pool.available()), (None, 1));
    }

    #[test]
    fn a_name_says_tokens_what_stands_before_and_the_version() {
        let first = chained(&root(PolicyVersion(0)), &[1, 2]);
        assert_eq!(first, chained(&root(PolicyVersion(0)), &[1, 2]));
        assert_ne!(first, chained(&root(PolicyVersion(1)), &[1, 2]));
        assert_ne!(first, chained(&root(PolicyVersion(0)), &[1, 3]));
        assert_ne!(chained(&first, &[1, 2]), first);
    }

    #[test]
    fn of_two_blocks_with_one_content_the_first_is_found_and_both_come_back() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        pool.name(a, hash(1));
        pool.name(b, hash(1));
        pool.release(b);
        pool.release(a);
        assert_eq!(pool.find(&hash(1)), Some(a));
        assert_eq!(pool.take(), Some(b));
        assert_eq!(pool.take(), Some(a));
        assert_eq!(pool.find(&hash(1)), None);
    }
}
