// lstm_backward.cu -- back-propagation through time with products by warps.
//
// A block owns 16 * TILES slots from their last step to the first. Gate gradients lie in shared memory as bf16 parts, the A
// operands of the products that send them to the step before and to the layer below; the same parts replace the kept
// activations in device memory, where lstm_weights.cu reads them. What a thread accumulates for a unit only that
// thread reads again, so those sums need no shared layout. On sm_90 the kernels of lstm_warpgroup_backward.cu take their place.
#include "common/lstm_back.cuh"
#include "common/reduce.cuh"
#include "common/status.cuh"
#include "common/stream.cuh"

// The order in which a warp takes its groups' transposed weights in one time step, four k16 steps a piece: from the top layer
// down, each group's own matrix before the one to the layer below, which layer 0 does not have.
struct BackwardWalk {
  const uint4* const& packed;  // references to the launch's argument, which takes no registers
  const LstmSize& size;
  WarpJobs<1> jobs;
  __device__ __forceinline__ BackwardWalk(const LstmBackward& a) : packed(a.packed), size(a.size) {}
  __device__ __forceinline__ uint32_t runs() const { return jobs.count(size) * size.matrices(); }
  __device__ __forceinline__ uint32_t pieces() const { return size.gates() / 64; }
  __device__ __forceinline__ const uint4* run(uint32_t n) const {
    const uint32_t pair = 2 * jobs.count(size), above = n / pair, k = n % pair;
    const uint32_t layer = size.layers - 1 - above;
    return layer == 0 ? weights(0, k) : weights(2 * layer - k % 2, k / 2);
  }
  // Of the warp's n-th group.
  __device__ __forceinline__ const uint4* weights(uint32_t matrix, uint32_t n) const {
    return packed + size.packed_backward(matrix) + uint64_t(jobs.group(size, n)) * (size.gates() / 16) * 32;
  }
};

template <int TILES> struct Backward : BackwardPass<Backward<TILES>, TILES> {
  using Pass = BackwardPass<Backward, TILES>;
  using Pass::a, Pass::at, Pass::warp, Pass::warps, Pass::row, Pass::gates, Pass::residual, Pass::kRows;
  using Pass::hidden_of, Pass::cell_of, Pass::below;
  Stream<4, 2, BackwardWalk> weights;

  __device__ __forceinline__ Backward(const LstmBackward& a, unsigned char* shared) : Pass(a, shared), weights(BackwardWalk(a)) {}

  // Rows are 8 values longer than their columns, which spreads them over the banks.
  static __device__ __forceinline__ uint32_t place(uint32_t local, uint32_t column, uint32_t columns) {
    return local * (columns + 8) + column;
  }
  static __device__ __forceinline__ uint32_t operand_len(uint32_t columns) { return kRows * (columns + 8); }
  __device__ __forceinline__ void meet() const { __syncthreads(); }

  // The thread's own sums of one tile.
  __device__ __forceinline__ float4* own(uint32_t which, uint32_t group, int tile) {
    return this->sums(which) + (group * TILES + tile) * 32 + at.lane;
  }

  // Sums of products by chain and kind, so that no product waits for the one before: a warp has few tiles, and a sum is 52
  // steps of three products deep at 200 units.
  struct Sums {
    float by[2][3][TILES][4] = {};
    __device__ __forceinline__ float operator()(int tile, int e) const {
      float sum = 0;
#pragma unroll
      for (int kind = 0; kind < 3; kind++) sum += by[0][kind][tile][e] + by[1][kind][tile][e];
      return sum;
    }
  };

  // sums += residual * weights of the head, both in two parts.
  __device__ __forceinline__ void multiply_head(Sums& sums, uint32_t group) {
    const uint32_t steps = a.size.outputs / 16;
    const uint4* packed = a.packed + a.size.packed_head_backward() + uint64_t(group) * steps * 32 + at.lane;
#pragma unroll 4
    for (uint32_t step = 0; step < steps; step++)
      add_step(sums.by[0], residual + step * 16, a.size.outputs, __ldg(packed + step * 32));
  }

  // sums += gate gradients * weights, which are the walk's next run, both in two parts.
  __device__ __forceinline__ void multiply(Sums& sums) {
    weights.each([&](uint32_t piece, const uint4(&w)[4]) {
#pragma unroll
      for (int i = 0; i < 4; i++) add_step(sums.by[i % 2], gates + (piece * 4 + i) * 16, a.size.gates(), w[i]);
    });
  }

  __device__ __forceinline__ void add_step(float (&sums)[3][TILES][4], const __nv_bfloat16* rows, uint32_t columns, uint4 w) {
    const uint32_t b_hi[2] = {w.x, w.y}, b_lo[2] = {w.z, w.w}, stride = columns + 8;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      uint32_t hi[4], lo[4];
      load_rows(hi, rows + tile * 16 * stride, stride);
      load_rows(lo, rows + operand_len(columns) + tile * 16 * stride, stride);
      Bfloats::mma(sums[0][tile], lo, b_hi);
      Bfloats::mma(sums[1][tile], hi, b_lo);
      Bfloats::mma(sums[2][tile], hi, b_hi);
    }
  }

  // Gate gradients of one layer at step t.
  __device__ __forceinline__ void differentiate(uint32_t layer, uint32_t t) {
    const bool top = layer + 1 == a.size.layers;
    for (uint32_t group = warp; group < a.size.groups(); group += warps) {
      Sums from_above;
      if (top) multiply_head(from_above, group);
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        float4 hidden = *own(hidden_of(layer), group, tile), more = make_float4(0, 0, 0, 0);
        if (!top) more = *own(below(), group, tile);
        float2 low = make_float2(1, 1), high = low;  // of rows g and g + 8
        if (a.dropout.limit) {
          low = a.dropout.mask(a.size, row[tile * 16 + at.g], t, layer, group, at.q);
          high = a.dropout.mask(a.size, row[tile * 16 + 8 + at.g], t, layer, group, at.q);
        }
        const float dh[4] = {hidden.x + (from_above(tile, 0) + more.x) * low.x,
                             hidden.y + (from_above(tile, 1) + more.y) * low.y,
                             hidden.z + (from_above(tile, 2) + more.z) * high.x,
                             hidden.w + (from_above(tile, 3) + more.w) * high.y};
        differentiate_tile(layer, t, group, tile, dh);
      }
    }
  }

  // Rows g and g + 8 of two neighbouring units.
  __device__ __forceinline__ void differentiate_tile(uint32_t layer, uint32_t t, uint32_t group, int tile, const float (&dh)[4]) {
    float4* cells = own(cell_of(layer), group, tile);
    float dc[4] = {cells->x, cells->y, cells->z, cells->w};
#pragma unroll
    for (int e = 0; e < 4; e++)
      this->differentiate_unit(layer, t, tile * 16 + e / 2 * 8 + at.g, group * 8 + at.q * 2 + e % 2, dh[e], dc[e]);
    *cells = make_float4(dc[0], dc[1], dc[2], dc[3]);
  }

  // Sends the layer's gate gradients to its own state of the step before and to the layer below.
  __device__ __forceinline__ void send(uint32_t layer) {
    for (uint32_t group = warp; group < a.size.groups(); group += warps) {
      send_to(hidden_of(layer), group);
      if (layer > 0) send_to(below(), group);
    }
  }
  __device__ __forceinline__ void send_to(uint32_t which, uint32_t group) {
    Sums sums;
    multiply(sums);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
      *own(which, group, tile) = make_float4(sums(tile, 0), sums(tile, 1), sums(tile, 2), sums(tile, 3));
  }
};

