// lstm_warpgroup.cu -- the forward pass of lstm_forward.cu with products by warpgroups (sm_90a).
//
// Products are the other way round: a warpgroup multiplies 64 rows of weights, from registers, by the states of all rows of the
// block, in shared memory. Each of its warps has a group of 8 units: rows g and g + 8 of its first product are gates i and f of
// unit g, of its second g and o, so a thread has all that a cell of its unit needs, for rows 2q and 2q + 1 of each eight.
// Weights come to registers as they do there; states lie as operands, [U / 8][rows][8], and are written by transposing stores.
// A product runs while the thread asks for weights, and while another warpgroup updates its cells.
#include "common/lstm_pass.cuh"
#include "common/stream.cuh"

#ifdef HAS_WARPGROUPS
// The jobs of a warpgroup: four of its block's groups of 8 units at a time, one for each warp, or parts of their rows.
template <int PARTS> struct WarpgroupJobs {
  uint32_t block, blocks;
  Shares<PARTS> shares;
  __device__ __forceinline__ WarpgroupJobs(uint32_t block, uint32_t blocks)
      : block(block), blocks(blocks), shares{threadIdx.x / 128, blockDim.x / 128} {}
  __device__ __forceinline__ uint32_t groups(const LstmSize& size) const { return size.groups() / blocks; }  // of the block
  __device__ __forceinline__ uint32_t fours(const LstmSize& size) const { return (groups(size) + 3) / 4; }
  __device__ __forceinline__ uint32_t whole(const LstmSize& size) const { return shares.whole(fours(size)); }
  __device__ __forceinline__ uint32_t count(const LstmSize& size) const { return shares.count(fours(size)); }
  __device__ __forceinline__ uint32_t part(const LstmSize& size, uint32_t n) const { return shares.part(fours(size), n); }
  // Of the warp's group, in the block. Where the last four are not all there, a warp multiplies another's for nothing.
  __device__ __forceinline__ uint32_t number(const LstmSize& size, uint32_t n) const {
    return shares.item(fours(size), n) * 4 + threadIdx.x / 32 % 4;
  }
  __device__ __forceinline__ bool is_there(const LstmSize& size, uint32_t n) const { return number(size, n) < groups(size); }
  __device__ __forceinline__ uint32_t group(const LstmSize& size, uint32_t n) const {
    return block * groups(size) + min(number(size, n), groups(size) - 1);
  }
};

template <int TILES, int BLOCKS, bool SPLIT, bool KEEP, int AHEAD>
struct WarpgroupForward : LstmPass<WarpgroupForward<TILES, BLOCKS, SPLIT, KEEP, AHEAD>, TILES, BLOCKS, SPLIT, KEEP> {
  using Pass = LstmPass<WarpgroupForward, TILES, BLOCKS, SPLIT, KEEP>;
  using Pass::a, Pass::at, Pass::block, Pass::rows, Pass::kRows, Pass::kParts, Pass::cell, Pass::plane_len;
  static constexpr uint32_t kPadding = 0;
  static constexpr int kShares = TILES > 1 ? 2 : 1;
  static constexpr uint32_t kEight = kRows * 8;  // values of eight units in a plane
  using Jobs = WarpgroupJobs<kShares>;
  // Sums of a job over N tiles: gates i and f, then g and o; of each eight rows the thread's two of the first gate, then of
  // the second.
  template <int N> using Sums = float[2][8 * N];
  const Jobs jobs;
  Stream<2 * kParts, AHEAD, ForwardWalk<Jobs>, true> weights;

  __device__ __forceinline__ WarpgroupForward(const LstmForward& a, unsigned char* shared)
      : Pass(a, shared), jobs(block, BLOCKS), weights(ForwardWalk<Jobs>(a, jobs)) {}

  __device__ __forceinline__ uint32_t tile_of(uint32_t tile) const { return tile * 16 * 8; }
  __device__ __forceinline__ void load(uint32_t (&operand)[4], const __half* states, uint32_t step) const {
    dev::ldmatrix_x4(operand, states + (step * 2 + at.lane / 16) * kEight + at.lane % 16 * 8);
  }
  // The states that have been written are there for all, and for products.
  __device__ __forceinline__ void meet() const {
    if (BLOCKS == 2) {
      dev::fence_async_cluster();
      dev::cluster_sync();
      // For what the other block has written; among blocks it is the reader's fence that counts.
      dev::fence_async_cluster();  // mutation: the emulator takes what another block has fenced for seen
    } else {
      dev::fence_async();
      __syncthreads();
    }
  }

  // The row of the thread's e-th cell of a tile.
  __device__ __forceinline__ uint32_t row(uint32_t tile, int e) const { return tile * 16 + e / 2 * 8 + at.q * 2 + e % 2; }

