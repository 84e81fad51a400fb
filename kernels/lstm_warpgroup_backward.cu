// lstm_warpgroup_backward.cu -- back-propagation through time with products by warpgroups (sm_90a).
//
// As in lstm_warpgroup.cu products are the other way round: weights from registers, 64 units at a time, by the gate gradients of
// all rows of the block, in shared memory as [columns / 8][rows][8]. A warp has 16 units of those 64, of one of the two matrices
// that a layer's gradients go through: rows g and g + 8 of its sums are units, columns the block's rows.
#include "common/lstm_back.cuh"
#include "common/stream.cuh"

#ifdef HAS_WARPGROUPS
// A warpgroup's products with a layer's gradients: its own matrix's units, 16 a warp, and behind them those of the matrix to the
// layer below, which layer 0 does not have.
struct SendJobs {
  uint32_t warpgroup, warpgroups;
  __device__ __forceinline__ SendJobs() : warpgroup(threadIdx.x / 128), warpgroups(blockDim.x / 128) {}
  static __device__ __forceinline__ uint32_t tiles(const LstmSize& size, uint32_t layer) {
    return size.units / 16 * (layer > 0 ? 2 : 1);
  }
  __device__ __forceinline__ uint32_t count(const LstmSize& size, uint32_t layer) const {
    return ((tiles(size, layer) + 3) / 4 + warpgroups - 1 - warpgroup) / warpgroups;
  }
  // The warp's tile of 16 units in the n-th; where there is none it multiplies the last one for nothing.
  __device__ __forceinline__ uint32_t number(uint32_t n) const { return (warpgroup + n * warpgroups) * 4 + threadIdx.x / 32 % 4; }
  __device__ __forceinline__ uint32_t tile(const LstmSize& size, uint32_t layer, uint32_t n) const {
    return min(number(n), tiles(size, layer) - 1);
  }
};

// The order in which a warp takes transposed weights in one time step, two k16 steps a piece: from the top layer down.
struct WarpgroupBackwardWalk {
  const uint4* const& packed;  // references to the launch's argument, which takes no registers
  const LstmSize& size;
  SendJobs jobs;
  __device__ __forceinline__ WarpgroupBackwardWalk(const LstmBackward& a) : packed(a.packed), size(a.size) {}
  __device__ __forceinline__ uint32_t runs() const { return (size.layers - 1) * jobs.count(size, 1) + jobs.count(size, 0); }
  __device__ __forceinline__ uint32_t pieces() const { return size.gates() / 32; }
  __device__ __forceinline__ const uint4* run(uint32_t n) const {
    uint32_t layer = size.layers - 1;
    for (; layer > 0 && n >= jobs.count(size, layer); layer--) n -= jobs.count(size, 1);
    const uint32_t tile = jobs.tile(size, layer, n), own = size.units / 16;
    const uint32_t matrix = 2 * layer - (tile < own ? 0 : 1);
    return packed + size.packed_backward(matrix) + uint64_t(tile % own) * (size.gates() / 16) * 64;
  }
};

