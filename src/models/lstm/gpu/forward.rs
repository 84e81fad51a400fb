//! Launches of `kernels/lstm_forward.cu` and `kernels/lstm_warpgroup.cu`: sampling, scoring, and scoring for a gradient.

use super::layout::{Dropout, Size, TILE};
use super::{GpuLstm, Precision};
use crate::backend::gpu::{Argument, Gpu, Grid, Kernel, Launcher, Limits};
use crate::error::{Error, Result};
use crate::features::{DrawnRows, FeatureOutput};

/// The kernel's argument, field by field.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Forward {
    pub parameters: u64,
    pub packed: u64,
    pub size: Size,
    pub longest: u32,
    pub bos: u32,
    pub eos: u32,
    pub pad: u32,
    pub mode: u32,
    pub rows: u32,
    pub cell_in_shared: u32,
    pub capacity: u32,
    pub first_slot: u32,
    pub states: u32,
    pub purpose: u32,
    pub classes: u32,
    pub seed: u64,
    pub first: u64,
    pub skip: u64,
    pub order: u64,
    pub count: u64,
    pub tokens: u64,
    pub lengths: u64,
    pub given: u64,
    pub log_q: u64,
    pub log_model: u64,
    pub class_of: u64,
    pub next: u64,
    pub log_h: u64,
    pub log_end: u64,
    pub cell_scratch: u64,
    pub hidden: u64,
    pub cell: u64,
    pub gates: u64,
    pub residual: u64,
    pub inputs: u64,
    pub tile_steps: u64,
    pub dropped: u64,
    pub dropout: Dropout,
    pub drawn: DrawnRows,
    pub status: u64,
}

pub(super) const SAMPLE: u32 = 0;
pub(super) const SCORE: u32 = 1;

/// Which of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Sampling and scoring.
    Read(Precision),
    /// Scoring for a gradient, with everything kept that goes back through time.
    Keep,
}

impl Pass {
    fn parts(self) -> usize {
        if self == Pass::Read(Precision::Half) { 1 } else { 2 }
    }

    /// Tiles of 16 rows that a block can have.
    fn most_tiles(self) -> usize {
        if self == Pass::Keep { 2 } else { 4 }
    }

    /// The kernel for blocks of so many tiles, and a block's most warps.
    fn kernel(self, tiles: usize) -> (Kernel, usize) {
        use Kernel::*;
        match (self, tiles) {
            (Pass::Read(Precision::Split), 1) => (LstmForwardSplit1, 16),
            (Pass::Read(Precision::Split), 2) => (LstmForwardSplit2, 8),
            (Pass::Read(Precision::Split), _) => (LstmForwardSplit4, 8),
            (Pass::Read(Precision::Half), 1) => (LstmForwardPlain1, 16),
            (Pass::Read(Precision::Half), 2) => (LstmForwardPlain2, 8),
            (Pass::Read(Precision::Half), _) => (LstmForwardPlain4, 8),
            (Pass::Keep, 1) => (LstmForwardKeep1, 12),
            (Pass::Keep, _) => (LstmForwardKeep2, 8),
        }
    }

    /// The kernel with products by warpgroups for clusters of so many blocks with so many tiles, and a block's most warpgroups.
    fn warpgroup_kernel(self, blocks: usize, tiles: usize) -> (Kernel, usize) {
        use Kernel::*;
        match (self, blocks, tiles) {
            (Pass::Read(Precision::Split), 2, _) => (LstmWarpgroupPairSplit, 4),
            (Pass::Read(Precision::Half), 2, _) => (LstmWarpgroupPairPlain, 4),
            (Pass::Keep, 2, _) => (LstmWarpgroupPairKeep, 4),
            (Pass::Read(Precision::Split), _, 1) => (LstmWarpgroupSplit1, 4),
            (Pass::Read(Precision::Split), _, 2) => (LstmWarpgroupSplit2, 4),
            (Pass::Read(Precision::Split), _, _) => (LstmWarpgroupSplit4, 2),
            (Pass::Read(Precision::Half), _, 1) => (LstmWarpgroupPlain1, 4),
            (Pass::Read(Precision::Half), _, 2) => (LstmWarpgroupPlain2, 4),
            (Pass::Read(Precision::Half), _, _) => (LstmWarpgroupPlain4, 3),
            (Pass::Keep, _, 1) => (LstmWarpgroupKeep1, 4),
            (Pass::Keep, _, _) => (LstmWarpgroupKeep2, 3),
        }
    }
}

/// `blocks` blocks of as many warps as there are groups of 8 units, at most `most`, as `LSTM_WARPS` of
/// `kernels/common/lstm.cuh` has it.
pub(super) fn grid(size: Size, blocks: usize, most: usize, limits: Limits) -> Grid {
    let most = if limits.capability / 10 == 9 { most } else { 8 };
    Grid::new(blocks as u32, 32 * (size.units() / 8).min(most) as u32)
}

