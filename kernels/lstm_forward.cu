// lstm_forward.cu -- one persistent kernel that samples whole batches from the first token to EOS, scores given ones,
// or scores them and keeps what back-propagation needs. What it samples it also takes a feature table through, if asked.
//
// A block owns 16 * TILES sequences from start to end. Hidden states stay in shared memory as fp16 parts (the A operands),
// cells in shared memory or, where that is too small, in a scratch buffer that the second-level cache holds; only the
// training mode writes states out. Weights come packed from the second-level cache into registers: the block's warps share
// out the groups of 8 units, so no weight is read twice by a block, and there is no barrier inside a layer. On sm_90 the kernels
// of lstm_warpgroup.cu take their place.
//
// Work per step and block: 2 * 16 * TILES * (weights) operations, three times that when SPLIT; bytes from the
// second-level cache: 2 (SPLIT: 4) per weight. See kernels/README.md for what that predicts.
#include "common/lstm_pass.cuh"
#include "common/stream.cuh"

// KEEP is the training mode, by itself as what it keeps takes registers.
template <int TILES, bool SPLIT, bool KEEP, int AHEAD>
struct Forward : LstmPass<Forward<TILES, SPLIT, KEEP, AHEAD>, TILES, 1, SPLIT, KEEP> {
  using Pass = LstmPass<Forward, TILES, 1, SPLIT, KEEP>;
  using Pass::a, Pass::at, Pass::rows, Pass::kParts, Pass::cell, Pass::row_len, Pass::plane_len;
  static constexpr uint32_t kPadding = 8;  // spreads rows over the banks
  using Jobs = WarpJobs<TILES>;            // a group that is left over goes by tiles
  const Jobs jobs;
  Stream<2 * kParts, AHEAD, ForwardWalk<Jobs>> weights;

  __device__ __forceinline__ Forward(const LstmForward& a, unsigned char* shared)
      : Pass(a, shared), weights(ForwardWalk<Jobs>(a, jobs)) {}

  __device__ __forceinline__ uint32_t tile_of(uint32_t tile) const { return tile * 16 * row_len(); }
  __device__ __forceinline__ void load(uint32_t (&operand)[4], const __half* states, uint32_t step) const {
    load_rows(operand, states + step * 16, row_len());
  }
  __device__ __forceinline__ void meet() const { __syncthreads(); }

  // One k16 step of one group and N tiles: acc += states * weights, all gates.
  template <int N>
  __device__ __forceinline__ void multiply_step(float (&acc)[N][4][4], const __half* states, uint32_t step, const uint4 (&w)[2 * kParts]) {
    const uint32_t high[4][2] = {{w[0].x, w[0].y}, {w[0].z, w[0].w}, {w[1].x, w[1].y}, {w[1].z, w[1].w}};
    const uint4 c = w[kParts], d = w[2 * kParts - 1];  // the low parts when SPLIT, else unused
    const uint32_t low[4][2] = {{c.x, c.y}, {c.z, c.w}, {d.x, d.y}, {d.z, d.w}};
#pragma unroll
    for (int tile = 0; tile < N; tile++) {
      uint32_t part[4];
      if (SPLIT) {
        load(part, states + plane_len() + tile_of(tile), step);
#pragma unroll
        for (int gate = 0; gate < 4; gate++) Halves::mma(acc[tile][gate], part, high[gate]);
      }
      load(part, states + tile_of(tile), step);
#pragma unroll
      for (int gate = 0; gate < 4 && SPLIT; gate++) Halves::mma(acc[tile][gate], part, low[gate]);
#pragma unroll
      for (int gate = 0; gate < 4; gate++) Halves::mma(acc[tile][gate], part, high[gate]);
    }
  }

  // acc += states * weights, which are the walk's next run, over all steps.
  template <int N> __device__ __forceinline__ void multiply(float (&acc)[N][4][4], const __half* states) {
    weights.each([&](uint32_t step, const uint4(&w)[2 * kParts]) { multiply_step(acc, states, step, w); });
  }

  // What the gates start from: the table row of the input token (a one-hot product is a look-up), or the bias.
  template <int N>
  __device__ __forceinline__ void start(float (&acc)[N][4][4], uint32_t layer, uint32_t group, uint32_t first) {
    const float4* from = reinterpret_cast<const float4*>(a.parameters + a.size.start(layer)) + group * 8 + at.q * 2;
#pragma unroll
    for (int tile = 0; tile < N; tile++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const uint64_t line = layer == 0 ? rows.token[(first + tile) * 16 + e / 2 * 8 + at.g] : 0;
        const float4 gates = __ldg(from + line * a.size.units + e % 2);
        acc[tile][0][e] = gates.x, acc[tile][1][e] = gates.y, acc[tile][2][e] = gates.z, acc[tile][3][e] = gates.w;
      }
  }

