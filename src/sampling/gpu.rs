//! Draws on a GPU (`kernels/sampling.cu`).

use super::{Sampled, SamplingKernel, Truncation, Uniforms};
use crate::backend::gpu::{Argument, Gpu, GpuView, Grid, Kernel, Launcher, arguments};
use crate::error::Result;
use crate::log_prob::{Logit, SoftmaxOptions};

impl<L: Launcher> SamplingKernel for Gpu<L> {
    fn sample<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        truncation: &Truncation,
        vocab: usize,
        logits: GpuView<'_, T>,
        uniforms: &Uniforms<'_, Self>,
        out: Sampled<'_, Self>,
    ) -> Result<()> {
        let rows = out.tokens.len();
        let kernel = T::pick([Kernel::SampleF32, Kernel::SampleF16, Kernel::SampleBf16]);
        let draw = uniforms.draw;
        // sample_*(const T* logits, uint64_t rows, uint32_t vocab, uint64_t stride, float scale, const uint32_t* mask,
        //   uint32_t top_k, float top_p, float lowest, uint64_t seed, uint64_t first, uint32_t position, uint32_t purpose,
        //   const uint32_t* numbers, uint32_t* tokens, float* log_q, uint32_t* unreachable, unsigned long long* status)
        let arguments = arguments![
            &logits,
            rows as u64,
            vocab as u32,
            softmax.stride(vocab) as u64,
            softmax.scale,
            softmax.mask(),
            truncation.top_k.unwrap_or(u32::MAX),
            truncation.top_p,
            truncation.lowest(softmax.scale),
            draw.seed,
            draw.first,
            uniforms.position,
            draw.purpose as u32,
            uniforms.rows.as_ref().map_or(Argument::Pointer(0), Argument::from),
            &out.tokens,
            &out.log_q,
            &out.unreachable,
            self.status(),
        ];
        let grid = Grid::over(rows, 1).threads(256);
        // SAFETY: the caller checked that the logits are `[rows, vocab]`, `stride` apart, all columns `[rows]` and the mask,
        // where there is one, a bit per token.
        unsafe { self.launch(kernel, grid, arguments) }
    }
}