/// How a launch is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Of 16 rows.
    tiles: usize,
    /// Blocks of a cluster, which share the tiles.
    blocks: usize,
    /// Whether products are made by warpgroups.
    warpgroups: bool,
    /// Of a block.
    shared_bytes: usize,
    cell_in_shared: bool,
}

impl Plan {
    /// As many rows as fit and still keep half of the multiprocessors busy, as more rows read the same weights; where that
    /// is one tile, two for a cluster of two blocks.
    fn new(size: Size, pass: Pass, dropout: bool, rows: usize, limits: Limits) -> Result<Plan> {
        let warpgroups = limits.warpgroups;
        let state = |tiles: usize| state_bytes(size, pass, dropout, tiles, warpgroups);
        if state(1) > limits.shared_bytes {
            let expected = format!("what fits into {} bytes of shared memory", limits.shared_bytes);
            let got = format!("{} bytes (hidden {}, vocab {})", state(1), size.units, size.vocab);
            return Err(Error::argument("LSTM on the GPU", expected, got));
        }
        let blocks = |tiles: usize| rows.div_ceil(tiles * TILE);
        let busy = |tiles: usize| state(tiles) <= limits.shared_bytes && 2 * blocks(tiles) >= limits.multiprocessors;
        let tiles = [4, 2].into_iter().find(|&tiles| tiles <= pass.most_tiles() && busy(tiles)).unwrap_or(1);
        let pairs = tiles == 1 && warpgroups && blocks(1) > 1 && state(2) <= limits.shared_bytes;
        let (tiles, blocks) = if pairs { (2, 2) } else { (tiles, 1) };
        let (bytes, cells) = (state(tiles), 4 * size.layers() * tiles * TILE * size.units());
        let cell_in_shared = bytes + cells <= limits.shared_bytes;
        let shared_bytes = bytes + if cell_in_shared { cells } else { 0 };
        Ok(Plan { tiles, blocks, warpgroups, shared_bytes, cell_in_shared })
    }

    /// The kernel, and the grid for so many clusters: as many warps as there is work for, as far as registers go.
    fn launch(self, size: Size, pass: Pass, clusters: usize, limits: Limits) -> (Kernel, Grid) {
        if !self.warpgroups {
            let (kernel, warps) = pass.kernel(self.tiles);
            return (kernel, grid(size, clusters, warps, limits));
        }
        let (kernel, most) = pass.warpgroup_kernel(self.blocks, self.tiles);
        let warpgroups = (size.units() / 8 / self.blocks).div_ceil(4).min(most);
        (kernel, Grid::new((clusters * self.blocks) as u32, 128 * warpgroups as u32).clusters(self.blocks as u32))
    }

    /// Rows of a cluster.
    fn rows(self) -> usize {
        self.tiles * TILE
    }

    /// Rows of which a block takes the tokens.
    fn own_rows(self) -> usize {
        self.rows() / self.blocks
    }
}

/// Shared memory of a block without its cells: two log-probs and five words per row, the states, and a row of
/// logits per row unless a plane of states, of which one is always spare, has room for them.
fn state_bytes(size: Size, pass: Pass, dropout: bool, tiles: usize, warpgroups: bool) -> usize {
    let plane = 2 * pass.parts() * (size.units() + if warpgroups { 0 } else { 8 });
    let logits = 4 * (size.outputs() + 1);
    let planes = (size.layers() + if dropout { 3 } else { 1 }) * plane;
    tiles * TILE * (16 + 20 + planes + if logits <= plane { 0 } else { logits })
}

impl<L: Launcher> GpuLstm<L> {
    /// An argument for a launch over `rows` rows, with what every mode needs; the modes fill in the rest.
    pub(super) fn forward_argument(&self, mode: u32, rows: usize) -> Forward {
        let zero = bytemuck::Zeroable::zeroed();
        let space = self.space;
        Forward {
            parameters: self.parameters.address(),
            packed: self.packed.address(),
            size: self.size,
            longest: space.longest,
            bos: space.bos,
            eos: space.eos,
            pad: space.pad,
            mode,
            rows: rows as u32,
            skip: self.gpu.skip_address(),
            status: self.gpu.status_address(),
            ..zero
        }
    }