  // The thread's cells of a tile: rows g and g + 8, two neighbouring units each. New states go to `out`.
  __device__ __forceinline__ void update(float (&acc)[4][4], uint32_t layer, uint32_t group, int tile, uint32_t t, __half* out) {
    const float4 before = *cell(layer, group, tile);
    float c[4] = {before.x, before.y, before.z, before.w}, h[4];
    const uint32_t unit = group * 8 + at.q * 2;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float gate[4] = {acc[0][e], acc[1][e], acc[2][e], acc[3][e]};
      Pass::update_cell(gate, c[e], h[e]);
      if (KEEP) this->keep_gates(layer, t, tile * 16 + e / 2 * 8 + at.g, unit + e % 2, gate);
    }
    *cell(layer, group, tile) = make_float4(c[0], c[1], c[2], c[3]);
    set_states(h, group, tile, out);
#pragma unroll
    for (int half = 0; half < 2 && KEEP; half++) {
      const uint32_t local = tile * 16 + half * 8 + at.g;
      const float2 states = make_float2(h[2 * half], h[2 * half + 1]);
      this->keep_states(layer, t, local, unit, make_float2(c[2 * half], c[2 * half + 1]), states);
      if (a.dropout.limit) drop(states, layer, group, t, local);
    }
  }

  // The thread's states as an operand.
  __device__ __forceinline__ void set_states(const float (&h)[4], uint32_t group, int tile, __half* out) {
    const Pair low = split_pair<Halves>(h[0], h[1]), high = split_pair<Halves>(h[2], h[3]);
    uint32_t* to = reinterpret_cast<uint32_t*>(out + (tile * 16 + at.g) * row_len() + group * 8) + at.q;
    to[0] = low.hi;
    to[4 * row_len()] = high.hi;
    if (SPLIT) to[plane_len() / 2] = low.lo;
    if (SPLIT) to[plane_len() / 2 + 4 * row_len()] = high.lo;
  }

  // What the layer above sees of two units of one row: behind dropout, in a plane of its own.
  __device__ __forceinline__ void drop(float2 h, uint32_t layer, uint32_t group, uint32_t t, uint32_t local) {
    const float2 mask = a.dropout.mask(a.size, rows.row[local], t, layer, group, at.q);
    const uint32_t unit = group * 8 + at.q * 2;
    h = make_float2(h.x * mask.x, h.y * mask.y);
    const Pair pair = split_pair<Halves>(h.x, h.y);
    uint32_t* to = reinterpret_cast<uint32_t*>(this->dropped_plane(layer) + local * row_len() + unit);
    to[0] = pair.hi;
    if (SPLIT) to[plane_len() / 2] = pair.lo;
    this->keep_dropped(layer, t, local, unit, h);
  }

  // One layer of step t: reads `below` (layers above 0) and `before`, writes `after`.
  __device__ __forceinline__ void advance(uint32_t layer, uint32_t t, const __half* below, const __half* before,
                                          __half* after) {
    const uint32_t whole = jobs.whole(a.size), count = jobs.count(a.size);
    for (uint32_t n = 0; n < whole; n++) advance_tiles<TILES>(layer, t, below, before, after, jobs.group(a.size, n), 0);
    if constexpr (TILES > 1)
      for (uint32_t n = whole; n < count; n++)
        advance_tiles<1>(layer, t, below, before, after, jobs.group(a.size, n), jobs.part(a.size, n));
  }

  // N tiles of one group, from the first on.
  template <int N>
  __device__ __forceinline__ void advance_tiles(uint32_t layer, uint32_t t, const __half* below, const __half* before,
                                                __half* after, uint32_t group, uint32_t first) {
    float acc[N][4][4];
    start(acc, layer, group, first);
    if (layer > 0) multiply(acc, below + tile_of(first));
    multiply(acc, before + tile_of(first));
#pragma unroll
    for (int tile = 0; tile < N; tile++) update(acc[tile], layer, group, first + tile, t, after);
  }
};

// Grid: ceil(rows / (16 * TILES)) blocks of up to WARPS warps, LSTM_WARPS(WARPS) of them; shared memory as
// src/models/lstm/gpu/forward.rs sums it up.
#define LSTM_FORWARD(name, TILES, SPLIT, KEEP, WARPS, AHEAD)                                            \
  extern "C" __global__ void __launch_bounds__(32 * LSTM_WARPS(WARPS), 1)                               \
      name(const __grid_constant__ LstmForward arguments) {                                             \
    SHARED_DYN(unsigned char, shared);                                                                  \
    const uint32_t rows = KEEP ? *arguments.count : arguments.rows;                                     \
    if (arguments.first_slot + blockIdx.x * 16 * TILES < rows)                                          \
      Forward<TILES, SPLIT, KEEP, AHEAD>(arguments, shared).run();                                   \
  }
LSTM_FORWARD(lstm_forward_split_1, 1, true, false, 16, 2)
LSTM_FORWARD(lstm_forward_split_2, 2, true, false, 8, 3)
LSTM_FORWARD(lstm_forward_split_4, 4, true, false, 8, 2)
LSTM_FORWARD(lstm_forward_plain_1, 1, false, false, 16, 4)
LSTM_FORWARD(lstm_forward_plain_2, 2, false, false, 8, 4)
LSTM_FORWARD(lstm_forward_plain_4, 4, false, false, 8, 4)
LSTM_FORWARD(lstm_forward_keep_1, 1, true, true, 12, 2)
LSTM_FORWARD(lstm_forward_keep_2, 2, true, true, 8, 2)

EXPORT_KERNEL(lstm_forward_split_1)
EXPORT_KERNEL(lstm_forward_split_2)
EXPORT_KERNEL(lstm_forward_split_4)
EXPORT_KERNEL(lstm_forward_plain_1)
EXPORT_KERNEL(lstm_forward_plain_2)
EXPORT_KERNEL(lstm_forward_plain_4)
EXPORT_KERNEL(lstm_forward_keep_1)
EXPORT_KERNEL(lstm_forward_keep_2)
