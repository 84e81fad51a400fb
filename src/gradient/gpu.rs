//! Gradients on a GPU (`kernels/gradient.cu`).

use super::{Coefficient, GradientKernel, Scores, Sequences};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, Limits, arguments};
use crate::error::Result;
use crate::log_prob::{Logit, SoftmaxOptions, Team};
use crate::tokens::Token;

/// Bytes of a pack, one load of a thread.
const PACK: usize = 16;

/// Bytes of shared memory that the driver takes of a multiprocessor's for each block, beyond what a block may have.
const DRIVERS: usize = 1024;

/// Bytes of shared memory that the kernels declare themselves (`.ci/check_kernels.py`).
const DECLARED: usize = 512;

/// Threads of a block in a cluster: three such blocks share a multiprocessor's registers.
const CLUSTER_THREADS: u32 = 384;

/// Who shares a row, and how much of it is kept between its sum and its gradient. Vocabulary, type and device decide, so
/// that a row's bits do not depend on the batch.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    team: Team,
    /// Blocks that share a row.
    cluster: usize,
    /// Packs of shared memory for each team; of a cluster, in each block.
    room: usize,
}

impl Plan {
    fn new(vocab: usize, logit_bytes: usize, limits: Limits) -> Self {
        let (team, packs) = (Team::of(vocab), (vocab * logit_bytes).div_ceil(PACK));
        // Packs of a block where so many share a multiprocessor.
        let share =
            |blocks: usize| ((limits.shared_bytes + DRIVERS) / blocks).saturating_sub(DRIVERS + DECLARED) / PACK;
        let alone = Plan { team, cluster: 1, room: packs.min(share(2) / team.per_block()) };
        if let Team::Part(_) = team {
            return Plan { room: 0, ..alone };
        }
        if team == Team::Warp || packs <= alone.room || !limits.has_clusters() {
            return alone;
        }
        // The more blocks a multiprocessor has, the better one's loads hide behind another's barriers and stores.
        let mut choices = [3, 2, 1].into_iter().flat_map(|blocks| [2, 4, 8].map(|cluster| (blocks, cluster)));
        let fitting = choices.find(|&(blocks, cluster)| packs.div_ceil(cluster) <= share(blocks));
        fitting.map_or(alone, |(_, cluster)| Plan { team, cluster, room: packs.div_ceil(cluster) })
    }

    fn kernels(&self) -> [Kernel; 3] {
        use Kernel::*;
        match self.team {
            Team::Part(_) => [GradientPartF32, GradientPartF16, GradientPartBf16],
            Team::Warp => [GradientWarpF32, GradientWarpF16, GradientWarpBf16],
            Team::Block if self.cluster == 1 => [GradientBlockF32, GradientBlockF16, GradientBlockBf16],
            Team::Block => [GradientClusterF32, GradientClusterF16, GradientClusterBf16],
        }
    }

    fn grid(&self, rows: usize, limits: Limits) -> Grid {
        let bytes = self.room * PACK * self.team.per_block();
        if self.cluster == 1 {
            return self.team.grid(rows, limits).shared(bytes);
        }
        let clusters = rows.min(i32::MAX as usize / self.cluster);
        let grid = Grid::new((clusters * self.cluster) as u32, CLUSTER_THREADS);
        grid.clusters(self.cluster as u32).shared(bytes)
    }
}

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
        let rows = tokens.len();
        let limits = self.launcher().limits();
        let plan = Plan::new(vocab, size_of::<T>(), limits);
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
            plan.room as u32,
            &log_probs,
            self.status(),
        ];
        // SAFETY: the caller checked that the logits are `[rows, vocab]`, `stride` apart, tokens, weights and log-probs `[rows]` and the
        // mask, where there is one, a bit per token; the grid's shared memory holds `room` packs per team and block, and a
        // cluster, of which the grid has whole ones, is launched only on devices that have clusters.
        unsafe { self.launch(T::pick(plan.kernels()), plan.grid(rows, limits), arguments) }
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
        let (team, rows, count) = (Team::of_warps(vocab), tokens.len(), sequences.coefficient.count());
        let kernel = T::pick(sequence_kernels(team));
        let grid = Grid::new(count.min(i32::MAX as usize) as u32, team.grid(1, self.launcher().limits()).threads);
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
        Team::Part(_) | Team::Warp => [GradientSequencesWarpF32, GradientSequencesWarpF16, GradientSequencesWarpBf16],
        Team::Block => [GradientSequencesBlockF32, GradientSequencesBlockF16, GradientSequencesBlockBf16],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Limits = Limits { shared_bytes: 227 << 10, multiprocessors: 132, capability: 90 };

    /// (blocks of a row, bytes that a block keeps).
    fn plan(vocab: usize, logit_bytes: usize, limits: Limits) -> (usize, usize) {
        let plan = Plan::new(vocab, logit_bytes, limits);
        (plan.cluster, plan.room * PACK)
    }

    #[test]
    fn clusters_have_as_many_blocks_as_a_row_needs() {
        // Half a multiprocessor's shared memory is 112.5 KiB, a third 74.5, all of it 226.5.
        assert_eq!(plan(57_600, 2, H100), (1, 115_200));
        assert_eq!(plan(57_601, 2, H100), (2, 57_616));
        assert_eq!(plan(128_256, 2, H100), (4, 64_128));
        assert_eq!(plan(151_936, 2, H100), (4, 75_968));
        assert_eq!(plan(128_256, 4, H100), (8, 64_128));
        assert_eq!(plan(262_144, 2, H100), (8, 65_536));
        assert_eq!(plan(200_000, 4, H100), (8, 100_000));
        assert_eq!(plan(262_144, 4, H100), (8, 131_072));
        assert_eq!(plan(463_872, 4, H100), (8, 231_936));
        assert_eq!(plan(463_873, 4, H100), (1, 115_200));
    }

    #[test]
    fn without_clusters_a_block_keeps_what_it_can() {
        let a100 = Limits { shared_bytes: 163 << 10, multiprocessors: 108, capability: 80 };
        assert_eq!(plan(128_256, 2, a100), (1, 82_432));
        assert_eq!(plan(1024, 4, a100), (1, 4096));
        assert_eq!(plan(100_000, 4, Limits { shared_bytes: 0, ..H100 }), (1, 0));
    }

    #[test]
    fn a_grid_has_whole_clusters() {
        let grid = Plan::new(128_256, 4, H100).grid(usize::MAX, H100);
        assert!(grid.blocks[0] <= i32::MAX as u32 && grid.blocks[0].is_multiple_of(8));
        assert_eq!((grid.cluster, grid.shared_bytes), (8, 64_128));
        assert_eq!(Plan::new(128_256, 2, H100).grid(3, H100).blocks, [12, 1]);
    }
}