    /// How blocks that sample `rows` rows make φ of them. The table may have the shared memory that a block has anyway, or
    /// a quarter of the multiprocessor's: registers let no more than four blocks of the smallest network run at a time.
    /// `None` where φ wants a pass of its own.
    pub(super) fn drawn_rows(&self, features: &FeatureOutput<'_, Gpu<L>>, rows: usize) -> Result<Option<DrawnRows>> {
        if features.table.is_empty() {
            return Ok(None);
        }
        let limits = self.limits();
        let plan = Plan::new(self.size, Pass::Read(self.sampling), false, rows, limits)?;
        let room = plan.shared_bytes.max(limits.shared_bytes / 4);
        Ok(DrawnRows::new(features.table, &features.phi, plan.own_rows(), room, limits.shared_bytes))
    }

    /// Launches one forward pass over `rows` rows or slots.
    ///
    /// # Safety
    /// The addresses in `argument` are of memory of the sizes that the kernel's header gives.
    pub(super) unsafe fn launch_forward(&mut self, mut argument: Forward, rows: usize, pass: Pass) -> Result<()> {
        let limits = self.limits();
        let plan = Plan::new(self.size, pass, argument.dropout.is_some(), rows, limits)?;
        let clusters = rows.div_ceil(plan.rows());
        if !plan.cell_in_shared {
            let len = clusters * plan.blocks * self.size.layers() * plan.rows() * self.size.units();
            argument.cell_scratch = self.scratch(len)?;
        }
        argument.cell_in_shared = plan.cell_in_shared.into();
        let shared_bytes = plan.shared_bytes.max(argument.drawn.shared_bytes(plan.own_rows()));
        let (kernel, grid) = plan.launch(self.size, pass, clusters, limits);
        let grid = grid.shared(shared_bytes);
        // lstm_forward_*(const LstmForward arguments), lstm_warpgroup_*(const LstmForward arguments)
        // SAFETY: the argument is the kernel's struct; scratch and shared memory have the sizes it counts on.
        unsafe { self.gpu.launch(kernel, grid, &[Argument::Struct(bytemuck::bytes_of(&argument))]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pass: Pass, units: u32, rows: usize, limits: Limits) -> Result<Plan> {
        let size = Size { layers: 2, units, vocab: 30, outputs: 32 };
        Plan::new(size, pass, false, rows, limits)
    }

    const A100: Limits = Limits::new(163 << 10, 108, 80);
    const H200: Limits = Limits::new(227 << 10, 132, 90);

    const SPLIT: Pass = Pass::Read(Precision::Split);

    #[test]
    fn blocks_are_as_large_as_shared_memory_and_the_batch_allow() {
        let split = |units, rows| plan(SPLIT, units, rows, H200).unwrap();
        assert_eq!((split(208, 1 << 20).tiles, split(208, 1 << 20).cell_in_shared), (4, false));
        assert_eq!((split(208, 2112).tiles, split(208, 2112).cell_in_shared), (2, true));
        assert_eq!(split(208, 16).tiles, 1);
        assert!(plan(SPLIT, 4096, 100, H200).is_err());
        assert_eq!(plan(SPLIT, 208, 1 << 20, A100).unwrap().tiles, 2);
        let plain = plan(Pass::Read(Precision::Half), 208, 1 << 20, H200).unwrap();
        assert!(plain.cell_in_shared && plain.tiles == 4, "cells fit beside the states");
        assert_eq!(plan(Pass::Keep, 208, 1 << 20, H200).unwrap().tiles, 2);
    }

    #[test]
    fn blocks_have_warps_for_all_units_as_far_as_registers_go() {
        let threads = |units, rows, limits| {
            let size = Size { layers: 2, units, vocab: 30, outputs: 32 };
            Plan::new(size, Pass::Keep, false, rows, limits).unwrap().launch(size, Pass::Keep, 1, limits).1.threads
        };
        assert_eq!([threads(208, 8192, A100), threads(48, 8192, A100)], [8 * 32, 6 * 32]);
        assert_eq!([threads(208, 8192, H200), threads(208, 2048, H200)], [3 * 128, 4 * 128]);
        assert_eq!([threads(48, 8192, H200), threads(48, 2048, H200)], [2 * 128, 128]);
    }

    #[test]
    fn two_blocks_share_rows_where_there_are_clusters_and_few_rows() {
        let shape = |pass, rows, limits| plan(pass, 208, rows, limits).map(|plan| (plan.blocks, plan.tiles)).unwrap();
        for pass in [SPLIT, Pass::Read(Precision::Half), Pass::Keep] {
            assert_eq!(
                [shape(pass, 2048, H200), shape(pass, 17, H200), shape(pass, 16, H200)],
                [(2, 2), (2, 2), (1, 1)]
            );
            assert_eq!([shape(pass, 4096, H200), shape(pass, 2048, A100)], [(1, 2), (1, 2)]);
        }
    }

    #[test]
    fn the_argument_has_the_kernels_size() {
        assert_eq!(size_of::<Forward>(), 328);
    }
}
