// lstm_warpgroup_weights.cu -- sums of outer products (common/lstm_outer.cuh) with products by warpgroups (sm_90a).
//
// The outputs are made turned round: each of two warpgroups has 64 columns of gate gradients, read transposed into registers, by
// all UNITS rows of `left`, in shared memory as [UNITS / 8][16 slots][8]. A network of 200 units has one such block of rows, so
// that each gate gradient is read once a matrix. Short tables and biases have blocks of kFew rows.
#include "common/lstm_outer.cuh"

#ifdef HAS_WARPGROUPS
constexpr int kFew = 32;  // rows: more products than they need would only be made for nothing

template <int UNITS> struct WarpgroupOuter : OuterPass<WarpgroupOuter<UNITS>> {
  using Pass = OuterPass<WarpgroupOuter>;
  using Pass::a, Pass::job, Pass::k0, Pass::n0;
  static constexpr int kRows = UNITS, kColumns = 128;
  static constexpr int kStride = kColumns + 8, kEight = 16 * 8 + 8;        // the last eight spread rows over the banks
  static constexpr int kRight = 16 * kStride, kLeft = UNITS / 8 * kEight;  // one part of an operand
  static constexpr int kSlab = 2 * (kRight + kLeft);                       // [2 parts] of right, [2 parts] of left
  float sums[UNITS / 2] = {};  // of each eight rows the thread's two of column g, then of column g + 8

  __device__ __forceinline__ WarpgroupOuter(const LstmWeights& a, const OuterJob& own, __nv_bfloat16* slabs) : Pass(a, own, slabs) {}

  // The first of the warp's 16 columns among the block's; whether the job has those of its warpgroup.
  __device__ __forceinline__ uint32_t warp_column() const { return threadIdx.x / 32 * 16; }
  __device__ __forceinline__ bool has_columns() const { return n0 + threadIdx.x / 128 * 64 < job.columns; }

  __device__ __forceinline__ void fetch_slab(__nv_bfloat16* slab, uint64_t row, bool there) const {
    const uint32_t slot = threadIdx.x / 16, column = threadIdx.x % 16 * 8;
    this->copy(slab + slot * kStride + column, kRight, job.right + (row + slot) * 2 * job.columns, n0 + column, job.columns, there);
    for (uint32_t i = threadIdx.x; i < UNITS / 8 * 16; i += blockDim.x) {
      const uint32_t slot = i / (UNITS / 8), eight = i % (UNITS / 8);
      this->copy_left(slab + 2 * kRight + eight * kEight + slot * 8, kLeft, row + slot, k0 + eight * 8, there);
    }
  }
  __device__ __forceinline__ void meet() const {
    dev::fence_async();
    __syncthreads();
  }

  // Sixteen columns of one part of `right` as an operand: they lie slot by slot, so they are read transposed.
  __device__ __forceinline__ uint4 load(const __nv_bfloat16* part) const {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t words[4];
    dev::ldmatrix_x4_trans(words, part + (lane % 8 + lane / 16 * 8) * kStride + warp_column() + lane / 8 % 2 * 8);
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  // sums += right^T * left of some slabs.
  __device__ __forceinline__ void multiply(const __nv_bfloat16* slabs) {
    if (!has_columns()) return;
    uint4 high[kTogether], low[kTogether];
#pragma unroll
    for (uint32_t i = 0; i < kTogether; i++) {
      high[i] = load(slabs + i * kSlab);
      low[i] = load(slabs + i * kSlab + kRight);
    }
    dev::wgmma_fence();
#pragma unroll
    for (uint32_t i = 0; i < kTogether; i++) multiply_slab(high[i], low[i], slabs + i * kSlab);
    dev::wgmma_commit();
    dev::wgmma_wait<0>();
    dev::wgmma_done(sums);
  }
  __device__ __forceinline__ void multiply_slab(const uint4& high, const uint4& low, const __nv_bfloat16* slab) {
    const uint64_t left = dev::wgmma_operand(slab + 2 * kRight, 128, kEight * 2);
    dev::wgmma_bf16_trans(sums, high, left + kLeft / 8);
    dev::wgmma_bf16_trans(sums, low, left);
    dev::wgmma_bf16_trans(sums, high, left);
  }

  __device__ __forceinline__ void write() const {
    const Lane at;
#pragma unroll
    for (int i = 0; i < UNITS / 2; i++)
      this->add(k0 + i / 4 * 8 + at.q * 2 + i % 2, n0 + warp_column() + i / 2 % 2 * 8 + at.g, sums[i]);
  }
};
#endif

// Grid: (blocks of all jobs, runs), 256 threads; shared memory as src/models/lstm/gpu/weights.rs says.
#ifdef HAS_WARPGROUPS
#define LSTM_WARPGROUP_WEIGHTS(name, UNITS)                                                        \
  extern "C" __global__ void __launch_bounds__(256, 1) name(const __grid_constant__ LstmWeights arguments) { \
    SHARED_DYN(__nv_bfloat16, slabs);                                                              \
    const OuterJob own(arguments);                                                                 \
    if (own.job.rows <= kFew) WarpgroupOuter<kFew>(arguments, own, slabs).run();                   \
    else WarpgroupOuter<UNITS>(arguments, own, slabs).run();                                       \
  }
#else
#define LSTM_WARPGROUP_WEIGHTS(name, UNITS) \
  extern "C" __global__ void name(const __grid_constant__ LstmWeights) { __trap(); }
#endif
LSTM_WARPGROUP_WEIGHTS(lstm_warpgroup_weights_64, 64)
LSTM_WARPGROUP_WEIGHTS(lstm_warpgroup_weights_128, 128)
LSTM_WARPGROUP_WEIGHTS(lstm_warpgroup_weights_208, 208)

EXPORT_KERNEL(lstm_warpgroup_weights_64)
EXPORT_KERNEL(lstm_warpgroup_weights_128)
EXPORT_KERNEL(lstm_warpgroup_weights_208)
