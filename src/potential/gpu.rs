//! The potential on a GPU (`kernels/potential.cu`).

use super::{Potential, PotentialKernel};
use crate::backend::gpu::{Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, arguments};
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
}
