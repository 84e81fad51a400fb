//! Adam on a GPU: the norm's partial sums, then one fused pass over all parameters (`kernels/adam.cu`).

use super::{AdamKernel, AdamOptions, AdamState};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, arguments};
use crate::error::Result;

/// Values per partial sum: fixed, so that the norm has the same bits whatever the grid.
const BLOCK: usize = 4096;

impl<L: Launcher> AdamKernel for Gpu<L> {
    fn adam(
        &self,
        options: &AdamOptions,
        rate: Option<GpuView<'_, f32>>,
        state: &mut AdamState<Self>,
        gradient: GpuView<'_, f32>,
        parameters: GpuViewMut<'_, f32>,
    ) -> Result<()> {
        let (len, partials) = (gradient.len() as u64, gradient.len().div_ceil(BLOCK));
        let rate = rate.as_ref().map_or(Argument::Pointer(0), Argument::from);
        self.with_scratch(partials + 1, |scratch| {
            let scale = Argument::Pointer(scratch.address() + (partials * size_of::<f64>()) as u64);
            // SAFETY: gradient, moments and parameters all have `len` values, the steps and the rate one; the scratch
            // memory has `partials` doubles and two floats behind them.
            unsafe {
                // adam_norm(const float* gradient, uint64_t len, double* partials, float learning_rate, float beta1,
                //   float beta2, const float* rate, uint64_t* steps, float2* scale)
                let grid = Grid::new(partials as u32, 256);
                let (rate_of, beta1, beta2) = (options.learning_rate, options.beta1, options.beta2);
                let arguments = arguments![&gradient, len, &*scratch, rate_of, beta1, beta2, rate, &state.steps, scale];
                self.launch(Kernel::AdamNorm, grid, arguments)?;
                // adam_step(const float* gradient, float* parameters, float* first, float* second, uint64_t len,
                //   const double* partials, uint32_t partial_count, float clip, float beta1, float beta2, float epsilon,
                //   const float2* scale, GradientNorms* norms, unsigned long long* status)
                self.launch(
                    Kernel::Adam,
                    Grid::over(gradient.len(), 256),
                    &[
                        Argument::from(&gradient),
                        Argument::from(&parameters),
                        Argument::from(&state.first),
                        Argument::from(&state.second),
                        len.into(),
                        Argument::from(&*scratch),
                        (partials as u32).into(),
                        options.clip.into(),
                        beta1.into(),
                        beta2.into(),
                        options.epsilon.into(),
                        scale,
                        Argument::from(&state.norms),
                        self.status(),
                    ],
                )
            }
        })
    }
}
