//! Features on a GPU (`kernels/features.cu`).

use super::{FeatureKernel, FeatureTable};
use crate::backend::Memory;
use crate::backend::gpu::{Gpu, GpuViewMut, Grid, Kernel, Launcher, arguments};
use crate::error::Result;
use crate::tokens::Batch;

/// The most warps of a block; each has 32 rows.
const WARPS: usize = 8;

/// Bytes of a warp's two tiles of 32 rows × 32 tokens with a pitch of 36.
const TILES: usize = 2 * 32 * 36 * size_of::<u32>();

/// Blocks per multiprocessor where nothing else bounds them: 64 warps.
const BLOCKS: usize = 8;

impl<L: Launcher> FeatureKernel for Gpu<L> {
    fn features(&self, table: &FeatureTable<Self>, batch: &Batch<Self>, phi: GpuViewMut<'_, f32>) -> Result<()> {
        let limits = self.launcher().limits();
        let words = Self::view_len(&table.words());
        let (table_bytes, per_warp) = (words.next_multiple_of(4) * 4, TILES + 128 * table.state_words());
        // Half of what a block may have, so that two fit a multiprocessor; at least one warp.
        let room = limits.shared_bytes / 2;
        let fits = table_bytes + per_warp <= room;
        let warps = if fits { ((room - table_bytes) / per_warp).min(WARPS) } else { WARPS };
        let bytes = if fits { table_bytes + warps * per_warp } else { warps * TILES };
        let resident = limits.multiprocessors * (limits.shared_bytes / bytes).clamp(1, BLOCKS);
        let blocks = batch.rows.div_ceil(32 * warps).min(resident);
        let grid = Grid::new(blocks as u32, 32 * warps as u32).shared(bytes);
        if fits {
            self.features_shared(table, batch, &phi, grid)
        } else {
            self.features_global(table, batch, &phi, grid)
        }
    }
}

impl<L: Launcher> Gpu<L> {
    fn features_shared(
        &self,
        table: &FeatureTable<Self>,
        batch: &Batch<Self>,
        phi: &GpuViewMut<'_, f32>,
        grid: Grid,
    ) -> Result<()> {
        let (words, space, states) = (table.words(), batch.space, table.state_words() as u32);
        // features_shared(const uint32_t* words, uint32_t word_count, uint32_t vocab, const uint32_t* tokens,
        //   const uint32_t* lengths, uint64_t rows, uint32_t longest, uint32_t eos, uint32_t features,
        //   uint32_t states_per_row, float* phi, unsigned long long* status)
        let arguments = arguments![
            &words,
            words.len() as u32,
            space.vocab,
            &batch.tokens,
            &batch.lengths,
            batch.rows as u64,
            space.longest,
            space.eos,
            table.len() as u32,
            states,
            phi,
            self.status(),
        ];
        // SAFETY: the caller checked that table and batch are of one space and that φ is `[rows, F]`; the batch has room
        // for its rows. The grid's shared memory holds the table, and tiles and states of each warp.
        unsafe { self.launch(Kernel::FeaturesShared, grid, arguments) }
    }

    fn features_global(
        &self,
        table: &FeatureTable<Self>,
        batch: &Batch<Self>,
        phi: &GpuViewMut<'_, f32>,
        grid: Grid,
    ) -> Result<()> {
        let (words, space, states) = (table.words(), batch.space, table.state_words());
        // 32-bit words: a row's states of each thread.
        let spare = (grid.blocks[0] as usize * grid.threads as usize * states).div_ceil(2);
        self.with_scratch(spare, |spare| {
            // features_global(const uint32_t* words, uint32_t vocab, const uint32_t* tokens, const uint32_t* lengths,
            //   uint64_t rows, uint32_t longest, uint32_t eos, uint32_t features, uint32_t states_per_row,
            //   uint32_t* spare, float* phi, unsigned long long* status)
            let arguments = arguments![
                &words,
                space.vocab,
                &batch.tokens,
                &batch.lengths,
                batch.rows as u64,
                space.longest,
                space.eos,
                table.len() as u32,
                states as u32,
                &*spare,
                phi,
                self.status(),
            ];
            // SAFETY: as for the shared kernel; the states lie in the scratch memory.
            unsafe { self.launch(Kernel::FeaturesGlobal, grid, arguments) }
        })
    }
}
