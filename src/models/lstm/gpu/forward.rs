//! Launches of `kernels/lstm_forward.cu`: sampling, scoring, and scoring for a gradient.

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
pub(super) const TRAIN: u32 = 2;

/// How a launch is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    tiles: usize,
    shared_bytes: usize,
    cell_in_shared: bool,
}

impl Plan {
    /// The largest blocks that fit and still keep half of the multiprocessors busy: a block of more rows reads the same
    /// weights.
    fn new(size: Size, precision: Precision, dropout: bool, rows: usize, limits: Limits) -> Result<Plan> {
        let bytes = |tiles: usize| shared_bytes(size, precision, dropout, tiles);
        let fits = |tiles: usize| bytes(tiles) <= limits.shared_bytes;
        if !fits(1) {
            let expected = format!("what fits into {} bytes of shared memory", limits.shared_bytes);
            let got = format!("{} bytes (hidden {}, vocab {})", bytes(1), size.units, size.vocab);
            return Err(Error::argument("LSTM on the GPU", expected, got));
        }
        let busy = |tiles: usize| 2 * rows.div_ceil(tiles * TILE) >= limits.multiprocessors;
        let tiles = [4, 2].into_iter().find(|&tiles| fits(tiles) && busy(tiles)).unwrap_or(1);
        let (state, cells) = (bytes(tiles), 4 * size.layers() * tiles * TILE * size.units());
        let cell_in_shared = state + cells <= limits.shared_bytes;
        Ok(Plan { tiles, shared_bytes: state + if cell_in_shared { cells } else { 0 }, cell_in_shared })
    }

    /// Rows of a block.
    fn rows(self) -> usize {
        self.tiles * TILE
    }

    fn kernel(self, precision: Precision) -> Kernel {
        match (precision, self.tiles) {
            (Precision::Split, 1) => Kernel::LstmForwardSplit1,
            (Precision::Split, 2) => Kernel::LstmForwardSplit2,
            (Precision::Split, _) => Kernel::LstmForwardSplit4,
            (Precision::Half, 1) => Kernel::LstmForwardPlain1,
            (Precision::Half, 2) => Kernel::LstmForwardPlain2,
            (Precision::Half, _) => Kernel::LstmForwardPlain4,
        }
    }
}

/// Shared memory of a block without its cells: two log-probs, five words and a row of logits per row, and the states.
fn shared_bytes(size: Size, precision: Precision, dropout: bool, tiles: usize) -> usize {
    let parts = if precision == Precision::Split { 2 } else { 1 };
    let states = 2 * (size.layers() + if dropout { 3 } else { 1 }) * parts * (size.units() + 8);
    tiles * TILE * (16 + 20 + 4 * (size.outputs() + 1) + states)
}

/// Warps of a block: they share out the groups of 8 units.
pub(super) fn threads(size: Size) -> u32 {
    32 * (size.units / 8).min(8)
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
        let limits = self.gpu.launcher().limits();
        let plan = Plan::new(self.size, self.sampling, false, rows, limits)?;
        let room = plan.shared_bytes.max(limits.shared_bytes / 4);
        Ok(DrawnRows::new(features.table, &features.phi, plan.rows(), room, limits.shared_bytes))
    }

    /// Launches one forward pass over `rows` rows or slots.
    ///
    /// # Safety
    /// The addresses in `argument` are of memory of the sizes that the kernel's header gives.
    pub(super) unsafe fn launch_forward(
        &mut self,
        mut argument: Forward,
        rows: usize,
        precision: Precision,
    ) -> Result<()> {
        let plan = Plan::new(self.size, precision, argument.dropout.is_some(), rows, self.gpu.launcher().limits())?;
        let blocks = rows.div_ceil(plan.rows());
        if !plan.cell_in_shared {
            let len = blocks * self.size.layers() * plan.rows() * self.size.units();
            argument.cell_scratch = self.scratch(len)?;
        }
        argument.cell_in_shared = plan.cell_in_shared.into();
        let shared_bytes = plan.shared_bytes.max(argument.drawn.shared_bytes(plan.rows()));
        let grid = Grid::new(blocks as u32, threads(self.size)).shared(shared_bytes);
        // lstm_forward_*(const LstmForward arguments)
        // SAFETY: the argument is the kernel's struct; scratch and shared memory have the sizes it counts on.
        unsafe { self.gpu.launch(plan.kernel(precision), grid, &[Argument::Struct(bytemuck::bytes_of(&argument))]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(units: u32, rows: usize) -> Result<Plan> {
        let size = Size { layers: 2, units, vocab: 30, outputs: 32 };
        Plan::new(size, Precision::Split, false, rows, Limits::new(227 << 10, 132, 90))
    }

    #[test]
    fn blocks_are_as_large_as_shared_memory_and_the_batch_allow() {
        assert_eq!(plan(208, 1 << 20).unwrap().tiles, 4);
        assert!(!plan(208, 1 << 20).unwrap().cell_in_shared);
        assert_eq!(plan(208, 2112).unwrap().tiles, 2);
        assert!(plan(208, 2112).unwrap().cell_in_shared);
        assert_eq!(plan(208, 100).unwrap().tiles, 1);
        assert!(plan(4096, 100).is_err());
    }

    #[test]
    fn the_argument_has_the_kernels_size() {
        assert_eq!(size_of::<Forward>(), 328);
    }
}
