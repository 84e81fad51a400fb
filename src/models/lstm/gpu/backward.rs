//! The weighted gradient: rows that have one, forward with everything kept, back through time, parameter sums
//! (`kernels/lstm_backward.cu`, `kernels/lstm_warpgroup_backward.cu`, `kernels/lstm_weights.cu`).

use super::GpuLstm;
use super::forward::{Pass, SCORE, grid};
use super::layout::{Dropout, Size, TILE};
use super::weights::{Jobs, Kept, RUNS};
use crate::backend::Memory;
use crate::backend::gpu::{Argument, Gpu, GpuBuffer, GpuView, GpuViewMut, Grid, Kernel, Launcher, Limits, arguments};
use crate::error::{Error, Result};
use crate::models::{Coefficients, Weighting};
use crate::tokens::{Batch, Space};

/// The most bytes that one launch keeps of its slots; more rows go in several launches.
const KEPT_BYTES: usize = 8 << 30;

/// Slots come in multiples of the largest block of rows.
const SLOTS: usize = 4 * TILE;

/// Slots of one launch for `rows` rows, in as few launches as there can be and of about the same size: a function of shape and
/// rows alone, as the order of sums follows from it.
fn slots(size: Size, space: Space, rows: usize) -> usize {
    let (longest, units) = (space.longest as usize, size.units());
    let states = size.layers() * (3 * (longest + 1) * units + longest * size.gates());
    let per_slot = 4 * (states + longest * (size.outputs() + 1) + (2 * size.layers() + 1) * units);
    let most = (KEPT_BYTES / per_slot / SLOTS * SLOTS).max(SLOTS);
    rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(SLOTS)
}

/// What a gradient keeps between its kernels; made once for the largest batch so far.
pub(super) struct Training<L: Launcher> {
    /// Slots of the kept buffers.
    capacity: usize,
    /// Rows of the largest batch.
    rows: usize,
    hidden: GpuBuffer<L, f32>,
    cell: GpuBuffer<L, f32>,
    gates: GpuBuffer<L, f32>,
    residual: GpuBuffer<L, f32>,
    /// States behind dropout; empty for a shape without.
    dropped: GpuBuffer<L, f32>,
    inputs: GpuBuffer<L, u32>,
    tile_steps: GpuBuffer<L, u32>,
    order: GpuBuffer<L, u32>,
    count: GpuBuffer<L, u32>,
    /// Of each block of the backward kernel, and of each run of the parameter sums.
    thread_sums: GpuBuffer<L, f32>,
    run_sums: GpuBuffer<L, f32>,
    jobs: Jobs<L>,
    /// The same where layers read dropped states.
    dropped_jobs: Jobs<L>,
}

impl<L: Launcher> Training<L> {
    fn new(gpu: &Gpu<L>, size: Size, space: Space, dropout: bool, rows: usize) -> Result<Self> {
        let capacity = slots(size, space, rows);
        let (longest, layers) = (space.longest as usize, size.layers());
        let states = layers * (longest + 1) * capacity * size.units();
        let hidden = gpu.zeros(states, "hidden states")?;
        let gates = gpu.zeros(layers * longest * capacity * size.gates(), "gates")?;
        let residual = gpu.zeros(longest * capacity * size.outputs(), "residuals")?;
        let dropped_len = if dropout { layers * longest * capacity * size.units() } else { 0 };
        let dropped = gpu.zeros(dropped_len, "dropped states")?;
        let kept = Kept { longest, capacity, hidden: &hidden, gates: &gates, residual: &residual };
        let (jobs, dropped_jobs) = (Jobs::new(gpu, size, &kept, None)?, Jobs::new(gpu, size, &kept, Some(&dropped))?);
        Ok(Training {
            capacity,
            rows,
            hidden,
            cell: gpu.zeros(states, "cells")?,
            gates,
            residual,
            dropped,
            inputs: gpu.zeros(longest * capacity, "inputs")?,
            tile_steps: gpu.zeros(capacity / TILE, "steps of a tile")?,
            order: gpu.zeros(rows, "rows with a gradient")?,
            count: gpu.zeros(1, "rows with a gradient")?,
            thread_sums: gpu.zeros(capacity * (2 * layers + 1) * size.units(), "state gradients")?,
            run_sums: gpu.zeros(RUNS * size.parameters(), "partial gradients")?,
            jobs,
            dropped_jobs,
        })
    }
}

/// The backward kernel's argument, field by field.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Backward {
    packed: u64,
    size: Size,
    longest: u32,
    capacity: u32,
    first_slot: u32,
    kind: u32,
    order: u64,
    count: u64,
    tile_steps: u64,
    weights: u64,
    log_q: u64,
    log_p: u64,
    shift: u64,
    log_probs: u64,
    cell: u64,
    gates: u64,
    residual: u64,
    sums: u64,
    alpha: f64,
    scale: f32,
    unused: u32,
    dropout: Dropout,
}

