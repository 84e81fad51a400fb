//! The one path by which kernels are launched, whoever runs them: the CUDA driver, or an emulation of it on the CPU.

use std::ffi::c_void;
use std::fmt::Debug;

use crate::error::Result;

/// A machine that owns device memory and runs the kernels of `kernels/*.cu` on it, in the order of the calls.
///
/// Addresses are those of the device; where a method takes one, the caller vouches for it.
pub trait Launcher: Clone + Debug + Send + Sync + 'static {
    /// `bytes` zeroed bytes, aligned to 256; `what` names them in the error.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn allocate(&self, bytes: usize, what: &str) -> Result<u64>;

    /// Gives memory back once the work that uses it is done.
    ///
    /// # Safety
    /// `address` and `bytes` are those of one [`Launcher::allocate`], and nothing uses the memory after this call.
    unsafe fn free(&self, address: u64, bytes: usize);

    /// Copies host bytes to the device; `from` may be changed once this returns.
    ///
    /// # Safety
    /// `from.len()` bytes from `to` on are device memory that no one else borrows.
    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<()>;

    /// Copies device bytes to the host; waits for the work that writes them.
    ///
    /// # Safety
    /// `to.len()` bytes from `from` on are device memory.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Copies between two ranges of device memory that do not overlap.
    ///
    /// # Safety
    /// Both ranges are device memory, and no one else borrows the second.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Writes zeros.
    ///
    /// # Safety
    /// The range is device memory that no one else borrows.
    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()>;

    /// Runs one kernel over a grid. It does not wait for the end.
    ///
    /// # Safety
    /// The arguments are those of the kernel's declaration in number and type, and each pointer among them spans the
    /// memory that the kernel's header says it reads or writes.
    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &[Argument]) -> Result<()>;

    /// A plain product of matrices, by the device's library. It does not wait for the end.
    ///
    /// # Errors
    /// A library that is missing or refuses the shapes.
    ///
    /// # Safety
    /// The addresses span matrices of the product's shapes, and no one else borrows the result.
    unsafe fn product(&self, product: &Product) -> Result<()>;

    /// What the device offers.
    fn limits(&self) -> Limits;

    /// A sequence of launches, copies and clearings.
    type Recording;

    /// Puts down what `work` asks for without running it; `None`, and `work` is not called, where this machine gains
    /// nothing by that.
    ///
    /// # Errors
    /// Those of `work`. While it is recorded, an allocation, upload or download is one.
    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Self::Recording>>;

    /// Runs what was recorded. It does not wait for the end. `false`, and nothing has run, where memory has been given
    /// back since, which the recording may use.
    ///
    /// # Errors
    /// What the device reports.
    fn replay(&self, recording: &Self::Recording) -> Result<bool>;
}

/// `to[m, n] (+)= a[m, k] · b[k, n]`, row-major, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// m, n and k, none of them 0.
    pub shape: [usize; 3],
    /// The type of `a` and `b`; sums and the result are f32.
    pub scalar: Scalar,
    /// `[m, k]`, or stored as its transpose.
    pub a: Matrix,
    /// `[k, n]`, or stored as its transpose.
    pub b: Matrix,
    /// Where the result goes, `[m, n]`.
    pub to: u64,
    /// Whether it is added to what is there.
    pub add: bool,
}

/// A matrix in device memory, its rows dense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Where it begins.
    pub address: u64,
    /// Values of a stored row.
    pub columns: usize,
    /// Whether what is stored is the transpose.
    pub transposed: bool,
}

/// The type of a matrix's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// Not rounded before it is multiplied (no TF32).
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// What a launch may ask of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most shared memory of a block, in bytes.
    pub shared_bytes: usize,
    /// Number of multiprocessors.
    pub multiprocessors: usize,
    /// Compute capability, major · 10 + minor: the device's, or what the kernels were compiled for where that is less.
    pub capability: u32,
    /// Whether four warps multiply together (`wgmma`): compute capability 9.0 alone, and only by machine code for it, which the
    /// driver makes of no PTX.
    pub warpgroups: bool,
}

impl Limits {
    /// The limits of a device with machine code of its own.
    pub const fn new(shared_bytes: usize, multiprocessors: usize, capability: u32) -> Self {
        Limits { shared_bytes, multiprocessors, capability, warpgroups: capability == 90 }
    }

