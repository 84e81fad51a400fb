//! Importance weights on a GPU (`kernels/weights.cu`).

use super::WeightKernel;
use crate::backend::gpu::{Gpu, GpuView, GpuViewMut, Launcher};
use crate::error::{Error, Result};

impl<L: Launcher> WeightKernel for Gpu<L> {
    fn weights(
        &self,
        _log_p: GpuView<'_, f64>,
        _log_q: GpuView<'_, f64>,
        _log_scale: f64,
        _log_w: GpuViewMut<'_, f64>,
        _weights: GpuViewMut<'_, f32>,
    ) -> Result<()> {
        Err(Error::no_answer("weights", "SKELETON"))
    }
}