/// Shared memory of a block of the backward kernel: a coefficient and a row, gate gradients and residuals of each row in two
/// parts, and the tiles' steps. Eight values behind each row, or for warpgroups behind eight columns of all rows, spread them
/// over the banks.
fn shared_bytes(size: Size, tiles: usize, warpgroups: bool) -> usize {
    let (rows, columns) = (tiles * TILE, size.gates() + size.outputs());
    let values = if warpgroups { columns * (rows + 1) } else { rows * (columns + 2 * 8) };
    16 + 8 * rows + 4 * values
}

/// The kernel for blocks of so many tiles, and the grid for so many blocks: as many warps as there is work for, as far as
/// registers go.
fn launch_of(size: Size, tiles: usize, blocks: usize, limits: Limits) -> (Kernel, Grid) {
    let layers = if size.layers() > 1 { 2 } else { 1 };
    let warpgroups = (layers * size.units() / TILE).div_ceil(4).min(4);
    let by_warpgroups = |kernel| (kernel, Grid::new(blocks as u32, 128 * warpgroups as u32));
    match (limits.warpgroups, tiles) {
        (true, 1) => by_warpgroups(Kernel::LstmWarpgroupBackward1),
        (true, 2) => by_warpgroups(Kernel::LstmWarpgroupBackward2),
        (true, _) => by_warpgroups(Kernel::LstmWarpgroupBackward4),
        (false, 1) => (Kernel::LstmBackward1, grid(size, blocks, 16, limits)),
        (false, _) => (Kernel::LstmBackward2, grid(size, blocks, 12, limits)),
    }
}

impl<L: Launcher> GpuLstm<L> {
    /// Replaces the stored gradient; shapes are already checked.
    pub(super) fn backpropagate(
        &mut self,
        batch: &Batch<Gpu<L>>,
        coefficients: &Coefficients<'_, Gpu<L>>,
        log_probs: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        if self.training.as_ref().is_none_or(|training| training.rows < batch.rows) {
            self.training = None; // gives its memory back first
            self.training =
                Some(Training::new(&self.gpu, self.size, self.space, self.shape.dropout > 0.0, batch.rows)?);
        }
        let all = coefficients.weighting != Weighting::Given;
        let training = self.training.as_ref().expect("just made");
        let capacity = training.capacity;
        // SAFETY: weights and log-probs have `rows` values, the order has room for as many.
        unsafe {
            // lstm_rows(const float* weights, uint32_t rows, uint32_t all, uint32_t* order, uint32_t* count,
            //   double* log_probs, uint64_t* status)
            let order = (&training.order, &training.count);
            self.gpu.launch(
                Kernel::LstmRows,
                Grid::new(1, (batch.rows.next_multiple_of(32) as u32).min(1024)),
                &[
                    Argument::from(&coefficients.weights),
                    (batch.rows as u32).into(),
                    u32::from(all).into(),
                    order.0.into(),
                    order.1.into(),
                    Argument::from(&log_probs),
                    self.gpu.status(),
                ],
            )?;
        }
        let dropout = Dropout::new(coefficients.dropout, self.shape.dropout);
        for first_slot in (0..batch.rows).step_by(capacity) {
            let slots = (batch.rows - first_slot).next_multiple_of(SLOTS).min(capacity);
            self.keep_forward(batch, dropout, first_slot, slots, &log_probs)?;
            self.send_back(coefficients, dropout, first_slot, slots, &log_probs)?;
            self.sum_runs(dropout, first_slot)?;
        }
        self.fold()
    }

    fn keep_forward(
        &mut self,
        batch: &Batch<Gpu<L>>,
        dropout: Dropout,
        first_slot: usize,
        slots: usize,
        log_probs: &GpuViewMut<'_, f64>,
    ) -> Result<()> {
        let mut argument = self.forward_argument(SCORE, batch.rows);
        let training = self.training.as_ref().expect("made by backpropagate");
        argument.capacity = training.capacity as u32;
        argument.first_slot = first_slot as u32;
        argument.order = training.order.address();
        argument.count = training.count.address();
        argument.tokens = batch.tokens.address();
        argument.lengths = batch.lengths.address();
        argument.given = batch.given.address();
        argument.log_q = log_probs.address();
        argument.hidden = training.hidden.address();
        argument.cell = training.cell.address();
        argument.gates = training.gates.address();
        argument.residual = training.residual.address();
        argument.inputs = training.inputs.address();
        argument.tile_steps = training.tile_steps.address();
        argument.dropped = training.dropped.address();
        argument.dropout = dropout;
        // SAFETY: the batch has `rows` rows, the kept buffers `capacity` slots, a multiple of a block's rows.
        unsafe { self.launch_forward(argument, slots, Pass::Keep) }
    }

