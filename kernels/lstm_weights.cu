// lstm_weights.cu -- the gradient of the LSTM's parameters: sums of outer products over all slots and steps.
//
// Every block of parameters is out[k, n] = sum over (step, slot) of left[k] * right[n], where right holds gate gradients
// (or the head's residual) and left a state, a one-hot input token, or 1 (a bias). A slab is 16 slots at one step: the
// depth of one mma. A block of threads owns 128 x 128 outputs, a warp 32 x 64 of them, and one run of slabs; runs are fixed by the number of
// slots, and their sums are folded in order, so that results do not depend on the machine.
#include "common/lstm.cuh"
#include "common/split.cuh"

enum Left : uint32_t { kState = 0, kOneHot = 1, kOnes = 2 };

// One block of parameters; src/models/lstm/gpu/weights.rs makes the table.
struct LstmWeightJob {
  const float* left;   // kState: [steps, capacity, rows]; else unused
  const float* right;  // [steps, capacity, columns]
  uint64_t out;        // where [rows, columns] lies in a run's sums
  uint32_t kind, rows, columns, first_block;  // blocks before this job's
};

struct LstmWeights {
  const LstmWeightJob* jobs;
  const uint32_t* count;
  const uint32_t* tile_steps;
  const uint32_t* inputs;  // [steps, capacity]
  float* sums;             // [runs, parameters]
  uint64_t parameters;
  uint32_t job_count, capacity, first_slot, accumulate;
};
static_assert(sizeof(LstmWeightJob) == 40 && sizeof(LstmWeights) == 64, "src/models/lstm/gpu/weights.rs");

constexpr int kOut = 128, kThreads = 256;
constexpr int kStride = kOut + 8, kOperand = 16 * kStride;
constexpr int kSlab = 2 * kOperand;  // one part of a slab in shared memory: left, then right

struct Outer {
  const LstmWeights& a;
  LstmWeightJob job;
  uint32_t k0, n0;
  __nv_bfloat16* slabs;  // [2 buffers][2 parts][left, right][16][kStride]
  float left[8], right[8];

  __device__ __forceinline__ Outer(const LstmWeights& a, __nv_bfloat16* slabs) : a(a), slabs(slabs) {
    uint32_t number = 0;
    while (number + 1 < a.job_count && a.jobs[number + 1].first_block <= blockIdx.x) number++;
    job = a.jobs[number];
    const uint32_t block = blockIdx.x - job.first_block, across = (job.columns + kOut - 1) / kOut;
    k0 = block / across * kOut;
    n0 = block % across * kOut;
  }

  // Where the warp's outputs begin in those of the block.
  __device__ __forceinline__ uint32_t warp_row() const { return threadIdx.x / 64 * 32; }
  __device__ __forceinline__ uint32_t warp_column() const { return threadIdx.x / 32 % 2 * 64; }

  // Reads one slab into registers: 8 neighbours of left and of right per thread.
  __device__ __forceinline__ void fetch(uint32_t t, uint32_t tile) {
    const uint64_t slot = uint64_t(t) * a.capacity + tile * 16 + threadIdx.x / 16;
    const uint32_t k = k0 + threadIdx.x % 16 * 8, n = n0 + threadIdx.x % 16 * 8;
    if (job.kind == kState) {
      read(left, job.left + slot * job.rows + k, k < job.rows);
    } else {
      const uint32_t hot = job.kind == kOneHot ? a.inputs[slot] : 0;
#pragma unroll
      for (int i = 0; i < 8; i++) left[i] = k + i == hot ? 1.0f : 0.0f;
    }
    read(right, job.right + slot * job.columns + n, n < job.columns);
  }
  static __device__ __forceinline__ void read(float (&to)[8], const float* from, bool inside) {
    const float4 zero = make_float4(0, 0, 0, 0), *eight = reinterpret_cast<const float4*>(from);
    const float4 one = inside ? eight[0] : zero, two = inside ? eight[1] : zero;
    to[0] = one.x, to[1] = one.y, to[2] = one.z, to[3] = one.w;
    to[4] = two.x, to[5] = two.y, to[6] = two.z, to[7] = two.w;
  }