    /// Whether blocks come in clusters that see each other's shared memory: compute capability 9.0 and later.
    pub fn has_clusters(self) -> bool {
        self.capability >= 90
    }
}

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x and y.
    pub blocks: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Blocks of a cluster, neighbours in x that see each other's shared memory: at most 8, a divisor of the blocks in x, and
    /// 1 below compute capability 9.0.
    pub cluster: u32,
}

impl Grid {
    /// Enough blocks of `threads` threads for one thread per item; at most 2³¹ − 1 blocks, as kernels stride.
    pub fn over(items: usize, threads: u32) -> Self {
        Grid::new(items.div_ceil(threads as usize).clamp(1, i32::MAX as usize) as u32, threads)
    }

    /// `blocks` blocks of `threads` threads.
    pub fn new(blocks: u32, threads: u32) -> Self {
        Grid { blocks: [blocks, 1], threads, shared_bytes: 0, cluster: 1 }
    }

    /// The same with `threads` threads in a block.
    pub fn threads(self, threads: u32) -> Self {
        Grid { threads, ..self }
    }

    /// The same with `bytes` of dynamic shared memory per block.
    pub fn shared(self, bytes: usize) -> Self {
        Grid { shared_bytes: bytes as u32, ..self }
    }

    /// The same in clusters of `blocks` blocks.
    pub fn clusters(self, blocks: u32) -> Self {
        Grid { cluster: blocks, ..self }
    }
}

/// A kernel's argument.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// An address on the device.
    Pointer(u64),
    /// `uint32_t`.
    U32(u32),
    /// `uint64_t`.
    U64(u64),
    /// `float`.
    F32(f32),
    /// `double`.
    F64(f64),
    /// A struct by value: its bytes, aligned to 8.
    Struct(&'a [u8]),
}

impl Argument<'_> {
    /// The argument's type as one letter: p, I, L, f, d; a struct's as s and its size.
    pub fn code(&self) -> String {
        let letter = match self {
            Argument::Pointer(_) => 'p',
            Argument::U32(_) => 'I',
            Argument::U64(_) => 'L',
            Argument::F32(_) => 'f',
            Argument::F64(_) => 'd',
            Argument::Struct(bytes) => return format!("s{}", bytes.len()),
        };
        letter.to_string()
    }

    /// Where the value is, as a launch wants it.
    pub fn pointer(&self) -> *mut c_void {
        match self {
            Argument::Pointer(value) | Argument::U64(value) => std::ptr::from_ref(value) as *mut c_void,
            Argument::U32(value) => std::ptr::from_ref(value) as *mut c_void,
            Argument::F32(value) => std::ptr::from_ref(value) as *mut c_void,
            Argument::F64(value) => std::ptr::from_ref(value) as *mut c_void,
            Argument::Struct(bytes) => bytes.as_ptr() as *mut c_void,
        }
    }
}

macro_rules! arguments_from {
    ($($from:ty => $variant:ident),*) => {
        $(impl From<$from> for Argument<'_> {
            fn from(value: $from) -> Self {
                Argument::$variant(value)
            }
        })*
    };
}
arguments_from!(u32 => U32, u64 => U64, f32 => F32, f64 => F64);

macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal,)*) => {
        /// The entry points of `kernels/*.cu`. All are looked up when a device is opened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Kernel {
            $($(#[$doc])* $name,)*
        }

        impl Kernel {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Kernel] = &[$(Kernel::$name,)*];

            /// The name in the source.
            pub fn symbol(self) -> &'static str {
                match self {
                    $(Kernel::$name => $symbol,)*
                }
            }
        }
    };
}

