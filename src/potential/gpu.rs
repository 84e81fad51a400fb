//! The potential on a GPU (`kernels/potential.cu`).

use super::{Potential, PotentialKernel};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, arguments};
use crate::error::Result;

impl<L: Launcher> PotentialKernel for Gpu<L> {
    fn log_potential(
        &self,
        potential: &Potential<Self>,
        log_base: GpuView<'_, f64>,
        phi: GpuView<'_, f32>,
        log_p: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        let (rows, features) = (log_base.len(), potential.roles.len() as u32);
        if rows == 0 {
            return Ok(());
        }
        let (coefficients, required) = (&potential.coefficients, &potential.required);
        // log_potential(const double* log_base, const float* phi, const double* coefficients, const float* required,
        //   uint64_t rows, uint32_t features, double* log_p)
        let arguments = arguments![&log_base, &phi, coefficients, required, rows as u64, features, &log_p];
        // SAFETY: the caller checked that φ is `[rows, F]` and log P `[rows]`; the roles' buffers are `[F]`.
        unsafe { self.launch(Kernel::LogPotential, Grid::over(rows, 256), arguments) }
    }
    fn add_scaled(
        &self,
        before: Option<GpuView<'_, f64>>,
        factor: f64,
        scores: GpuView<'_, f64>,
        to: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        let rows = scores.len();
        if rows == 0 {
            return Ok(());
        }
        let before = before.map_or(Argument::Pointer(0), |before| Argument::from(&before));
        // add_scaled(const double* before, double factor, const double* scores, uint64_t rows, double* to)
        let arguments = arguments![before, factor, &scores, rows as u64, &to];
        // SAFETY: the caller's views are all of one length, and `to` is borrowed alone.
        unsafe { self.launch(Kernel::AddScaled, Grid::over(rows, 256), arguments) }
    }
}
