// lstm.cuh -- sizes and layouts that the LSTM's kernels share; src/models/lstm/gpu/layout.rs has the same.
//
// Parameters, float, in this order (U units padded to 16, O outputs padded to 16, a unit's gates in the order i, f, g, o):
//   layer 0    table [V, U, 4] (the one-hot input's row, bias included), recurrent [U, U, 4]
//   layer l    bias [U, 4], input [U, U, 4], recurrent [U, U, 4]
//   head       weight [U, O], bias [O]
// Padding is 0 and stays 0: a padded unit has h = c = 0, and nothing reads a padded output.
//
// Matrices are numbered: 0 is layer 0's recurrent one, 2l - 1 and 2l are layer l's input and recurrent ones.
//
// Packed weights are the B operands of mma.m16n8k16 in the order in which lanes hold them, so that a warp reads 512
// neighbouring bytes from the second-level cache straight into registers, with no trip through shared memory:
//   forward gates   [matrix][U/8 groups][U/16 steps][high, low][gates i and f, gates g and o][32 lanes] x 16 bytes, fp16
//   forward head    [O/8 tiles][U/16 steps][32 lanes] x 16 bytes (high and low), fp16
//   backward gates  [matrix][U/8 groups][4U/16 steps][32 lanes] x 16 bytes (high and low), bf16, transposed
//   backward head   [U/8 groups][O/16 steps][32 lanes] x 16 bytes (high and low), bf16, transposed
// For products of warpgroups forward gates are rows of A, a group's gates of a pair in turns, and backward ones
//   [matrix][U/16][4U/16 steps][high, low][32 lanes] x 16 bytes, the head's [U/16][O/16 steps][high, low][32 lanes].
// A group is 8 units with all four gates, so that one thread's accumulators hold everything a cell update needs.
#pragma once
#include "common/philox.cuh"

struct LstmSize {
  uint32_t layers, units, vocab, outputs;

  __device__ __forceinline__ uint32_t gates() const { return 4 * units; }
  __device__ __forceinline__ uint32_t groups() const { return units / 8; }
  __device__ __forceinline__ uint32_t steps() const { return units / 16; }
  __device__ __forceinline__ uint32_t matrices() const { return 2 * layers - 1; }
  __device__ __forceinline__ uint64_t matrix_len() const { return uint64_t(units) * gates(); }

  // Where the parameters lie, in floats.
  __device__ __forceinline__ uint64_t start(uint32_t layer) const {
    return layer == 0 ? 0 : uint64_t(vocab) * gates() + (layer - 1) * uint64_t(gates()) + (2 * layer - 1) * matrix_len();
  }
  __device__ __forceinline__ uint64_t matrix(uint32_t number) const {
    return uint64_t(vocab) * gates() + (number + 1) / 2 * uint64_t(gates()) + number * matrix_len();
  }
  __device__ __forceinline__ uint64_t head() const { return start(layers); }
  __device__ __forceinline__ uint64_t head_bias() const { return head() + uint64_t(units) * outputs; }

  // Where the packed weights lie, in pieces of 16 bytes.
  __device__ __forceinline__ uint64_t packed_matrix_len() const { return uint64_t(groups()) * steps() * 128; }
  __device__ __forceinline__ uint64_t packed_forward(uint32_t matrix) const { return matrix * packed_matrix_len(); }
  __device__ __forceinline__ uint64_t packed_backward(uint32_t matrix) const {
    return (matrices() + matrix) * packed_matrix_len();
  }
  __device__ __forceinline__ uint64_t packed_head() const { return 2 * matrices() * packed_matrix_len(); }
  __device__ __forceinline__ uint64_t packed_head_backward() const {
    return packed_head() + uint64_t(outputs / 8) * steps() * 32;
  }
  __device__ __forceinline__ uint64_t packed_len() const {
    return packed_head_backward() + uint64_t(groups()) * (outputs / 16) * 32;
  }
};

// Warps of a block: as many as registers allow. Elsewhere than on sm_90 ptxas finds fewer of them to do without spilling.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 100 != 9
#define LSTM_WARPS(most) 8
#else
#define LSTM_WARPS(most) most
#endif

