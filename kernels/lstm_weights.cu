// lstm_weights.cu -- the gradient of the LSTM's parameters: sums of outer products over all slots and steps.
//
// Every block of parameters is out[k, n] = sum over (step, slot) of left[k] * right[n], where right holds gate gradients
// (or the head's residual) and left a state, a one-hot input token, or 1 (a bias). A slab is 16 slots at one step: the
// depth of one mma; a few are on their way while others are multiplied. A block of threads owns 128 x 128 outputs, a warp
// 32 x 64 of them, and one run of slabs; runs are fixed by the number of slots, and their sums are folded in order, so that
// results do not depend on the machine.
#include "common/lstm.cuh"
#include "common/split.cuh"

enum Left : uint32_t { kState = 0, kOneHot = 1, kOnes = 2 };

// One block of parameters; src/models/lstm/gpu/weights.rs makes the table.
struct LstmWeightJob {
  const __nv_bfloat16* left;   // kState: [steps, capacity, 2 parts, rows]; else unused
  const __nv_bfloat16* right;  // [steps, capacity, 2 parts, columns]
  uint64_t out;                // where [rows, columns] lies in a run's sums
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
constexpr int kSlab = 4 * kOperand;  // [2 operands][2 parts][16][kStride]
constexpr int kTogether = 2;         // slabs between two barriers
constexpr int kStages = 3;           // so many slabs each, in shared memory

struct Outer {
  const LstmWeights& a;
  LstmWeightJob job;
  uint32_t k0, n0;
  __nv_bfloat16* slabs;       // [kStages][kTogether][kSlab]
  uint32_t tile, t, steps;    // the slab that is asked for next, and the steps of its tile
  uint32_t asked = 0, total;  // slabs

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

  // Asks for the next slabs, as far as there are some, and makes a group of their copies.
  __device__ __forceinline__ void fetch(uint32_t stage) {
#pragma unroll
    for (int i = 0; i < kTogether; i++)
      if (asked < total) fetch_slab(slabs + (stage * kTogether + i) * kSlab);
    dev::cp_async_commit();
  }
  __device__ __forceinline__ void fetch_slab(__nv_bfloat16* slab) {
    const uint32_t slot = threadIdx.x / 16, column = threadIdx.x % 16 * 8;
    const uint64_t row = uint64_t(t) * a.capacity + tile * 16 + slot;
    __nv_bfloat16* to = slab + slot * kStride + column;
    if (job.kind == kState) copy(to, job.left + row * 2 * job.rows, k0 + column, job.rows);
    else indicate(to, k0 + column, job.kind == kOneHot ? a.inputs[row] : 0);
    copy(to + 2 * kOperand, job.right + row * 2 * job.columns, n0 + column, job.columns);
    asked++;
    if (++t == steps) to_tile(tile + 1);
  }
  // To the first slab of the next tile that has some. One in use has, unless all its rows were rejected.
  __device__ __forceinline__ void to_tile(uint32_t next) {
    tile = next;
    t = 0;
    while (asked < total && (steps = a.tile_steps[tile]) == 0) tile++;
  }
  // Eight neighbours of both parts of a row; zeros beyond its end.
  static __device__ __forceinline__ void copy(__nv_bfloat16* to, const __nv_bfloat16* row, uint32_t column, uint32_t len) {
    const bool inside = column < len;
    const __nv_bfloat16* from = row + (inside ? column : 0);
    dev::cp_async16(to, from, inside ? 16 : 0);
    dev::cp_async16(to + kOperand, from + len, inside ? 16 : 0);
  }
  // The same of a row that is 1 at one place and 0 elsewhere.
  static __device__ __forceinline__ void indicate(__nv_bfloat16* to, uint32_t column, uint32_t hot) {
    const uint32_t one = Bfloats::bits(Bfloats::narrow(1));
    const auto two = [&](uint32_t first) { return (first == hot ? one : 0) | (first + 1 == hot ? one << 16 : 0); };
    *reinterpret_cast<uint4*>(to) = make_uint4(two(column), two(column + 2), two(column + 4), two(column + 6));
    *reinterpret_cast<uint4*>(to + kOperand) = make_uint4(0, 0, 0, 0);
  }

  // acc += left^T * right of one slab. The slab lies slot by slot, so both operands are read transposed. Warps whose rows
  // the job does not have, as it is a bias or a short table, have nothing to do.
  __device__ __forceinline__ void multiply(float (&acc)[2][8][4], const __nv_bfloat16* slab) {
    if (k0 + warp_row() >= job.rows) return;
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
    const uint32_t first = blockIdx.y * share, end = min(tiles, first + share);
    total = 0;
    for (uint32_t i = first; i < end; i++) total += a.tile_steps[i];
    to_tile(first);
    for (uint32_t stage = 0; stage + 1 < kStages; stage++) fetch(stage);
    float acc[2][8][4] = {};
    for (uint32_t done = 0, stage = 0; done < total; done += kTogether, stage = (stage + 1) % kStages) {
      dev::cp_async_wait<kStages - 2>();
      __syncthreads();  // the slabs have landed, and all have read those before, whose place is taken now
      fetch((stage + kStages - 1) % kStages);
#pragma unroll
      for (int i = 0; i < kTogether; i++)
        if (done + i < total) multiply(acc, slabs + (stage * kTogether + i) * kSlab);
    }
    write(acc);
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
