// lstm_outer.cuh -- the gradient of the LSTM's parameters as sums of outer products: which a block makes, and its way through
// slots and steps. How slabs are multiplied is what the kernels differ in.
//
// Every block of parameters is out[k, n] = sum over (step, slot) of left[k] * right[n], where right holds gate gradients
// (or the head's residual) and left a state, a one-hot input token, or 1 (a bias). A slab is 16 slots at one step: the
// depth of one product; a few are on their way while others are multiplied. A block of threads owns some outputs and one run of
// slabs; runs are fixed by the number of slots, and their sums are folded in order, so that results do not depend on how many
// multiprocessors there are.
#pragma once
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

constexpr int kTogether = 2;  // slabs between two barriers
constexpr int kStages = 3;    // so many slabs each, in shared memory

// The job that this block of threads has a part in.
struct OuterJob {
  LstmWeightJob job;
  uint32_t block;  // its number among the job's
  __device__ __forceinline__ explicit OuterJob(const LstmWeights& a) {
    uint32_t number = 0;
    while (number + 1 < a.job_count && a.jobs[number + 1].first_block <= blockIdx.x) number++;
    job = a.jobs[number];
    block = blockIdx.x - job.first_block;
  }
};

// Products, which derives from this, has
//   kRows, kColumns: outputs of a block;  kSlab: values of a slab in shared memory;
//   fetch_slab(slab, row, there): asks for the slab whose first slot lies in `row` of the kept ones, or for zeros;
//   meet(): what has been copied is there for all;
//   multiply(slabs): kTogether of them;  write().
template <typename Products> struct OuterPass {
  const LstmWeights& a;
  const LstmWeightJob job;
  uint32_t k0, n0;            // the first of the block's outputs
  __nv_bfloat16* slabs;       // [kStages][kTogether][kSlab]
  uint32_t tile, t, steps;    // the slab that is asked for next, and the steps of its tile
  uint32_t asked = 0, total;  // slabs

  __device__ __forceinline__ OuterPass(const LstmWeights& a, const OuterJob& own, __nv_bfloat16* slabs)
      : a(a), job(own.job), slabs(slabs) {
    const uint32_t across = (job.columns + Products::kColumns - 1) / Products::kColumns;
    k0 = own.block / across * Products::kRows;
    n0 = own.block % across * Products::kColumns;
  }
  __device__ __forceinline__ Products& products() { return static_cast<Products&>(*this); }

  // Asks for the next slabs, as far as there are some, and makes a group of their copies. With the last one comes one of zeros
  // where they are not a whole group.
  __device__ __forceinline__ void fetch(uint32_t stage) {
#pragma unroll
    for (int i = 0; i < kTogether; i++) {
      const bool there = asked < total;
      if (i == 0 && !there) break;
      products().fetch_slab(slabs + (stage * kTogether + i) * Products::kSlab, there ? uint64_t(t) * a.capacity + tile * 16 : 0, there);
      asked += there;
      if (there && ++t == steps) to_tile(tile + 1);
    }
    dev::cp_async_commit();
  }
  // To the first slab of the next tile that has some. One in use has, unless all its rows were rejected.
  __device__ __forceinline__ void to_tile(uint32_t next) {
    tile = next;
    t = 0;
    while (asked < total && (steps = a.tile_steps[tile]) == 0) tile++;
  }

  // Eight neighbours of both parts of a row, `apart` values from each other; zeros beyond its len.
  static __device__ __forceinline__ void copy(__nv_bfloat16* to, uint32_t apart, const __nv_bfloat16* row, uint32_t column, uint32_t len,
                                                  bool there) {
    const bool inside = there && column < len;
    const __nv_bfloat16* from = row + (inside ? column : 0);
    dev::cp_async16(to, from, inside ? 16 : 0);
    dev::cp_async16(to + apart, from + len, inside ? 16 : 0);
  }
  // The same of `left`: a state, or a row that is 1 at one place and 0 elsewhere.
  __device__ __forceinline__ void copy_left(__nv_bfloat16* to, uint32_t apart, uint64_t row, uint32_t column, bool there) const {
    if (job.kind == kState) return copy(to, apart, job.left + row * 2 * job.rows, column, job.rows, there);
    const uint32_t hot = job.kind == kOneHot ? a.inputs[row] : 0, one = Bfloats::bits(Bfloats::narrow(1));
    const auto two = [&](uint32_t first) { return (first == hot ? one : 0) | (first + 1 == hot ? one << 16 : 0); };
    dev::store_operand(reinterpret_cast<uint4*>(to), make_uint4(two(column), two(column + 2), two(column + 4), two(column + 6)));
    dev::store_operand(reinterpret_cast<uint4*>(to + apart), make_uint4(0, 0, 0, 0));
  }

  // One value of the launch's outputs, added to that of the launch before where there is one.
  __device__ __forceinline__ void add(uint32_t k, uint32_t n, float sum) const {
    if (k >= job.rows || n >= job.columns) return;
    float* to = a.sums + blockIdx.y * a.parameters + job.out + uint64_t(k) * job.columns + n;
    *to = a.accumulate ? *to + sum : sum;
  }

  __device__ __forceinline__ void run() {
    const uint32_t used = *a.count > a.first_slot ? min(*a.count - a.first_slot, a.capacity) : 0;
    const uint32_t tiles = (used + 15) / 16, share = (tiles + gridDim.y - 1) / gridDim.y;
    const uint32_t first = blockIdx.y * share, end = min(tiles, first + share);
    total = 0;
    for (uint32_t i = first; i < end; i++) total += a.tile_steps[i];
    to_tile(first);
    for (uint32_t stage = 0; stage + 1 < kStages; stage++) fetch(stage);
    for (uint32_t done = 0, stage = 0; done < total; done += kTogether, stage = (stage + 1) % kStages) {
      dev::cp_async_wait<kStages - 2>();
      products().meet();  // the slabs have landed, and all have read those before, whose place is taken now
      fetch((stage + kStages - 1) % kStages);
      products().multiply(slabs + stage * kTogether * Products::kSlab);
    }
    products().write();
  }
};