kernels! {
    /// `adam.cu`: partial sums of squares.
    AdamNorm = "adam_norm",
    /// `adam.cu`: the step.
    Adam = "adam_step",
    /// `lstm_pack.cu`: weights as tensor-core operands.
    LstmPack = "lstm_pack",
    /// `lstm_forward.cu`: split precision, 16 rows a block.
    LstmForwardSplit1 = "lstm_forward_split_1",
    /// `lstm_forward.cu`: split precision, 32 rows a block.
    LstmForwardSplit2 = "lstm_forward_split_2",
    /// `lstm_forward.cu`: split precision, 64 rows a block.
    LstmForwardSplit4 = "lstm_forward_split_4",
    /// `lstm_forward.cu`: plain 16-bit, 16 rows a block.
    LstmForwardPlain1 = "lstm_forward_plain_1",
    /// `lstm_forward.cu`: plain 16-bit, 32 rows a block.
    LstmForwardPlain2 = "lstm_forward_plain_2",
    /// `lstm_forward.cu`: plain 16-bit, 64 rows a block.
    LstmForwardPlain4 = "lstm_forward_plain_4",
    /// `lstm_forward.cu`: split precision with everything kept for a gradient, 16 rows a block.
    LstmForwardKeep1 = "lstm_forward_keep_1",
    /// `lstm_forward.cu`: split precision with everything kept for a gradient, 32 rows a block.
    LstmForwardKeep2 = "lstm_forward_keep_2",
    /// `lstm_warpgroup.cu`: split precision, 64 rows a block.
    LstmWarpgroupSplit4 = "lstm_warpgroup_split_4",
    /// `lstm_warpgroup.cu`: split precision, 32 rows a block.
    LstmWarpgroupSplit2 = "lstm_warpgroup_split_2",
    /// `lstm_warpgroup.cu`: split precision, 16 rows a block.
    LstmWarpgroupSplit1 = "lstm_warpgroup_split_1",
    /// `lstm_warpgroup.cu`: plain 16-bit, 64 rows a block.
    LstmWarpgroupPlain4 = "lstm_warpgroup_plain_4",
    /// `lstm_warpgroup.cu`: plain 16-bit, 32 rows a block.
    LstmWarpgroupPlain2 = "lstm_warpgroup_plain_2",
    /// `lstm_warpgroup.cu`: plain 16-bit, 16 rows a block.
    LstmWarpgroupPlain1 = "lstm_warpgroup_plain_1",
    /// `lstm_warpgroup.cu`: split precision with everything kept for a gradient, 32 rows a block.
    LstmWarpgroupKeep2 = "lstm_warpgroup_keep_2",
    /// `lstm_warpgroup.cu`: split precision with everything kept for a gradient, 16 rows a block.
    LstmWarpgroupKeep1 = "lstm_warpgroup_keep_1",
    /// `lstm_warpgroup.cu`: split precision, 32 rows shared by two blocks of a cluster.
    LstmWarpgroupPairSplit = "lstm_warpgroup_pair_split",
    /// `lstm_warpgroup.cu`: plain 16-bit, 32 rows shared by two blocks of a cluster.
    LstmWarpgroupPairPlain = "lstm_warpgroup_pair_plain",
    /// `lstm_warpgroup.cu`: split precision with everything kept for a gradient, 32 rows shared by two blocks of a cluster.
    LstmWarpgroupPairKeep = "lstm_warpgroup_pair_keep",
    /// `lstm_backward.cu`: the rows that have a gradient.
    LstmRows = "lstm_rows",
    /// `lstm_backward.cu`: 16 slots a block.
    LstmBackward1 = "lstm_backward_1",
    /// `lstm_backward.cu`: 32 slots a block.
    LstmBackward2 = "lstm_backward_2",
    /// `lstm_warpgroup_backward.cu`: 16 slots a block.
    LstmWarpgroupBackward1 = "lstm_warpgroup_backward_1",
    /// `lstm_warpgroup_backward.cu`: 32 slots a block.
    LstmWarpgroupBackward2 = "lstm_warpgroup_backward_2",
    /// `lstm_warpgroup_backward.cu`: 64 slots a block.
    LstmWarpgroupBackward4 = "lstm_warpgroup_backward_4",
    /// `lstm_weights.cu`: outer products.
    LstmWeights = "lstm_weights",
    /// `lstm_warpgroup_weights.cu`: outer products, blocks of 64 units.
    LstmWarpgroupWeights64 = "lstm_warpgroup_weights_64",
    /// `lstm_warpgroup_weights.cu`: outer products, blocks of 128 units.
    LstmWarpgroupWeights128 = "lstm_warpgroup_weights_128",
    /// `lstm_warpgroup_weights.cu`: outer products, blocks of 208 units.
    LstmWarpgroupWeights208 = "lstm_warpgroup_weights_208",
    /// `lstm_weights.cu`: the sum over runs.
    LstmFold = "lstm_fold",
    /// `tokens.cu`: rows of a batch by number.
    CopyRows = "copy_rows",
    /// `tokens.cu`: rows that begin with a context.
    BeginRows = "begin_rows",
    /// `features.cu`: table and states in shared memory.
    FeaturesShared = "features_shared",
    /// `features.cu`: table and states in shared memory, the class map in global memory.
    FeaturesMapped = "features_mapped",
    /// `features.cu`: table and states in global memory.
    FeaturesGlobal = "features_global",
    /// `features.cu`: tokens of 16 bits, table and states in shared memory.
    FeaturesSharedU16 = "features_shared_u16",
    /// `features.cu`: tokens of 16 bits, the class map in global memory.
    FeaturesMappedU16 = "features_mapped_u16",
    /// `features.cu`: tokens of 16 bits, table and states in global memory.
    FeaturesGlobalU16 = "features_global_u16",
    /// `pool.cu`: log w of new draws, and their mean.
    PoolWeigh = "pool_weigh",
    /// `pool.cu`: the weights of new draws by contexts.
    PoolWeighContexts = "pool_weigh_contexts",
    /// `pool.cu`: returns under control by a KL divergence.
    PoolReturns = "pool_returns",
    /// `pool.cu`: what updates measure their weights by.
    PoolMeasure = "pool_measure",
    /// `pool.cu`: rejection.
    PoolAccept = "pool_accept",
    /// `pool.cu`: a slot for each draw that is kept.
    PoolKeep = "pool_keep",
    /// `pool.cu`: draws to their slots.
    PoolScatter = "pool_scatter",
    /// `pool.cu`: the slots of an update.
    PoolChoose = "pool_choose",
    /// `pool.cu`: the rows of an update.
    PoolGather = "pool_gather",
    /// `pool.cu`: the loss of an update, and what it teaches of the shift.
    PoolNote = "pool_note",
    /// `subtrajectory.cu`: prefixes of the rows of an update, ended.
    EndPrefixes = "end_prefixes",
    /// `subtrajectory.cu`: their coefficients.
    BalancePrefixes = "balance_prefixes",
    /// `potential.cu`: log P.
    LogPotential = "log_potential",
    /// `potential.cu`: a scorer's share of log P.
    AddScaled = "add_scaled",
    /// `weights.cu`: log w and w.
    Weights = "importance_weights",
    /// `weights.cu`: log-probs under a mixture.
    MixLogProbs = "mix_log_probs",
    /// `weights.cu`: sums over one chunk of rows.
    WeightSums = "weight_sums",
    /// `weights.cu`: the chunks folded in order.
    FoldSums = "fold_sums",
    /// `log_prob.cu`: log-probs, a part of a warp per row, f32.
    LogProbPartF32 = "log_prob_part_f32",
    /// `log_prob.cu`: log-probs, a part of a warp per row, f16.
    LogProbPartF16 = "log_prob_part_f16",
    /// `log_prob.cu`: log-probs, a part of a warp per row, bf16.
    LogProbPartBf16 = "log_prob_part_bf16",
    /// `log_prob.cu`: log-probs, a warp per row, f32.
    LogProbWarpF32 = "log_prob_warp_f32",
    /// `log_prob.cu`: log-probs, a warp per row, f16.
    LogProbWarpF16 = "log_prob_warp_f16",
    /// `log_prob.cu`: log-probs, a warp per row, bf16.
    LogProbWarpBf16 = "log_prob_warp_bf16",
    /// `log_prob.cu`: log-probs, a block per row, f32.
    LogProbBlockF32 = "log_prob_block_f32",
    /// `log_prob.cu`: log-probs, a block per row, f16.
    LogProbBlockF16 = "log_prob_block_f16",
    /// `log_prob.cu`: log-probs, a block per row, bf16.
    LogProbBlockBf16 = "log_prob_block_bf16",
    /// `log_prob.cu`: log-probs and entropies, a part of a warp per row, f32.
    EntropyPartF32 = "entropy_part_f32",
    /// `log_prob.cu`: log-probs and entropies, a part of a warp per row, f16.
    EntropyPartF16 = "entropy_part_f16",
    /// `log_prob.cu`: log-probs and entropies, a part of a warp per row, bf16.
    EntropyPartBf16 = "entropy_part_bf16",
    /// `log_prob.cu`: log-probs and entropies, a warp per row, f32.
    EntropyWarpF32 = "entropy_warp_f32",
    /// `log_prob.cu`: log-probs and entropies, a warp per row, f16.
    EntropyWarpF16 = "entropy_warp_f16",
    /// `log_prob.cu`: log-probs and entropies, a warp per row, bf16.
    EntropyWarpBf16 = "entropy_warp_bf16",
    /// `log_prob.cu`: log-probs and entropies, a block per row, f32.
    EntropyBlockF32 = "entropy_block_f32",
    /// `log_prob.cu`: log-probs and entropies, a block per row, f16.
    EntropyBlockF16 = "entropy_block_f16",
    /// `log_prob.cu`: log-probs and entropies, a block per row, bf16.
    EntropyBlockBf16 = "entropy_block_bf16",
    /// `gradient.cu`: gradients, a part of a warp per row, f32.
    GradientPartF32 = "gradient_part_f32",
    /// `gradient.cu`: gradients, a part of a warp per row, f16.
    GradientPartF16 = "gradient_part_f16",
    /// `gradient.cu`: gradients, a part of a warp per row, bf16.
    GradientPartBf16 = "gradient_part_bf16",
    /// `gradient.cu`: gradients, a warp per row, f32.
    GradientWarpF32 = "gradient_warp_f32",
    /// `gradient.cu`: gradients, a warp per row, f16.
    GradientWarpF16 = "gradient_warp_f16",
    /// `gradient.cu`: gradients, a warp per row, bf16.
    GradientWarpBf16 = "gradient_warp_bf16",
    /// `gradient.cu`: gradients, a block per row, f32.
    GradientBlockF32 = "gradient_block_f32",
    /// `gradient.cu`: gradients, a block per row, f16.
    GradientBlockF16 = "gradient_block_f16",
    /// `gradient.cu`: gradients, a block per row, bf16.
    GradientBlockBf16 = "gradient_block_bf16",
    /// `gradient_cluster.cu`: gradients, a cluster of blocks per row, f32; from compute capability 9.0 on, as the next four.
    GradientClusterF32 = "gradient_cluster_f32",
    /// `gradient_cluster.cu`: gradients, a cluster of blocks per row, f16.
    GradientClusterF16 = "gradient_cluster_f16",
    /// `gradient_cluster.cu`: gradients, a cluster of blocks per row, bf16.
    GradientClusterBf16 = "gradient_cluster_bf16",
    /// `gradient_cluster.cu`: gradients in f16 of f32 logits, a cluster of blocks per row.
    GradientClusterF32F16 = "gradient_cluster_f32_f16",
    /// `gradient_cluster.cu`: gradients in bf16 of f32 logits, a cluster of blocks per row.
    GradientClusterF32Bf16 = "gradient_cluster_f32_bf16",
    /// `gradient.cu`: gradients of whole sequences, a warp per row, f32.
    GradientSequencesWarpF32 = "gradient_sequences_warp_f32",
    /// `gradient.cu`: gradients of whole sequences, a warp per row, f16.
    GradientSequencesWarpF16 = "gradient_sequences_warp_f16",
    /// `gradient.cu`: gradients of whole sequences, a warp per row, bf16.
    GradientSequencesWarpBf16 = "gradient_sequences_warp_bf16",
    /// `gradient.cu`: gradients of whole sequences, a block per row, f32.
    GradientSequencesBlockF32 = "gradient_sequences_block_f32",
    /// `gradient.cu`: gradients of whole sequences, a block per row, f16.
    GradientSequencesBlockF16 = "gradient_sequences_block_f16",
    /// `gradient.cu`: gradients of whole sequences, a block per row, bf16.
    GradientSequencesBlockBf16 = "gradient_sequences_block_bf16",
    /// `sampling.cu`: a token per row of f32 logits.
    SampleF32 = "sample_f32",
    /// `sampling.cu`: a token per row of f16 logits.
    SampleF16 = "sample_f16",
    /// `sampling.cu`: a token per row of bf16 logits.
    SampleBf16 = "sample_bf16",
    /// `linear.cu`: rows gathered or scattered.
    MoveRows = "move_rows",
    /// `linear.cu`: f32 to f16.
    NarrowF16 = "narrow_f16",
    /// `linear.cu`: f32 to bf16.
    NarrowBf16 = "narrow_bf16",
    /// `log_prob.cu`: sums over the rows of each sequence.
    SequenceSums = "sequence_sums",
}

/// The arguments of a launch, in order: views, buffers and plain numbers.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        &[$($crate::backend::gpu::Argument::from($argument)),*]
    };
}
pub(crate) use arguments;
