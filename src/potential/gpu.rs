//! The potential on a GPU (`kernels/potential.cu`).

use super::{Potential, PotentialKernel};
use crate::backend::gpu::{Gpu, GpuView, GpuViewMut, Launcher};
use crate::error::{Error, Result};

impl<L: Launcher> PotentialKernel for Gpu<L> {
    fn log_potential(
        &self,
        _potential: &Potential<Self>,
        _log_base: GpuView<'_, f64>,
        _phi: GpuView<'_, f32>,
        _log_p: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        Err(Error::no_answer("potential", "SKELETON"))
    }
}
