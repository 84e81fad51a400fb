//! Features on a GPU (`kernels/features.cu`).

use super::{FeatureKernel, FeatureTable};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, Limits, arguments};
use crate::error::Result;
use crate::tokens::{TokenId, TokenRows};

/// The most warps of a block; each has 32 rows. Two blocks with a small table fill a multiprocessor's 227 KiB.
const WARPS: usize = 11;

/// Bytes of a warp's two tiles of 32 rows × 128 bytes of tokens with a pitch of 36 words.
const TILES: usize = 2 * 32 * 36 * size_of::<u32>();

/// Blocks per multiprocessor where nothing else bounds them: 55 warps.
const BLOCKS: usize = 5;

impl<L: Launcher> FeatureKernel for Gpu<L> {
    fn features<T: TokenId>(
        &self,
        table: &FeatureTable<Self>,
        batch: TokenRows<'_, Self, T>,
        custom: Option<GpuView<'_, f32>>,
        phi: GpuViewMut<'_, f32>,
    ) -> Result<()> {
        let plan = Plan::new(table.hot_words, table.state_words, batch.rows, self.launcher().limits());
        // The states of kernels that have none in shared memory; 64-bit words.
        let spare = if plan.kernel == Kernel::FeaturesGlobal {
            (plan.grid.blocks[0] as usize * plan.grid.threads as usize * table.state_words).div_ceil(2).max(1)
        } else {
            1
        };
        let (words, space) = (table.words(), batch.space);
        let custom = custom.map_or(Argument::Pointer(0), |custom| Argument::from(&custom));
        self.with_scratch(spare, |spare| {
            // features_*(const uint32_t* words, uint32_t shared_words, uint32_t vocab, const Token* tokens,
            //   const uint32_t* lengths, uint64_t rows, uint32_t longest, uint32_t eos, uint32_t features,
            //   uint32_t states_per_row, const float* custom, uint32_t customs, uint32_t* spare, float* phi,
            //   unsigned long long* status)
            let arguments = arguments![
                &words,
                plan.shared_words as u32,
                space.vocab,
                &batch.tokens,
                &batch.lengths,
                batch.rows as u64,
                space.longest,
                space.eos,
                table.len() as u32,
                table.state_words as u32,
                custom,
                table.customs.len() as u32,
                &*spare,
                &phi,
                self.status(),
            ];
            // SAFETY: the caller checked that table and batch are of one space and that φ is `[rows, F]`, and gives the
            // closures' values as `[rows, closures]`, or there are no closures; the views span the rows, and the kernel is that
            // of their tokens' type. The grid's shared memory holds the words of the plan, and tiles and states of each warp,
            // or the scratch memory does the states.
            unsafe { self.launch(plan.kernel_of(size_of::<T>()), plan.grid, arguments) }
        })
    }
}

/// What a kernel needs to make φ of the rows that it has drawn itself, `features::DrawnRows` of
/// `kernels/common/features.cuh`; all zeros where it is to make none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct DrawnRows {
    words: u64,
    phi: u64,
    shared_words: u32,
    features: u32,
    states_per_row: u32,
    unused: u32,
}

impl DrawnRows {
    /// φ of `table` written to `phi` by blocks of `block_rows` rows, which use at most `room` bytes of shared memory for it
    /// if the table is read from global memory where it does not fit. `None` where such a block cannot: there are closures,
    /// or tiles and states alone go beyond `most` bytes.
    pub fn new<L: Launcher>(
        table: &FeatureTable<Gpu<L>>,
        phi: &GpuViewMut<'_, f32>,
        block_rows: usize,
        room: usize,
        most: usize,
    ) -> Option<Self> {
        let shared_words = shared_words(table.hot_words, table.state_words, block_rows, room, most);
        let shared_words = shared_words.filter(|_| table.customs.is_empty())? as u32;
        let (features, states_per_row) = (table.len() as u32, table.state_words as u32);
        let (words, phi) = (table.words().address(), phi.address());
        Some(DrawnRows { words, phi, shared_words, features, states_per_row, unused: 0 })
    }

    /// Shared memory of a block of `block_rows` rows.
    pub fn shared_bytes(&self, block_rows: usize) -> usize {
        if self.phi == 0 {
            return 0;
        }
        (self.shared_words as usize).next_multiple_of(4) * 4 + walking_bytes(self.states_per_row as usize, block_rows)
    }
}

/// Tiles and states of the warps that walk a block's rows, in bytes.
fn walking_bytes(state_words: usize, block_rows: usize) -> usize {
    block_rows.div_ceil(32) * (TILES + 128 * state_words)
}

/// How many of a table's words a block has in shared memory, as [`DrawnRows::new`]: with the class map, without, or none.
fn shared_words(
    hot_words: [usize; 2],
    state_words: usize,
    block_rows: usize,
    room: usize,
    most: usize,
) -> Option<usize> {
    let walking = walking_bytes(state_words, block_rows);
    let [mapped, whole] = hot_words;
    let fits = |&words: &usize| words.next_multiple_of(4) * 4 + walking <= room;
    (walking <= most).then(|| [whole, mapped].into_iter().find(fits).unwrap_or(0))
}