    fn send_back(
        &mut self,
        coefficients: &Coefficients<'_, Gpu<L>>,
        dropout: Dropout,
        first_slot: usize,
        slots: usize,
        log_probs: &GpuViewMut<'_, f64>,
    ) -> Result<()> {
        let (size, limits) = (self.size, self.limits());
        let training = self.training.as_ref().expect("made by backpropagate");
        let bytes = |tiles: usize| shared_bytes(size, tiles, limits.warpgroups);
        if bytes(1) > limits.shared_bytes {
            let expected = format!("what fits into {} bytes of shared memory", limits.shared_bytes);
            let got = format!("{} bytes (hidden {})", bytes(1), size.units);
            return Err(Error::argument("LSTM gradient on the GPU", expected, got));
        }
        // By warpgroups more rows cost little more, as they read the same weights: where blocks of half as many would take turns.
        // By warps they cost twice as much: where there is a block for each multiprocessor all the same.
        let blocks = |tiles: usize| slots.div_ceil(tiles * TILE);
        let worth = |tiles: usize| match limits.warpgroups {
            true => blocks(tiles / 2) > limits.multiprocessors,
            false => tiles == 2 && blocks(tiles) >= limits.multiprocessors,
        };
        let tiles = [4, 2].into_iter().find(|&tiles| bytes(tiles) <= limits.shared_bytes && worth(tiles)).unwrap_or(1);
        let (kind, alpha) = coefficients.weighting.code();
        let address = |values: &Option<GpuView<'_, f64>>| values.as_ref().map_or(0, |values| values.address());
        let argument = Backward {
            packed: self.packed.address(),
            size,
            longest: self.space.longest,
            capacity: training.capacity as u32,
            first_slot: first_slot as u32,
            kind,
            order: training.order.address(),
            count: training.count.address(),
            tile_steps: training.tile_steps.address(),
            weights: coefficients.weights.address(),
            log_q: address(&coefficients.log_q),
            log_p: address(&coefficients.log_p),
            shift: address(&coefficients.shift),
            log_probs: log_probs.address(),
            cell: training.cell.address(),
            gates: training.gates.address(),
            residual: training.residual.address(),
            sums: training.thread_sums.address(),
            alpha,
            scale: coefficients.scale,
            unused: 0,
            dropout,
        };
        let (kernel, grid) = launch_of(size, tiles, blocks(tiles), limits);
        let grid = grid.shared(bytes(tiles));
        // lstm_backward_*(const LstmBackward arguments), lstm_warpgroup_backward_*(const LstmBackward arguments)
        // SAFETY: the buffers have the sizes that the kernel's header gives, for `capacity` slots and the batch's rows.
        unsafe { self.gpu.launch(kernel, grid, &[Argument::Struct(bytemuck::bytes_of(&argument))]) }
    }

    fn fold(&mut self) -> Result<()> {
        let training = self.training.as_ref().expect("made by backpropagate");
        let len = self.size.parameters();
        // SAFETY: the sums are `[RUNS, len]`, the gradient has `len` values.
        unsafe {
            // lstm_fold(const float* sums, uint64_t len, uint32_t runs, float* gradient)
            let arguments = arguments![&training.run_sums, len as u64, RUNS as u32, &self.gradient];
            self.gpu.launch(Kernel::LstmFold, Grid::over(len, 256), arguments)
        }
    }

    /// Adds the launch's outer products to the sums of each run.
    fn sum_runs(&mut self, dropout: Dropout, first_slot: usize) -> Result<()> {
        let training = self.training.as_ref().expect("made by backpropagate");
        let jobs = if dropout.is_some() { &training.dropped_jobs } else { &training.jobs };
        jobs.launch(
            &self.gpu,
            first_slot,
            training.capacity,
            self.size.parameters(),
            [&training.count, &training.tile_steps, &training.inputs],
            &training.run_sums,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_has_the_kernels_size() {
        assert_eq!(size_of::<Backward>(), 184);
    }

    #[test]
    fn slots_are_bounded_by_bytes() {
        let (size, space) = (Size { layers: 2, units: 208, vocab: 4, outputs: 16 }, Space::new(2, 31).unwrap());
        assert_eq!(slots(size, space, 1), SLOTS);
        assert_eq!(slots(size, space, 2048), 2048);
        assert_eq!(slots(size, space, 1 << 30) % SLOTS, 0);
        assert!((16_384..32_768).contains(&slots(size, space, 1 << 30)));
        let (two, most) = (slots(size, space, 40_000), slots(size, space, 1 << 30));
        assert!(two < most && 2 * two >= 40_000 && 2 * two < 40_000 + 2 * SLOTS);
    }
}