template <int TILES> struct WarpgroupBackward : BackwardPass<WarpgroupBackward<TILES>, TILES> {
  using Pass = BackwardPass<WarpgroupBackward, TILES>;
  using Pass::a, Pass::at, Pass::row, Pass::gates, Pass::residual, Pass::kRows, Pass::hidden_of, Pass::cell_of, Pass::below;
  static constexpr uint32_t kEight = kRows * 8 + 8;  // values of eight columns; the last eight spread them over the banks
  using Sums = float[8 * TILES];                     // of each eight rows the thread's two of unit g, then of unit g + 8
  const SendJobs jobs;
  Stream<4, 2, WarpgroupBackwardWalk, true> weights;

  __device__ __forceinline__ WarpgroupBackward(const LstmBackward& a, unsigned char* shared)
      : Pass(a, shared), weights(WarpgroupBackwardWalk(a)) {}

  static __device__ __forceinline__ uint32_t place(uint32_t local, uint32_t column, uint32_t) {
    return column / 8 * kEight + local * 8 + column % 8;
  }
  static __device__ __forceinline__ uint32_t operand_len(uint32_t columns) { return columns / 8 * kEight; }
  __device__ __forceinline__ void meet() const {
    dev::fence_async();
    __syncthreads();
  }

  // The thread's own sums of 16 units and eight rows: rows 2q and 2q + 1 of unit g, then of unit g + 8.
  __device__ __forceinline__ float4* own(uint32_t which, uint32_t tile, int eight) {
    return this->sums(which) + (tile * 2 * TILES + eight) * 32 + at.lane;
  }

  // One k16 step: sums += weights * operand, both in two parts.
  __device__ __forceinline__ void add_step(Sums& sums, const uint4& high, const uint4& low, uint64_t operand, uint32_t columns) {
    const uint64_t low_operand = operand + operand_len(columns) / 8;
    dev::wgmma_bf16(sums, high, low_operand);
    dev::wgmma_bf16(sums, low, operand);
    dev::wgmma_bf16(sums, high, operand);
  }
  static __device__ __forceinline__ uint64_t operand_of(const __nv_bfloat16* first) {
    return dev::wgmma_operand(first, kEight * 2, 128);
  }
  static constexpr uint32_t kStep = 2 * kEight / 8;  // from one k16 step of an operand to the next, in 16 bytes

  // sums += residual * weights of the head.
  __device__ __forceinline__ void multiply_head(Sums& sums, uint32_t tile) {
    const uint32_t steps = a.size.outputs / 16;
    const uint4* packed = a.packed + a.size.packed_head_backward() + uint64_t(tile) * steps * 64 + at.lane;
#pragma unroll 1
    for (uint32_t step = 0; step < steps; step++) {
      const uint4 high = __ldg(packed + step * 64), low = __ldg(packed + step * 64 + 32);
      dev::wgmma_fence();
      add_step(sums, high, low, operand_of(residual) + step * kStep, a.size.outputs);
      dev::wgmma_commit();
      dev::wgmma_wait<0>();
    }
    dev::wgmma_done(sums);
  }

  // sums += gate gradients * weights, which are the walk's next run.
  __device__ __forceinline__ void multiply(Sums& sums) {
    const uint64_t operand = operand_of(gates);
    weights.each([&](uint32_t piece, const uint4(&w)[4]) {
      dev::wgmma_fence();
      add_step(sums, w[0], w[1], operand + piece * 2 * kStep, a.size.gates());
      add_step(sums, w[2], w[3], operand + (piece * 2 + 1) * kStep, a.size.gates());
      dev::wgmma_commit();
    });
    dev::wgmma_done(sums);
  }

  // Gate gradients of one layer at step t, 16 units a warp. What the top layer gets of the head takes the way of what others get
  // of the layer above.
  __device__ __forceinline__ void differentiate(uint32_t layer, uint32_t t) {
    const uint32_t count = jobs.count(a.size, 0);
    for (uint32_t n = 0; n < count; n++) {
      const uint32_t tile = jobs.tile(a.size, 0, n);
      const bool is_there = jobs.number(n) < jobs.tiles(a.size, 0);
      if (layer + 1 == a.size.layers) {
        Sums sums = {};
        multiply_head(sums, tile);
        if (is_there) put(sums, below(), tile);
      }
      if (!is_there) continue;
#pragma unroll 1
      for (int eight = 0; eight < 2 * TILES; eight++) differentiate_eight(layer, t, tile, eight);
    }
  }

  // Rows 2q and 2q + 1 of eight, of units g and g + 8 of 16.
  __device__ __forceinline__ void differentiate_eight(uint32_t layer, uint32_t t, uint32_t tile, int eight) {
    const float4 sent = *own(hidden_of(layer), tile, eight), more = *own(below(), tile, eight);
    float4* cells = own(cell_of(layer), tile, eight);
    const float hidden[4] = {sent.x, sent.y, sent.z, sent.w}, above[4] = {more.x, more.y, more.z, more.w};
    float dc[4] = {cells->x, cells->y, cells->z, cells->w};
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const uint32_t local = eight * 8 + at.q * 2 + e % 2, group = tile * 2 + e / 2;
      float mask = 1;
      if (a.dropout.limit) {
        const float2 two = a.dropout.mask(a.size, row[local], t, layer, group, at.g / 2);
        mask = at.g % 2 ? two.y : two.x;
      }
      this->differentiate_unit(layer, t, local, group * 8 + at.g, hidden[e] + above[e] * mask, dc[e]);
    }
    *cells = make_float4(dc[0], dc[1], dc[2], dc[3]);
  }

  // Sends the layer's gate gradients to its own state of the step before and to the layer below.
  __device__ __forceinline__ void send(uint32_t layer) {
    const uint32_t count = jobs.count(a.size, layer), tiles = a.size.units / 16;
    for (uint32_t n = 0; n < count; n++) {
      Sums sums = {};
      multiply(sums);
      const uint32_t tile = jobs.number(n);
      if (tile < jobs.tiles(a.size, layer)) put(sums, tile < tiles ? hidden_of(layer) : below(), tile % tiles);
    }
  }
  __device__ __forceinline__ void put(const Sums& sums, uint32_t which, uint32_t tile) {
#pragma unroll
    for (int eight = 0; eight < 2 * TILES; eight++)
      *own(which, tile, eight) = make_float4(sums[eight * 4], sums[eight * 4 + 1], sums[eight * 4 + 2], sums[eight * 4 + 3]);
  }
};
#endif

// Grid: ceil(slots / (16 * TILES)) blocks of up to four warpgroups; shared memory as src/models/lstm/gpu/backward.rs sums it up.
#ifdef HAS_WARPGROUPS
#define LSTM_WARPGROUP_BACKWARD(name, TILES)                                                       \
  extern "C" __global__ void __launch_bounds__(512, 1) name(const __grid_constant__ LstmBackward arguments) { \
    SHARED_DYN(unsigned char, shared);                                                             \
    if (arguments.first_slot + blockIdx.x * 16 * TILES < *arguments.count)                         \
      WarpgroupBackward<TILES>(arguments, shared).run();                                           \
  }
#else
#define LSTM_WARPGROUP_BACKWARD(name, TILES) \
  extern "C" __global__ void name(const __grid_constant__ LstmBackward) { __trap(); }
#endif
LSTM_WARPGROUP_BACKWARD(lstm_warpgroup_backward_1, 1)
LSTM_WARPGROUP_BACKWARD(lstm_warpgroup_backward_2, 2)
LSTM_WARPGROUP_BACKWARD(lstm_warpgroup_backward_4, 4)

EXPORT_KERNEL(lstm_warpgroup_backward_1)
EXPORT_KERNEL(lstm_warpgroup_backward_2)
EXPORT_KERNEL(lstm_warpgroup_backward_4)
