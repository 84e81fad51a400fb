//! Gradients on a GPU (`kernels/gradient.cu`).

use super::{Coefficient, GradientKernel, Scores, Sequences};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, arguments};
use crate::error::Result;
use crate::log_prob::{Logit, SoftmaxOptions, Team};
use crate::tokens::Token;

/// Bytes of a pack, one load of a thread.
const PACK: usize = 16;

/// Shared memory of a block that is not a row's: the kernel's own and the driver's.
const RESERVED: usize = 2048;

impl<L: Launcher> GradientKernel for Gpu<L> {
    fn gradient<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        vocab: usize,
        tokens: GpuView<'_, Token>,
        weights: GpuView<'_, f32>,
        logits: GpuViewMut<'_, T>,
        log_probs: GpuViewMut<'_, f32>,
    ) -> Result<()> {
        let (team, rows) = (Team::of(vocab), tokens.len());
        let kernel = T::pick(match team {
            Team::Warp => [Kernel::GradientWarpF32, Kernel::GradientWarpF16, Kernel::GradientWarpBf16],
            Team::Block => [Kernel::GradientBlockF32, Kernel::GradientBlockF16, Kernel::GradientBlockBf16],
        });
        // Two blocks share a multiprocessor.
        let most = (self.launcher().limits().shared_bytes / 2 - RESERVED) / PACK / team.per_block();
        let room = (vocab * size_of::<T>()).div_ceil(PACK).min(most);
        let grid = team.grid(rows).shared(room * PACK * team.per_block());
        // gradient_*(T* logits, const uint32_t* tokens, const float* weights, uint64_t rows, uint32_t vocab,
        //   uint64_t stride, float scale, const uint32_t* mask, uint32_t room, float* log_probs,
        //   unsigned long long* status)
        let arguments = arguments![
            &logits,
            &tokens,
            &weights,
            rows as u64,
            vocab as u32,
            softmax.stride(vocab) as u64,
            softmax.scale,
            softmax.mask(),
            room as u32,
            &log_probs,
            self.status(),
        ];
        // SAFETY: the caller checked that the logits are `[rows, vocab]`, `stride` apart, tokens, weights and log-probs `[rows]` and the
        // mask, where there is one, a bit per token; the grid's shared memory holds `room` packs per team.
        unsafe { self.launch(kernel, grid, arguments) }
    }

    fn sequence_gradient<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        vocab: usize,
        sequences: &Sequences<'_, Self>,
        tokens: GpuView<'_, Token>,
        logits: GpuViewMut<'_, T>,
        scores: Scores<'_, Self>,
    ) -> Result<()> {
        let (team, rows, count) = (Team::of(vocab), tokens.len(), sequences.coefficient.count());
        let kernel = T::pick(sequence_kernels(team));
        let grid = Grid::new(count.min(i32::MAX as usize) as u32, team.grid(1).threads);
        let null = Argument::Pointer(0);
        let (kind, parameter, weights, log_p, log_q) = match &sequences.coefficient {
            Coefficient::Given { weights } => (0, 0.0, weights.into(), null, null),
            Coefficient::Baseline { weights, log_q, baseline } => (1, *baseline, weights.into(), null, log_q.into()),
            Coefficient::Divergence { divergence, log_p, log_q } => {
                let (kind, parameter) = divergence.code();
                (kind, parameter, null, log_p.into(), log_q.into())
            }
        };
        // gradient_sequences_*(T* logits, const uint32_t* tokens, uint64_t rows, uint32_t vocab, uint64_t stride,
        //   float scale, const uint32_t* mask, const uint64_t* offsets, uint64_t sequences, uint32_t kind,
        //   double parameter, const float* weights, const double* log_p, const double* log_q, float* log_probs,
        //   float2* normalisers, double* log_pi, unsigned long long* status)
        self.with_scratch(rows, |normalisers| {
            let arguments = arguments![
                &logits,
                &tokens,
                rows as u64,
                vocab as u32,
                softmax.stride(vocab) as u64,
                softmax.scale,
                softmax.mask(),
                &sequences.offsets,
                count as u64,
                kind,
                parameter,
                weights,
                log_p,
                log_q,
                &scores.log_probs,
                &*normalisers,
                &scores.log_pi,
                self.status(),
            ];
            // SAFETY: the caller checked the shapes: rows of logits, tokens and log-probs, one offset more than
            // sequences; the kernel uses only rows that exist and the columns that its kind of coefficient has, and the
            // scratch memory has one word for each row.
            unsafe { self.launch(kernel, grid, arguments) }
        })
    }
}

fn sequence_kernels(team: Team) -> [Kernel; 3] {
    use Kernel::*;
    match team {
        Team::Warp => [GradientSequencesWarpF32, GradientSequencesWarpF16, GradientSequencesWarpBf16],
        Team::Block => [GradientSequencesBlockF32, GradientSequencesBlockF16, GradientSequencesBlockBf16],
    }
}
