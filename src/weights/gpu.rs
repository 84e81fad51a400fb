//! Importance weights on a GPU (`kernels/weights.cu`).

use super::statistics::{SUMS, Sums, WeightedRows};
use super::{StatisticsKernel, WeightKernel};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, arguments};
use crate::error::Result;

/// Rows of one partial sum: fixed, so that the bits do not depend on the grid.
const CHUNK: usize = 1024;

/// The most blocks over the chunks.
const MOST_BLOCKS: usize = 1 << 16;

impl<L: Launcher> WeightKernel for Gpu<L> {
    fn weights(
        &self,
        log_p: GpuView<'_, f64>,
        log_q: GpuView<'_, f64>,
        log_scale: f64,
        log_w: GpuViewMut<'_, f64>,
        weights: GpuViewMut<'_, f32>,
    ) -> Result<()> {
        let rows = log_p.len();
        if rows == 0 {
            return Ok(());
        }
        // importance_weights(const double* log_p, const double* log_q, double log_scale, uint64_t rows, double* log_w,
        //   float* weights, unsigned long long* status)
        let arguments = arguments![&log_p, &log_q, log_scale, rows as u64, &log_w, &weights, self.status()];
        // SAFETY: the caller checked that all four views have `rows` values.
        unsafe { self.launch(Kernel::Weights, Grid::over(rows, 256), arguments) }
    }

    fn mix(&self, log_q: GpuViewMut<'_, f64>, log_other: GpuView<'_, f64>, log_shares: [f64; 2]) -> Result<()> {
        let (rows, [log_share, log_other_share]) = (log_other.len(), log_shares);
        if rows == 0 {
            return Ok(());
        }
        // mix_log_probs(double* log_q, const double* log_other, double log_share, double log_other_share, uint64_t rows)
        let arguments = arguments![&log_q, &log_other, log_share, log_other_share, rows as u64];
        // SAFETY: the caller checked that both views have `rows` values; `log_q` is borrowed alone.
        unsafe { self.launch(Kernel::MixLogProbs, Grid::over(rows, 256), arguments) }
    }
}

impl<L: Launcher> StatisticsKernel for Gpu<L> {
    fn sums(&self, given: &WeightedRows<'_, Self>, features: usize, log_z: f64) -> Result<Sums> {
        let (rows, columns) = (given.log_w.len(), SUMS + features);
        let chunks = rows.div_ceil(CHUNK);
        let log_pi = given.log_pi.as_ref().map_or(Argument::Pointer(0), Argument::from);
        let mut totals = vec![0.0_f64; columns];
        self.with_scratch((chunks + 1) * columns, |scratch| {
            let totals_at = scratch.address() + (chunks * columns * size_of::<f64>()) as u64;
            // SAFETY: the caller checked the lengths: `rows` values of log w, log q and, where it is not null, log π;
            // φ is `[rows, features]`. The scratch memory holds `columns` values per chunk and the totals behind them.
            unsafe {
                // weight_sums(const double* log_w, const double* log_q, const double* log_pi, const float* phi,
                //   uint64_t rows, uint32_t features, double log_z, double* sums, unsigned long long* status)
                let (rows, features) = (rows as u64, features as u32);
                let (log_w, log_q, phi) = (&given.log_w, &given.log_q, &given.phi);
                let arguments = arguments![log_w, log_q, log_pi, phi, rows, features, log_z, &*scratch, self.status()];
                self.launch(Kernel::WeightSums, Grid::new(chunks.min(MOST_BLOCKS) as u32, 256), arguments)?;
                // fold_sums(const double* sums, uint64_t chunks, uint32_t columns, double* total)
                let arguments = arguments![&*scratch, chunks as u64, columns as u32, Argument::Pointer(totals_at)];
                self.launch(Kernel::FoldSums, Grid::over(columns * 32, 256), arguments)?;
                self.launcher().download(totals_at, bytemuck::cast_slice_mut(&mut totals))
            }
        })?;
        self.check()?;
        let [largest, total, squares, kl, tv] = totals[..SUMS].try_into().expect("columns of the kernel");
        Ok(Sums { largest, total, squares, kl, tv, features: totals[SUMS..].to_vec() })
    }
}
