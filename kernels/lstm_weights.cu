// lstm_weights.cu -- sums of outer products (common/lstm_outer.cuh) with products by warps: a block of threads owns 128 x 128
// outputs, a warp 32 x 64 of them. On sm_90 the kernels of lstm_warpgroup_weights.cu take its place.
#include "common/lstm_outer.cuh"

constexpr int kOut = 128, kThreads = 256;
constexpr int kStride = kOut + 8, kOperand = 16 * kStride;

struct Outer : OuterPass<Outer> {
  static constexpr int kRows = kOut, kColumns = kOut;
  static constexpr int kSlab = 4 * kOperand;  // [2 operands][2 parts][16][kStride]
  float acc[2][8][4] = {};

  __device__ __forceinline__ Outer(const LstmWeights& a, __nv_bfloat16* slabs) : OuterPass(a, OuterJob(a), slabs) {}

  // Where the warp's outputs begin in those of the block.
  __device__ __forceinline__ uint32_t warp_row() const { return threadIdx.x / 64 * 32; }
  __device__ __forceinline__ uint32_t warp_column() const { return threadIdx.x / 32 % 2 * 64; }

  __device__ __forceinline__ void fetch_slab(__nv_bfloat16* slab, uint64_t row, bool there) const {
    const uint32_t slot = threadIdx.x / 16, column = threadIdx.x % 16 * 8;
    __nv_bfloat16* to = slab + slot * kStride + column;
    copy_left(to, kOperand, row + slot, k0 + column, there);
    copy(to + 2 * kOperand, kOperand, job.right + (row + slot) * 2 * job.columns, n0 + column, job.columns, there);
  }
  __device__ __forceinline__ void meet() const { __syncthreads(); }

  // acc += left^T * right of some slabs. A slab lies slot by slot, so both operands are read transposed. Warps whose rows
  // the job does not have, as it is a bias or a short table, have nothing to do.
  __device__ __forceinline__ void multiply(const __nv_bfloat16* slabs) {
    if (k0 + warp_row() >= job.rows) return;
#pragma unroll 1
    for (uint32_t i = 0; i < kTogether; i++) multiply_slab(slabs + i * kSlab);
  }
  __device__ __forceinline__ void multiply_slab(const __nv_bfloat16* slab) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t a_hi[2][4], a_lo[2][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t at = (lane % 8 + lane / 16 * 8) * kStride + warp_row() + half * 16 + lane / 8 % 2 * 8;
      dev::ldmatrix_x4_trans(a_hi[half], slab + at);
      dev::ldmatrix_x4_trans(a_lo[half], slab + kOperand + at);
    }
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
      const uint32_t at = 2 * kOperand + (lane % 16) * kStride + warp_column() + pair * 16 + lane / 16 * 8;
      uint32_t hi[4], lo[4];
      dev::ldmatrix_x4_trans(hi, slab + at);
      dev::ldmatrix_x4_trans(lo, slab + kOperand + at);
      const uint32_t hi0[2] = {hi[0], hi[1]}, hi1[2] = {hi[2], hi[3]}, lo0[2] = {lo[0], lo[1]}, lo1[2] = {lo[2], lo[3]};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        mma_split<Bfloats>(acc[half][2 * pair], a_hi[half], a_lo[half], hi0, lo0);
        mma_split<Bfloats>(acc[half][2 * pair + 1], a_hi[half], a_lo[half], hi1, lo1);
      }
    }
  }

  __device__ __forceinline__ void write() const {
    const Lane at;
#pragma unroll
    for (int tile = 0; tile < 8; tile++)
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const uint32_t k = k0 + warp_row() + part * 8 + at.g, n = n0 + warp_column() + tile * 8 + at.q * 2;
        add(k, n, acc[part / 2][tile][part % 2 * 2]);
        add(k, n + 1, acc[part / 2][tile][part % 2 * 2 + 1]);
      }
  }
};

// Grid: (blocks of all jobs, runs), 256 threads; shared memory as src/models/lstm/gpu/weights.rs says.
extern "C" __global__ void __launch_bounds__(kThreads, 2) lstm_weights(const __grid_constant__ LstmWeights arguments) {
  SHARED_DYN(__nv_bfloat16, slabs);
  Outer(arguments, slabs).run();
}

// gradient[len] = the sum over runs, in order. Any grid.
extern "C" __global__ void __launch_bounds__(256) lstm_fold(const float* sums, uint64_t len, uint32_t runs, float* gradient) {
  const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < len; at += stride) {
    float total = 0;
    for (uint32_t run = 0; run < runs; run++) total += sums[run * len + at];
    gradient[at] = total;
  }
}

EXPORT_KERNEL(lstm_weights)
EXPORT_KERNEL(lstm_fold)