// Grid: ceil(slots / (16 * TILES)) blocks of up to WARPS warps, LSTM_WARPS(WARPS) of them; shared memory as
// src/models/lstm/gpu/backward.rs sums it up.
#define LSTM_BACKWARD(name, TILES, WARPS)                                                  \
  extern "C" __global__ void __launch_bounds__(32 * LSTM_WARPS(WARPS), 1)                  \
      name(const __grid_constant__ LstmBackward arguments) {                               \
    SHARED_DYN(unsigned char, shared);                                                     \
    if (arguments.first_slot + blockIdx.x * 16 * TILES < *arguments.count)                 \
      Backward<TILES>(arguments, shared).run();                                            \
  }
LSTM_BACKWARD(lstm_backward_1, 1, 16)
LSTM_BACKWARD(lstm_backward_2, 2, 12)

// The rows that have a gradient, in order: order[0 .. *count]. A row of weight 0 is left out unless `all`, and its
// log-prob is NaN. One block.
extern "C" __global__ void __launch_bounds__(1024)
lstm_rows(const float* weights, uint32_t rows, uint32_t all, uint32_t* order, uint32_t* count, double* log_probs,
          unsigned long long* status) {
  uint32_t total = 0;
  for (uint32_t first = 0; first < rows; first += blockDim.x) {
    const uint32_t row = first + threadIdx.x;
    const float weight = row < rows ? weights[row] : 0.0f;
    if (!isfinite(weight)) note_fault(status, row, kBadWeight);
    const bool wanted = row < rows && (all || weight != 0.0f);
    const Rank rank = block_rank(wanted);
    if (wanted) order[total + rank.before] = row;
    else if (row < rows) log_probs[row] = NAN;
    total += rank.all;
  }
  if (threadIdx.x == 0) *count = total;
}

EXPORT_KERNEL(lstm_backward_1)
EXPORT_KERNEL(lstm_backward_2)
EXPORT_KERNEL(lstm_rows)
