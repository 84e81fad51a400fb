//! The blocks of parameters as sums of outer products: the job table of `kernels/common/lstm_outer.cuh`.

use super::layout::Size;
use crate::backend::Memory;
use crate::backend::gpu::{Argument, Gpu, GpuBuffer, Grid, Kernel, Launcher, Limits};
use crate::error::Result;

/// Runs of slabs whose sums are folded in order.
pub(super) const RUNS: usize = 16;

/// Columns of a block's outputs, and of shared memory's rows.
const COLUMNS: usize = 128;

/// Rows of which a job of warpgroups has blocks of their own: more, and there are blocks of as many as the kernel has units.
const FEW: usize = 32;

/// Which kernel makes the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By warps, in blocks of 128 rows.
    Warps,
    /// By warpgroups, in blocks of 64, 128 or 208 rows.
    Warpgroups(usize),
}

impl Way {
    /// Of the blocks of rows for warpgroups those that cover the units with the fewest rows, and of these the largest.
    fn new(size: Size, limits: Limits) -> Way {
        let covered = |rows: usize| size.units().div_ceil(rows) * rows;
        let rows = [208, 128, 64].into_iter().min_by_key(|&rows| covered(rows)).expect("three");
        if limits.warpgroups { Way::Warpgroups(rows) } else { Way::Warps }
    }

    /// Rows of a block's outputs in a job with so many.
    fn rows(self, of_job: usize) -> usize {
        match self {
            Way::Warps => 128,
            Way::Warpgroups(_) if of_job <= FEW => FEW,
            Way::Warpgroups(rows) => rows,
        }
    }

    fn kernel(self) -> Kernel {
        match self {
            Way::Warps => Kernel::LstmWeights,
            Way::Warpgroups(64) => Kernel::LstmWarpgroupWeights64,
            Way::Warpgroups(128) => Kernel::LstmWarpgroupWeights128,
            Way::Warpgroups(_) => Kernel::LstmWarpgroupWeights208,
        }
    }

    /// Shared memory of a block: three times two slabs of two operands of 16 slots in two parts. An operand that is read slot by
    /// slot has eight values behind each slot; one for products of warpgroups eight behind each eight columns.
    fn shared_bytes(self) -> usize {
        let by_slot = 16 * (COLUMNS + 8);
        let left = match self {
            Way::Warps => by_slot,
            Way::Warpgroups(rows) => rows / 8 * (16 * 8 + 8),
        };
        3 * 2 * 2 * 2 * (by_slot + left)
    }
}

const STATE: u32 = 0;
const ONE_HOT: u32 = 1;
const ONES: u32 = 2;

/// One block of parameters, as the kernel reads it.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Job {
    left: u64,
    right: u64,
    out: u64,
    kind: u32,
    rows: u32,
    columns: u32,
    first_block: u32,
}

/// The kernel's argument, field by field.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Weights {
    jobs: u64,
    count: u64,
    tile_steps: u64,
    inputs: u64,
    sums: u64,
    parameters: u64,
    job_count: u32,
    capacity: u32,
    first_slot: u32,
    accumulate: u32,
}

/// All blocks of parameters, on the device.
pub(super) struct Jobs<L: Launcher> {
    table: GpuBuffer<L, u64>,
    count: usize,
    blocks: u32,
    way: Way,
}

/// The kept buffers that jobs read, as `kernels/lstm_forward.cu` lays them out.
pub(super) struct Kept<'a, L: Launcher> {
    pub longest: usize,
    pub capacity: usize,
    pub hidden: &'a GpuBuffer<L, f32>,
    pub gates: &'a GpuBuffer<L, f32>,
    pub residual: &'a GpuBuffer<L, f32>,
}