  // Writes the registers to a buffer in two parts.
  __device__ __forceinline__ void store(uint32_t buffer) {
    __nv_bfloat16* to = slabs + buffer * 2 * kSlab + threadIdx.x / 16 * kStride + threadIdx.x % 16 * 8;
    write_parts(to, left);
    write_parts(to + kOperand, right);
  }
  static __device__ __forceinline__ void write_parts(__nv_bfloat16* to, const float (&from)[8]) {
    Pair pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pair[i] = split_pair<Bfloats>(from[2 * i], from[2 * i + 1]);
    *reinterpret_cast<uint4*>(to) = make_uint4(pair[0].hi, pair[1].hi, pair[2].hi, pair[3].hi);
    *reinterpret_cast<uint4*>(to + kSlab) = make_uint4(pair[0].lo, pair[1].lo, pair[2].lo, pair[3].lo);
  }

  // acc += left^T * right of one slab. The slab lies slot by slot, so both operands are read transposed. Warps whose rows
  // the job does not have, as it is a bias or a short table, have nothing to do.
  __device__ __forceinline__ void multiply(float (&acc)[2][8][4], uint32_t buffer) {
    if (k0 + warp_row() >= job.rows) return;
    const uint32_t lane = threadIdx.x % 32;
    const __nv_bfloat16* slab = slabs + buffer * 2 * kSlab;
    uint32_t a_hi[2][4], a_lo[2][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t at = (lane % 8 + lane / 16 * 8) * kStride + warp_row() + half * 16 + lane / 8 % 2 * 8;
      dev::ldmatrix_x4_trans(a_hi[half], slab + at);
      dev::ldmatrix_x4_trans(a_lo[half], slab + kSlab + at);
    }
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
      const uint32_t at = kOperand + (lane % 16) * kStride + warp_column() + pair * 16 + lane / 16 * 8;
      uint32_t hi[4], lo[4];
      dev::ldmatrix_x4_trans(hi, slab + at);
      dev::ldmatrix_x4_trans(lo, slab + kSlab + at);
      const uint32_t hi0[2] = {hi[0], hi[1]}, hi1[2] = {hi[2], hi[3]}, lo0[2] = {lo[0], lo[1]}, lo1[2] = {lo[2], lo[3]};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        mma_split<Bfloats>(acc[half][2 * pair], a_hi[half], a_lo[half], hi0, lo0);
        mma_split<Bfloats>(acc[half][2 * pair + 1], a_hi[half], a_lo[half], hi1, lo1);
      }
    }
  }

  // The sums of this launch's outputs, added to those of the launch before where there is one.
  __device__ __forceinline__ void write(const float (&acc)[2][8][4]) {
    const Lane at;
    float* out = a.sums + blockIdx.y * a.parameters + job.out;
#pragma unroll
    for (int tile = 0; tile < 8; tile++)
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const uint32_t k = k0 + warp_row() + part * 8 + at.g, n = n0 + warp_column() + tile * 8 + at.q * 2;
        if (k >= job.rows || n >= job.columns) continue;
        const float* sum = acc[part / 2][tile] + part % 2 * 2;
        float2* to = reinterpret_cast<float2*>(out + uint64_t(k) * job.columns + n);
        const float2 old = a.accumulate ? *to : make_float2(0, 0);
        *to = make_float2(old.x + sum[0], old.y + sum[1]);
      }
  }

  __device__ __forceinline__ void run() {
    const uint32_t used = *a.count > a.first_slot ? min(*a.count - a.first_slot, a.capacity) : 0;
    const uint32_t tiles = (used + 15) / 16, share = (tiles + gridDim.y - 1) / gridDim.y;
    const uint32_t end = min(tiles, (blockIdx.y + 1) * share);
    uint32_t tile = blockIdx.y * share, t = 0, buffer = 0;
    float acc[2][8][4] = {};
    // A tile in use has at least one step, unless all its rows were rejected.
    while (tile < end && a.tile_steps[tile] == 0) tile++;
    if (tile < end) fetch(t, tile);
    while (tile < end) {
      store(buffer);
      __syncthreads();
      t++;
      while (tile < end && t >= a.tile_steps[tile]) tile++, t = 0;
      if (tile < end) fetch(t, tile);
      multiply(acc, buffer);
      buffer ^= 1;  // the other buffer was read before the barrier above
    }
    write(acc);
  }
};

// Grid: (blocks of all jobs, runs), 256 threads.
extern "C" __global__ void __launch_bounds__(kThreads) lstm_weights(const __grid_constant__ LstmWeights arguments) {
  SHARED(uint4, slabs, [4 * kSlab / 8]);  // ldmatrix wants 16-byte rows
  Outer(arguments, reinterpret_cast<__nv_bfloat16*>(slabs)).run();
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
