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
        state: &mut AdamState<Self>,
        gradient: GpuView<'_, f32>,
        parameters: GpuViewMut<'_, f32>,
    ) -> Result<()> {
        let (len, partials) = (gradient.len() as u64, gradient.len().div_ceil(BLOCK));
        state.steps += 1;
        let (rate, inverse_root2) = options.corrected(state.steps);
        self.with_scratch(partials, |scratch| {
            // SAFETY: gradient, moments and parameters all have `len` values, the scratch memory `partials` doubles.
            unsafe {
                // adam_norm(const float* gradient, uint64_t len, double* partials)
                let grid = Grid::new(partials as u32, 256);
                self.launch(Kernel::AdamNorm, grid, arguments![&gradient, len, &*scratch])?;
                // adam_step(const float* gradient, float* parameters, float* first, float* second, uint64_t len,
                //   const double* partials, uint32_t partial_count, float clip, float rate, float inverse_root2,
                //   float beta1, float beta2, float epsilon, uint64_t* status)
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
                        rate.into(),
                        inverse_root2.into(),
                        options.beta1.into(),
                        options.beta2.into(),
                        options.epsilon.into(),
                        self.status(),
                    ],
                )
            }
        })
    }
}
