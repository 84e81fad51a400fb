//! Weights that two blocks of a cluster share on their way from the second-level cache (`kernels/common/stream.cuh`).

use super::layout::Size;
use crate::backend::gpu::{Grid, Limits};

/// Shared memory of a block whose warps have `stages` places for pieces of `packs` · 512 bytes each: the places, their two
/// barriers, and a vote.
pub(super) fn shared_bytes(size: Size, packs: usize, stages: usize) -> usize {
    warps(size) * stages * (packs * 512 + 16) + 16
}

/// Whether blocks can share: a device of compute capability 9.x, for which alone the kernels are (`device.cuh`), and more
/// than one block.
pub(super) fn is_possible(limits: Limits, blocks: usize) -> bool {
    (90..100).contains(&limits.capability) && blocks > 1
}

/// A launch of at least `blocks` blocks, in pairs if so.
pub(super) fn grid(size: Size, blocks: usize, pairs: bool) -> Grid {
    let threads = 32 * warps(size) as u32;
    if pairs {
        Grid::new(blocks.next_multiple_of(2) as u32, threads).clusters(2)
    } else {
        Grid::new(blocks as u32, threads)
    }
}

/// Warps of a block: they share out the groups of 8 units.
fn warps(size: Size) -> usize {
    (size.units() / 8).min(8)
}