  // What the gates start from: the table row of the input token (a one-hot product is a look-up), or the bias.
  template <int N> __device__ __forceinline__ void start(Sums<N>& sums, uint32_t layer, uint32_t group, uint32_t first) {
    const float4* from = reinterpret_cast<const float4*>(a.parameters + a.size.start(layer)) + group * 8 + at.g;
#pragma unroll
    for (int tile = 0; tile < N; tile++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const uint64_t line = layer == 0 ? rows.token[row(first + tile, e)] : 0;
        const float4 gates = __ldg(from + line * a.size.units);
        const int at = tile * 8 + e / 2 * 4 + e % 2;
        sums[0][at] = gates.x, sums[0][at + 2] = gates.y, sums[1][at] = gates.z, sums[1][at + 2] = gates.w;
      }
  }

  // sums += weights, which are the walk's next run, * states.
  template <int N> __device__ __forceinline__ void multiply(Sums<N>& sums, const __half* states) {
    const uint64_t high = dev::wgmma_operand(states, kEight * 2, 128), low = high + plane_len() / 8;
    weights.each([&](uint32_t step, const uint4(&w)[2 * kParts]) {
      const uint64_t at = step * (2 * kEight / 8);
      dev::wgmma_fence();
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (SPLIT) dev::wgmma_f16(sums[half], w[half], low + at);
        if (SPLIT) dev::wgmma_f16(sums[half], w[2 * kParts - 2 + half], high + at);
        dev::wgmma_f16(sums[half], w[half], high + at);
      }
      dev::wgmma_commit();
    });
  }

  // The thread's cells of a tile. New states go to `out`.
  template <int N>
  __device__ __forceinline__ void update(const Sums<N>& sums, int tile, uint32_t layer, uint32_t group, uint32_t in_rows, uint32_t t,
                                         __half* out) {
    const float4 before = *cell(layer, group, in_rows);
    float c[4] = {before.x, before.y, before.z, before.w}, h[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int at = tile * 8 + e / 2 * 4 + e % 2;
      float gate[4] = {sums[0][at], sums[0][at + 2], sums[1][at], sums[1][at + 2]};
      Pass::update_cell(gate, c[e], h[e]);
      if (KEEP) this->keep_gates(layer, t, row(in_rows, e), group * 8 + this->at.g, gate);
    }
    *cell(layer, group, in_rows) = make_float4(c[0], c[1], c[2], c[3]);
    set_states(h, group, in_rows, out);
    if (KEEP) keep_tile(c, h, layer, group, in_rows, t);
  }

  // The thread's states of a tile as an operand, and what lies there then to the other block: 16 bytes a lane.
  __device__ __forceinline__ void set_states(const float (&h)[4], uint32_t group, uint32_t tile, __half* out) {
    const Pair low = split_pair<Halves>(h[0], h[1]), high = split_pair<Halves>(h[2], h[3]);
    __half* to = out + group * kEight + (tile * 16 + at.lane % 16) * 8;
    dev::stmatrix_x2_trans(to, low.hi, high.hi);
    if (SPLIT) dev::stmatrix_x2_trans(to + plane_len(), low.lo, high.lo);
    if (BLOCKS == 1) return;
    __syncwarp();
    uint4* mine = reinterpret_cast<uint4*>(to + at.lane / 16 * plane_len());
    if (SPLIT || at.lane < 16) dev::store_operand(dev::cluster_map(mine, block ^ 1), *mine);
  }

  // Cells and states, two neighbours of a row at a time, and the same behind dropout.
  __device__ __forceinline__ void keep_tile(const float (&c)[4], float (&h)[4], uint32_t layer, uint32_t group, uint32_t tile, uint32_t t) {
    const uint32_t odd = at.g % 2, unit = group * 8 + at.g - odd;
#pragma unroll
    for (int e = 0; e < 4; e += 2)
      this->keep_states(layer, t, row(tile, e + odd), unit, neighbours(c, e), neighbours(h, e));
    if (!a.dropout.limit) return;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float2 mask = a.dropout.mask(a.size, rows.row[row(tile, e)], t, layer, group, at.g / 2);
      h[e] *= odd ? mask.y : mask.x;
    }
    set_states(h, group, tile, this->dropped_plane(layer));
