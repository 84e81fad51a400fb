//! Log-probs on a GPU (`kernels/log_prob.cu`).

use super::{LogProbKernel, Logit, SoftmaxOptions};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, Limits, arguments};
use crate::error::Result;
use crate::tokens::Token;

/// Vocabularies up to this size have a part of a warp per row.
const PART_VOCAB: usize = 256;

/// The most logits of a lane where rows have parts of warps, as in `kernels/common/parts.cuh`.
const LANE_LOGITS: usize = 32;

/// Vocabularies up to this size have at most one warp per row.
const WARP_VOCAB: usize = 1024;

/// Warps of a block whose rows have warps or parts of them.
const WARPS: usize = 8;

/// Blocks of a launch for each multiprocessor where rows have parts of warps: four times the 3 that fit, so that warps
/// take several rows in turn.
const BLOCKS: usize = 12;

/// Who shares a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Team {
    /// So many lanes of a warp, a power of 2.
    Part(u32),
    Warp,
    Block,
}

impl Team {
    /// The vocabulary alone decides, so that a row's bits do not depend on the batch.
    pub(crate) fn of(vocab: usize) -> Self {
        if vocab > PART_VOCAB {
            return Team::of_warps(vocab);
        }
        Team::Part(vocab.div_ceil(LANE_LOGITS).next_power_of_two() as u32)
    }

    /// The same where a team is at least a warp.
    pub(crate) fn of_warps(vocab: usize) -> Self {
        if vocab <= WARP_VOCAB { Team::Warp } else { Team::Block }
    }

    /// Teams of one block.
    pub(crate) fn per_block(self) -> usize {
        match self {
            Team::Part(lanes) => WARPS * 32 / lanes as usize,
            Team::Warp => WARPS,
            Team::Block => 1,
        }
    }

    /// One team per row, or where teams are parts of warps as many as the device keeps busy.
    pub(crate) fn grid(self, rows: usize, limits: Limits) -> Grid {
        let most =
            if let Team::Part(_) = self { limits.multiprocessors * BLOCKS * self.per_block() } else { usize::MAX };
        Grid::over(rows.min(most), self.per_block() as u32).threads(256)
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
        unsafe { self.launch(kernel, team.grid(rows, self.launcher().limits()), arguments) }
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
        unsafe { self.launch(Kernel::SequenceSums, Team::Warp.grid(sequences, self.launcher().limits()), arguments) }
    }
}

fn kernels(team: Team, entropy: bool) -> [Kernel; 3] {
    use Kernel::*;
    match (team, entropy) {
        (Team::Part(_), false) => [LogProbPartF32, LogProbPartF16, LogProbPartBf16],
        (Team::Warp, false) => [LogProbWarpF32, LogProbWarpF16, LogProbWarpBf16],
        (Team::Block, false) => [LogProbBlockF32, LogProbBlockF16, LogProbBlockBf16],
        (Team::Part(_), true) => [EntropyPartF32, EntropyPartF16, EntropyPartBf16],
        (Team::Warp, true) => [EntropyWarpF32, EntropyWarpF16, EntropyWarpBf16],
        (Team::Block, true) => [EntropyBlockF32, EntropyBlockF16, EntropyBlockBf16],
    }
}