/// Where a launch keeps the table, and its grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    kernel: Kernel,
    shared_words: usize,
    grid: Grid,
}

impl Plan {
    /// Two blocks to a multiprocessor, or one where that is more warps, as a table takes its room once only then.
    fn new(hot_words: [usize; 2], state_words: usize, rows: usize, limits: Limits) -> Self {
        let of = |resident: usize| Plan::within(limits.shared_bytes / resident, hot_words, state_words, rows, limits);
        let ([two, one], warps) = ([of(2), of(1)], |plan: &Plan| plan.grid.threads / 32);
        // Four warps that look up shared memory do as much as a full multiprocessor that waits for the second-level cache.
        let least = if two.kernel == Kernel::FeaturesGlobal { 3 } else { 2 * warps(&two) };
        let alone = one.kernel != Kernel::FeaturesGlobal && warps(&one) > least;
        if alone { one } else { two }
    }

    /// Of `room` bytes, the class map in shared memory where half of the warps still fit beside it; else the table without
    /// it, where one warp does; else nothing.
    fn within(room: usize, hot_words: [usize; 2], state_words: usize, rows: usize, limits: Limits) -> Self {
        let per_warp = TILES + 128 * state_words;
        let bytes_of = |words: usize| words.next_multiple_of(4) * 4;
        let [mapped, whole] = hot_words;
        let warps_beside = |words: usize| (room.saturating_sub(bytes_of(words)) / per_warp).min(WARPS);
        let (kernel, shared_words, warps) = match (warps_beside(whole), warps_beside(mapped)) {
            (beside, without) if beside > 0 && 2 * beside >= without => (Kernel::FeaturesShared, whole, beside),
            (_, without) if without > 0 => (Kernel::FeaturesMapped, mapped, without),
            _ => (Kernel::FeaturesGlobal, 0, WARPS),
        };
        let states = if kernel == Kernel::FeaturesGlobal { 0 } else { per_warp - TILES };
        let bytes = bytes_of(shared_words) + warps * (TILES + states);
        let resident = limits.multiprocessors * (limits.shared_bytes / bytes).clamp(1, BLOCKS);
        let blocks = rows.div_ceil(32 * warps).min(resident);
        let grid = Grid::new(blocks as u32, 32 * warps as u32).shared(bytes);
        Plan { kernel, shared_words, grid }
    }

    /// The kernel for tokens of so many bytes.
    fn kernel_of(&self, bytes: usize) -> Kernel {
        match (self.kernel, bytes) {
            (Kernel::FeaturesShared, 2) => Kernel::FeaturesSharedU16,
            (Kernel::FeaturesMapped, 2) => Kernel::FeaturesMappedU16,
            (_, 2) => Kernel::FeaturesGlobalU16,
            (kernel, _) => kernel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_class_map_stays_in_global_memory() {
        let plan = |hot, state| Plan::new(hot, state, 1 << 20, Limits::new(227 << 10, 132, 90));
        let small = plan([500, 530], 8);
        assert_eq!((small.kernel, small.shared_words, small.grid.threads), (Kernel::FeaturesShared, 530, 352));
        let middling = plan([500, 10_500], 8);
        assert_eq!((middling.kernel, middling.grid.threads), (Kernel::FeaturesShared, 7 * 32));
        let large = plan([500, 50_500], 8);
        assert_eq!((large.kernel, large.shared_words, large.grid.threads), (Kernel::FeaturesMapped, 500, 352));
        let table = plan([20_000, 20_030], 8);
        assert_eq!(
            (table.kernel, table.grid.threads),
            (Kernel::FeaturesShared, 352),
            "one block has more warps than two"
        );
        assert_eq!(table.grid.blocks, [132, 1]);
        assert_eq!(plan([40_000, 40_030], 8).kernel, Kernel::FeaturesShared);
        assert_eq!(plan([50_000, 50_030], 8).kernel, Kernel::FeaturesGlobal, "three warps are too few");
    }

    #[test]
    fn a_block_that_has_drawn_takes_as_much_of_the_table_as_fits() {
        // Two warps for 64 rows, each with 9,216 bytes of tiles and 128 a word of state.
        let words = |hot, room| shared_words(hot, 8, 64, room, 40_000);
        let walking = 2 * (9216 + 1024);
        assert_eq!(words([501, 531], walking + 4 * 532), Some(531));
        assert_eq!(words([501, 531], walking + 4 * 528), Some(501));
        assert_eq!(words([501, 531], walking + 4 * 500), Some(0));
        assert_eq!(words([501, 531], 100), Some(0));
        assert_eq!(shared_words([501, 531], 8, 64, walking, walking - 1), None);
        // One warp for 16 rows as for 32.
        assert_eq!(shared_words([501, 531], 8, 16, walking, walking / 2), Some(531));
        assert_eq!(shared_words([501, 531], 8, 16, walking, walking / 2 - 1), None);
        assert_eq!(size_of::<DrawnRows>(), 32);
        let [none, some] = [0, 64].map(|phi| DrawnRows { phi, shared_words: 501, ..bytemuck::Zeroable::zeroed() });
        assert_eq!((none.shared_bytes(64), some.shared_bytes(64)), (0, 4 * 504 + 2 * 9216));
    }
}