#pragma unroll
    for (int e = 0; e < 4; e += 2) this->keep_dropped(layer, t, row(tile, e + odd), unit, neighbours(h, e));
  }
  // Lanes of units g and g ^ 1 have the same rows e and e + 1: the even one takes both units of the first, the other of the
  // second.
  __device__ __forceinline__ float2 neighbours(const float (&values)[4], int e) const {
    const bool odd = at.g % 2;
    const float got = __shfl_xor_sync(~0u, odd ? values[e] : values[e + 1], 4);
    return odd ? make_float2(got, values[e + 1]) : make_float2(values[e], got);
  }

  // One layer of step t: reads `below` (layers above 0) and `before`, writes `after`.
  __device__ __forceinline__ void advance(uint32_t layer, uint32_t t, const __half* below, const __half* before,
                                          __half* after) {
    const uint32_t whole = jobs.whole(a.size), count = jobs.count(a.size);
    for (uint32_t n = 0; n < whole; n++) advance_tiles<TILES>(layer, t, below, before, after, n, 0);
    if constexpr (kShares > 1)
      for (uint32_t n = whole; n < count; n++)
        advance_tiles<TILES / 2>(layer, t, below, before, after, n, jobs.part(a.size, n) * (TILES / 2));
  }

  // N tiles of the warp's n-th job, from the first on.
  template <int N>
  __device__ __forceinline__ void advance_tiles(uint32_t layer, uint32_t t, const __half* below, const __half* before,
                                                __half* after, uint32_t n, uint32_t first) {
    const uint32_t group = jobs.group(a.size, n);
    Sums<N> sums;
    start<N>(sums, layer, group, first);
    for (uint32_t source = layer > 0 ? 0 : 1; source < 2; source++)
      multiply<N>(sums, (source ? before : below) + tile_of(first));
    dev::wgmma_done(sums[0]);
    dev::wgmma_done(sums[1]);
    if (!jobs.is_there(a.size, n)) return;
#pragma unroll
    for (int tile = 0; tile < N; tile++) update<N>(sums, tile, layer, group, first + tile, t, after);
  }
};
#endif

// Grid: BLOCKS * ceil(rows / (16 * TILES)) blocks of WARPGROUPS times 128 threads; shared memory as
// src/models/lstm/gpu/forward.rs sums it up.
#ifdef HAS_WARPGROUPS
#define LSTM_WARPGROUP(name, TILES, BLOCKS, SPLIT, KEEP, WARPGROUPS, AHEAD)                        \
  extern "C" __global__ void __launch_bounds__(128 * WARPGROUPS, 1)                                \
      name(const __grid_constant__ LstmForward arguments) {                                       \
    SHARED_DYN(unsigned char, shared);                                                            \
    const uint32_t rows = KEEP ? *arguments.count : arguments.rows;                               \
    if (arguments.first_slot + blockIdx.x / BLOCKS * 16 * TILES < rows)                           \
      WarpgroupForward<TILES, BLOCKS, SPLIT, KEEP, AHEAD>(arguments, shared).run();               \
  }
#else
#define LSTM_WARPGROUP(name, TILES, BLOCKS, SPLIT, KEEP, WARPGROUPS, AHEAD) \
  extern "C" __global__ void name(const __grid_constant__ LstmForward) { __trap(); }
#endif
LSTM_WARPGROUP(lstm_warpgroup_split_4, 4, 1, true, false, 2, 4)
LSTM_WARPGROUP(lstm_warpgroup_plain_4, 4, 1, false, false, 3, 4)
LSTM_WARPGROUP(lstm_warpgroup_split_2, 2, 1, true, false, 4, 3)
LSTM_WARPGROUP(lstm_warpgroup_plain_2, 2, 1, false, false, 4, 4)
LSTM_WARPGROUP(lstm_warpgroup_split_1, 1, 1, true, false, 4, 4)
LSTM_WARPGROUP(lstm_warpgroup_plain_1, 1, 1, false, false, 4, 6)
LSTM_WARPGROUP(lstm_warpgroup_keep_2, 2, 1, true, true, 3, 2)
LSTM_WARPGROUP(lstm_warpgroup_keep_1, 1, 1, true, true, 4, 2)
LSTM_WARPGROUP(lstm_warpgroup_pair_split, 2, 2, true, false, 4, 2)
LSTM_WARPGROUP(lstm_warpgroup_pair_plain, 2, 2, false, false, 4, 4)
LSTM_WARPGROUP(lstm_warpgroup_pair_keep, 2, 2, true, true, 4, 2)

EXPORT_KERNEL(lstm_warpgroup_split_4)
EXPORT_KERNEL(lstm_warpgroup_plain_4)
EXPORT_KERNEL(lstm_warpgroup_split_2)
EXPORT_KERNEL(lstm_warpgroup_plain_2)
EXPORT_KERNEL(lstm_warpgroup_split_1)
EXPORT_KERNEL(lstm_warpgroup_plain_1)
EXPORT_KERNEL(lstm_warpgroup_keep_2)
EXPORT_KERNEL(lstm_warpgroup_keep_1)
EXPORT_KERNEL(lstm_warpgroup_pair_split)
EXPORT_KERNEL(lstm_warpgroup_pair_plain)
EXPORT_KERNEL(lstm_warpgroup_pair_keep)
