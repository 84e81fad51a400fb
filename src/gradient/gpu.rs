//! Gradients on a GPU (`kernels/gradient.cu`, `kernels/gradient_cluster.cu`).

use super::{Coefficient, GradientKernel, Scores, Sequences};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, Limits, arguments};
use crate::error::{Result, expect_len};
use crate::log_prob::{Logit, SoftmaxOptions, Team};
use crate::tokens::Token;

/// Bytes of a pack, one load of a thread.
const PACK: usize = 16;

/// Bytes of shared memory that the driver takes of a multiprocessor's for each block, beyond what a block may have.
const DRIVERS: usize = 1024;

/// Bytes of shared memory that the kernels declare themselves (`.ci/check_kernels.py`).
const DECLARED: usize = 512;

/// Bytes of shared memory of each block where so many share a multiprocessor.
fn share(limits: Limits, blocks: usize) -> usize {
    ((limits.shared_bytes + DRIVERS) / blocks).saturating_sub(DRIVERS + DECLARED)
}

/// Threads of a block of teams.
fn threads(team: Team) -> u32 {
    if team == Team::Block { 512 } else { 256 }
}

/// Who shares a row. Vocabulary, type and device decide, so that a row's bits do not depend on the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// A team, with room for so many packs of it in shared memory.
    Team(Team, usize),
    Cluster(Cluster),
}

impl Plan {
    fn new(vocab: usize, logit_bytes: usize, limits: Limits) -> Self {
        let team = Team::of(vocab);
        if let Team::Part(_) = team {
            return Plan::Team(team, 0);
        }
        let (packs, room) = ((vocab * logit_bytes).div_ceil(PACK), share(limits, 2) / PACK / team.per_block());
        // Measured on an H200: 16-bit rows that a block keeps whole take it .86 ms where clusters take 1.03.
        let kept = logit_bytes == 2 && packs <= room;
        match Cluster::new(vocab, logit_bytes, limits) {
            Some(cluster) if team == Team::Block && !kept => Plan::Cluster(cluster),
            _ => Plan::Team(team, packs.min(room)),
        }
    }

    fn kernels(self) -> [Kernel; 3] {
        use Kernel::*;
        match self {
            Plan::Team(Team::Part(_), _) => [GradientPartF32, GradientPartF16, GradientPartBf16],
            Plan::Team(Team::Warp, _) => [GradientWarpF32, GradientWarpF16, GradientWarpBf16],
            Plan::Team(Team::Block, _) => [GradientBlockF32, GradientBlockF16, GradientBlockBf16],
            Plan::Cluster(_) => [GradientClusterF32, GradientClusterF16, GradientClusterBf16],
        }
    }
}

/// Blocks that keep a row in their registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cluster {
    blocks: usize,
    threads: usize,
    /// Packs of a thread.
    packs: usize,
    /// Rows in shared memory, on their way to the registers.
    stages: usize,
}

impl Cluster {
    /// Threads of a multiprocessor, as registers allow.
    const RESIDENT: usize = 512;

    /// Rows of a cluster, where there are many: the first is waited for, the others come while it works.
    const ROWS: usize = 16;

    /// The fewest threads that keep a row, as each has some hundred instructions of its own; none where it is too long.
    fn new(vocab: usize, logit_bytes: usize, limits: Limits) -> Option<Self> {
        if !limits.has_clusters() {
            return None;
        }
        let (most, stages) = if logit_bytes == 4 { (19, 1) } else { (10, 2) }; // `Share` of `gradient_cluster.cu`
        let shapes = [(2, 32), (2, 64), (2, 128), (2, 256), (3, 256), (4, 256), (8, 256), (8, 512)];
        let clusters = shapes.map(|(blocks, threads)| {
            let packs = (vocab * logit_bytes / PACK).div_ceil(blocks * threads);
            Cluster { blocks, threads, packs, stages }
        });
        let fits = |cluster: &Self| {
            let resident = Self::RESIDENT / cluster.threads;
            cluster.packs <= most && cluster.shared_bytes() <= share(limits, resident)
        };
        clusters.into_iter().find(fits)
    }