// How workers share items: whole ones as long as there is one for each; those left over in PARTS, so that none waits for
// another with a whole item more. A job is an item or a part of one.
template <int PARTS> struct Shares {
  uint32_t worker, workers;
  // How many whole items a worker has, and how many jobs in all.
  __device__ __forceinline__ uint32_t whole(uint32_t items) const { return PARTS == 1 ? count(items) : items / workers; }
  __device__ __forceinline__ uint32_t count(uint32_t items) const {
    if (PARTS == 1) return (items + workers - 1 - worker) / workers;
    return whole(items) + (items % workers * PARTS + workers - 1 - worker) / workers;
  }
  // The item of the n-th job, and its part if it is not whole.
  __device__ __forceinline__ uint32_t item(uint32_t items, uint32_t n) const {
    const uint32_t rounds = PARTS == 1 ? n + 1 : whole(items);
    return n < rounds ? worker + n * workers : rounds * workers + job(n - rounds) / PARTS;
  }
  __device__ __forceinline__ uint32_t part(uint32_t items, uint32_t n) const { return job(n - whole(items)) % PARTS; }
  __device__ __forceinline__ uint32_t job(uint32_t n) const { return worker + n * workers; }
};

// The jobs of a warp: groups of 8 units, or parts of their rows.
template <int PARTS> struct WarpJobs {
  Shares<PARTS> shares;
  __device__ __forceinline__ WarpJobs() : shares{threadIdx.x / 32, blockDim.x / 32} {}
  __device__ __forceinline__ uint32_t whole(const LstmSize& size) const { return shares.whole(size.groups()); }
  __device__ __forceinline__ uint32_t count(const LstmSize& size) const { return shares.count(size.groups()); }
  __device__ __forceinline__ uint32_t group(const LstmSize& size, uint32_t n) const { return shares.item(size.groups(), n); }
  __device__ __forceinline__ uint32_t part(const LstmSize& size, uint32_t n) const { return shares.part(size.groups(), n); }
};

// A thread's place in a warp's mma tile: it holds rows g and g + 8, columns 2q and 2q + 1.
struct Lane {
  uint32_t lane, g, q;
  __device__ __forceinline__ Lane() : lane(threadIdx.x % 32), g(lane / 4), q(lane % 4) {}
};

// A few 1e-7 from exact by the documented bounds of __expf and __fdividef; exp overflows
// to +inf and the quotient to 0, never to NaN.
DEV_FN float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
DEV_FN float tanh_of(float x) { return 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x)); }

// In split precision as above; in plain 16 bits, whose own rounding is as large, in half of the special functions.
template <bool EXACT> struct Activation {
  static __device__ __forceinline__ float sigmoid(float x) { return ::sigmoid(x); }
  static __device__ __forceinline__ float tanh(float x) { return tanh_of(x); }
};
template <> struct Activation<false> {
  static __device__ __forceinline__ float sigmoid(float x) { return 0.5f * dev::tanh_approx(0.5f * x) + 0.5f; }
  static __device__ __forceinline__ float tanh(float x) { return dev::tanh_approx(x); }
};

// The A operand of one k16 step: 16 rows from `row`, 16 columns, of a plane in shared memory with `stride` values a row.
template <typename Part> DEV_FN void load_rows(uint32_t (&a)[4], const Part* plane, uint32_t stride) {
  const uint32_t lane = threadIdx.x % 32;
  dev::ldmatrix_x4(a, plane + (lane % 16) * stride + lane / 16 * 8);
}

// Where dropout masks are drawn from: each unit behind a layer is dropped when 16 random bits are below `limit`, else
// scaled by `scale` = 1 / (1 - rate) (Srivastava et al. 2014). A limit of 0 is no dropout.
struct Dropout {
  uint64_t seed, first;
  uint32_t purpose, limit;
  float scale;
  uint32_t unused;

  // The factors of units 8 group + 2q and 8 group + 2q + 1 of a layer: one Philox call serves 8 units.
  __device__ __forceinline__ float2 mask(const LstmSize& size, uint32_t row, uint32_t t, uint32_t layer, uint32_t group,
                                         uint32_t q) const {
    const uint4 words = philox(seed, first + row, t, purpose | (layer * size.units + group * 8) << 8);
    const uint32_t word = q == 0 ? words.x : q == 1 ? words.y : q == 2 ? words.z : words.w;
    return make_float2((word & 0xFFFF) < limit ? 0.0f : scale, word >> 16 < limit ? 0.0f : scale);
  }
};
