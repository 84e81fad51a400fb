//! Log-probs on a GPU (`kernels/log_prob.cu`).

use super::{LogProbKernel, Logit, SoftmaxOptions};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, arguments};
use crate::error::Result;
use crate::tokens::Token;

/// Vocabularies up to this size have one warp per row.
const WARP_VOCAB: usize = 1024;

/// Who shares a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Team {
    Warp,
    Block,
}

impl Team {
    /// The vocabulary alone decides, so that a row's bits do not depend on the batch.
    pub(crate) fn of(vocab: usize) -> Self {
        if vocab <= WARP_VOCAB { Team::Warp } else { Team::Block }
    }

    /// Teams of one block.
    pub(crate) fn per_block(self) -> usize {
        if self == Team::Warp { 8 } else { 1 }
    }

    /// One team per row.
    pub(crate) fn grid(self, rows: usize) -> Grid {
        Grid { threads: 256, ..Grid::over(rows, self.per_block() as u32) }
    }
}

impl<L: Launcher> SoftmaxOptions<'_, Gpu<L>> {
    /// The mask as a kernel's argument.
    pub(crate) fn mask(&self) -> Argument<'_> {
        self.mask.as_ref().map_or(Argument::Pointer(0), Argument::from)
    }
}

impl<L: Launcher> LogProbKernel for Gpu<L> {
    fn log_prob<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        vocab: usize,
        logits: GpuView<'_, T>,
        tokens: GpuView<'_, Token>,
        log_probs: GpuViewMut<'_, f32>,
        entropies: Option<GpuViewMut<'_, f32>>,
    ) -> Result<()> {
        let (team, rows) = (Team::of(vocab), tokens.len());
        let kernel = T::pick(kernels(team, entropies.is_some()));
        // log_prob_*(const T* logits, const uint32_t* tokens, uint64_t rows, uint32_t vocab, uint64_t stride, float scale,
        //   const uint32_t* mask, float* log_probs, float* entropies, unsigned long long* status)
        let arguments = arguments![
            &logits,
            &tokens,
            rows as u64,
            vocab as u32,
            softmax.stride(vocab) as u64,
            softmax.scale,
            softmax.mask(),
            &log_probs,
            entropies.as_ref().map_or(Argument::Pointer(0), Argument::from),
            self.status(),
        ];
        // SAFETY: the caller checked that the logits are `[rows, vocab]`, `stride` apart, tokens, log-probs and entropies
        // `[rows]` and the mask, where there is one, a bit per token; the kernel reads no logit at a token outside the
        // vocabulary, and writes entropies only where it has their address.
        unsafe { self.launch(kernel, team.grid(rows), arguments) }
    }

    fn sequence_sums(
        &self,
        offsets: GpuView<'_, u64>,
        log_probs: GpuView<'_, f32>,
        sums: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        let (rows, sequences) = (log_probs.len() as u64, sums.len());
        // sequence_sums(const float* values, uint64_t rows, const uint64_t* offsets, uint64_t sequences, double* sums,
        //   unsigned long long* status)
        let arguments = arguments![&log_probs, rows, &offsets, sequences as u64, &sums, self.status()];
        // SAFETY: the caller checked that there is one offset more than sequences; the kernel reads only rows that exist.
        unsafe { self.launch(Kernel::SequenceSums, Team::Warp.grid(sequences), arguments) }
    }
}

fn kernels(team: Team, entropy: bool) -> [Kernel; 3] {
    use Kernel::*;
    match (team, entropy) {
        (Team::Warp, false) => [LogProbWarpF32, LogProbWarpF16, LogProbWarpBf16],
        (Team::Block, false) => [LogProbBlockF32, LogProbBlockF16, LogProbBlockBf16],
        (Team::Warp, true) => [EntropyWarpF32, EntropyWarpF16, EntropyWarpBf16],
        (Team::Block, true) => [EntropyBlockF32, EntropyBlockF16, EntropyBlockBf16],
    }
}