    fn shared_bytes(self) -> usize {
        self.stages * self.packs * self.threads * PACK + self.blocks * self.threads / 32 * 2 * PACK
    }

    /// Some clusters for each place, so that none ends long after the others.
    fn grid(self, rows: usize, limits: Limits) -> Grid {
        let places = (limits.multiprocessors * Self::RESIDENT / self.threads / self.blocks).max(1);
        let most = rows.min(i32::MAX as usize / self.blocks);
        let clusters = most.min(rows.div_ceil(Self::ROWS).max(4 * places));
        let grid = Grid::new((clusters * self.blocks) as u32, self.threads as u32);
        grid.clusters(self.blocks as u32).shared(self.shared_bytes())
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
        let (team, room) = match plan {
            Plan::Team(team, room) => (team, room),
            Plan::Cluster(cluster) => {
                let kernel = T::pick(plan.kernels());
                let columns =
                    [(&logits).into(), (&logits).into(), (&tokens).into(), (&weights).into(), (&log_probs).into()];
                // SAFETY: the caller checked the shapes; the gradients take the place of the logits.
                return unsafe { self.by_clusters(kernel, cluster, softmax, [rows, vocab], columns) };
            }
        };
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
        let grid = team.grid(rows, limits).threads(threads(team)).shared(room * PACK * team.per_block());
        // SAFETY: the caller checked that the logits are `[rows, vocab]`, `stride` apart, tokens, weights and log-probs `[rows]` and the
        // mask, where there is one, a bit per token; the grid's shared memory holds `room` packs per team.
        unsafe { self.launch(T::pick(plan.kernels()), grid, arguments) }
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
        let grid = Grid::new(count.min(i32::MAX as usize) as u32, threads(team));
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

impl<L: Launcher> Gpu<L> {
    /// [`GradientKernel::gradient`] of f32 logits, to 16-bit values in memory of their own; `false`, and nothing is done,
    /// where no cluster keeps a row. Both begin at the same place within 16 values.
    pub(crate) fn narrow_gradient<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        vocab: usize,
        (tokens, weights): (&GpuView<'_, Token>, &GpuView<'_, f32>),
        logits: &GpuViewMut<'_, f32>,
        to: &GpuViewMut<'_, T>,
        log_probs: &GpuViewMut<'_, f32>,
    ) -> Result<bool> {
        let kernels = [None, Some(Kernel::GradientClusterF32F16), Some(Kernel::GradientClusterF32Bf16)];
        let plan = Plan::new(vocab, size_of::<f32>(), self.launcher().limits());
        let (Some(kernel), Plan::Cluster(cluster)) = (T::pick(kernels), plan) else { return Ok(false) };
        let rows = tokens.len();
        expect_len("logits", rows * vocab, logits.len())?;
        expect_len("room for the narrowed gradient", rows * vocab, to.len())?;
        expect_len("weights", rows, weights.len())?;
        expect_len("log-probs", rows, log_probs.len())?;
        let columns = [logits.into(), to.into(), tokens.into(), weights.into(), log_probs.into()];
        // SAFETY: these shapes.
        unsafe { self.by_clusters(kernel, cluster, softmax, [rows, vocab], columns)? };
        Ok(true)
    }

    /// # Safety
    /// The columns are logits and gradients in the types of the kernel, `[rows, vocab]` and `stride` apart, in the same
    /// memory or aligned alike, and tokens, weights and log-probs, `[rows]`; the mask, where there is one, has a bit per
    /// token.
    unsafe fn by_clusters(
        &self,
        kernel: Kernel,
        cluster: Cluster,
        softmax: &SoftmaxOptions<'_, Self>,
        [rows, vocab]: [usize; 2],
        [logits, gradients, tokens, weights, log_probs]: [Argument<'_>; 5],
    ) -> Result<()> {
        // gradient_cluster_*(const T* logits, U* gradients, const uint32_t* tokens, const float* weights, uint64_t rows,
        //   uint32_t vocab, uint64_t stride, float scale, const uint32_t* mask, uint32_t per, float* log_probs,
        //   unsigned long long* status)
        let arguments = arguments![
            logits,
            gradients,
            tokens,
            weights,
            rows as u64,
            vocab as u32,
            softmax.stride(vocab) as u64,
            softmax.scale,
            softmax.mask(),
            cluster.packs as u32,
            log_probs,
            self.status(),
        ];
        // SAFETY: the caller's word; the threads of a cluster keep a row, the grid's shared memory holds the packs of its
        // stages, and clusters, of which the grid has whole ones, are launched only on devices that have them.
        unsafe { self.launch(kernel, cluster.grid(rows, self.launcher().limits()), arguments) }
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

    const H100: Limits = Limits::new(227 << 10, 132, 90);

    /// (blocks of a row, threads of a block, packs of a thread).
    fn cluster(vocab: usize, logit_bytes: usize, limits: Limits) -> Option<(usize, usize, usize)> {
        match Plan::new(vocab, logit_bytes, limits) {
            Plan::Cluster(cluster) => Some((cluster.blocks, cluster.threads, cluster.packs)),
            Plan::Team(..) => None,
        }
    }

    #[test]
    fn clusters_have_as_many_threads_as_a_row_needs() {
        assert_eq!(cluster(1024, 4, H100), None);
        assert_eq!(cluster(1025, 4, H100), Some((2, 32, 4)));
        assert_eq!(cluster(4864, 4, H100), Some((2, 32, 19)));
        assert_eq!(cluster(4868, 4, H100), Some((2, 64, 10)));
        assert_eq!(cluster(50_257, 2, H100), None, "a block keeps it");
        assert_eq!(cluster(64_000, 2, H100), Some((4, 256, 8)));
        assert_eq!(cluster(50_257, 4, H100), Some((3, 256, 17)));
        assert_eq!(cluster(128_256, 2, H100), Some((8, 256, 8)));
        assert_eq!(cluster(128_256, 4, H100), Some((8, 256, 16)));
        assert_eq!(cluster(152_064, 4, H100), Some((8, 256, 19)));
        assert_eq!(cluster(262_208, 2, H100), Some((8, 512, 9)));
        assert_eq!(cluster(311_296, 4, H100), Some((8, 512, 19)));
        assert_eq!(cluster(311_300, 4, H100), None);
    }

    #[test]
    fn without_clusters_a_block_keeps_what_it_can() {
        let a100 = Limits::new(163 << 10, 108, 80);
        assert_eq!(Plan::new(128_256, 2, a100), Plan::Team(Team::Block, 82_432 / PACK));
        assert_eq!(Plan::new(1024, 4, a100), Plan::Team(Team::Warp, 256));
        assert_eq!(Plan::new(100_000, 4, Limits { shared_bytes: 0, ..H100 }), Plan::Team(Team::Block, 0));
    }

    #[test]
    fn a_grid_has_whole_clusters() {
        let grid = |vocab: usize, rows| Cluster::new(vocab, 4, H100).expect("one").grid(rows, H100);
        let all = grid(128_256, usize::MAX);
        assert!(all.blocks[0] <= i32::MAX as u32 && all.blocks[0].is_multiple_of(8));
        assert_eq!((all.cluster, all.threads, all.shared_bytes), (8, 256, 65_536 + 2048));
        assert_eq!(grid(128_256, 3).blocks, [24, 1]);
        assert_eq!(grid(128_256, 1000).blocks, [132 * 8, 1]);
        assert_eq!(grid(128_256, 8192).blocks, [512 * 8, 1]);
    }
}