impl<L: Launcher> Jobs<L> {
    /// The jobs over kept buffers; where `dropped` is given, what a layer hands upwards is read from there.
    pub fn new(gpu: &Gpu<L>, size: Size, kept: &Kept<'_, L>, dropped: Option<&GpuBuffer<L, f32>>) -> Result<Self> {
        let (units, columns) = (size.units(), size.gates());
        let &Kept { longest, capacity, hidden, gates, residual } = kept;
        // The state of `layer` before step 0, and what it hands upwards at step 0.
        let state = |layer: usize| hidden.address() + 4 * (layer * (longest + 1) * capacity * units) as u64;
        let output = |layer: usize| match dropped {
            Some(dropped) => dropped.address() + 4 * (layer * longest * capacity * units) as u64,
            None => state(layer) + 4 * (capacity * units) as u64,
        };
        let gate = |layer: usize| gates.address() + 4 * (layer * longest * capacity * columns) as u64;
        let mut jobs: Vec<Job> = Vec::new();
        let (mut blocks, way) = (0, Way::new(size, gpu.launcher().limits()));
        let mut add = |kind, left, right, out: usize, rows: usize, columns: usize| {
            let (out, rows_, columns_) = (out as u64, rows as u32, columns as u32);
            jobs.push(Job { left, right, out, kind, rows: rows_, columns: columns_, first_block: blocks });
            blocks += (rows.div_ceil(way.rows(rows)) * columns.div_ceil(COLUMNS)) as u32;
        };
        for layer in 0..size.layers() {
            if layer == 0 {
                add(ONE_HOT, 0, gate(0), 0, size.vocab as usize, columns);
            } else {
                add(ONES, 0, gate(layer), size.start(layer), 1, columns);
                add(STATE, output(layer - 1), gate(layer), size.matrix(2 * layer - 1), units, columns);
            }
            add(STATE, state(layer), gate(layer), size.matrix(2 * layer), units, columns);
        }
        let top = output(size.layers() - 1);
        add(STATE, top, residual.address(), size.head(), units, size.outputs());
        add(ONES, 0, residual.address(), size.head_bias(), 1, size.outputs());
        let words: &[u64] = bytemuck::cast_slice(&jobs);
        let mut table = gpu.zeros(words.len(), "jobs of the gradient")?;
        gpu.upload(words, &mut table)?;
        Ok(Jobs { table, count: jobs.len(), blocks, way })
    }

    /// Sums the outer products of the slots from `first_slot` on into `sums` (`[RUNS, parameters]`), adding to what is
    /// there unless it is the first launch. `kept` are the count, the tiles' steps and the input tokens.
    pub fn launch(
        &self,
        gpu: &Gpu<L>,
        first_slot: usize,
        capacity: usize,
        parameters: usize,
        kept: [&GpuBuffer<L, u32>; 3],
        sums: &GpuBuffer<L, f32>,
    ) -> Result<()> {
        let argument = Weights {
            jobs: self.table.address(),
            count: kept[0].address(),
            tile_steps: kept[1].address(),
            inputs: kept[2].address(),
            sums: sums.address(),
            parameters: parameters as u64,
            job_count: self.count as u32,
            capacity: capacity as u32,
            first_slot: first_slot as u32,
            accumulate: (first_slot > 0).into(),
        };
        let grid = Grid { blocks: [self.blocks, RUNS as u32], ..Grid::new(1, 256).shared(self.way.shared_bytes()) };
        // lstm_weights(const LstmWeights arguments), lstm_warpgroup_weights_*(const LstmWeights arguments)
        // SAFETY: the table points into buffers of `capacity` slots, the sums have RUNS times the parameters.
        unsafe { gpu.launch(self.way.kernel(), grid, &[Argument::Struct(bytemuck::bytes_of(&argument))]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_rows_cover_the_units_with_the_fewest() {
        let rows = |units| {
            let size = Size { layers: 2, units, vocab: 30, outputs: 32 };
            Way::new(size, Limits::new(227 << 10, 132, 90)).rows(size.units())
        };
        assert_eq!([48, 112, 208, 256, 416, 512].map(rows), [64, 128, 208, 128, 208, 128]);
    }

    #[test]
    fn the_arguments_have_the_kernels_sizes() {
        assert_eq!((size_of::<Job>(), size_of::<Weights>()), (40, 64));
    }
}
