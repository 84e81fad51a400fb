// lstm_pass.cuh -- an LSTM's forward pass through time: the states of a block's rows, its steps, the head. How a layer's
// products are made is what the kernels differ in.
#pragma once
#include "common/lstm_rows.cuh"
#include "common/split.cuh"

// The order in which a warp takes its jobs' weights in one time step: layer 0 has recurrent ones, those above also input
// ones, which come first.
template <typename Jobs> struct ForwardWalk {
  const uint4* const& packed;  // references to the launch's argument, which takes no registers
  const LstmSize& size;
  Jobs jobs;
  __device__ __forceinline__ ForwardWalk(const LstmForward& a, Jobs jobs) : packed(a.packed), size(a.size), jobs(jobs) {}
  __device__ __forceinline__ uint32_t runs() const { return jobs.count(size) * size.matrices(); }
  __device__ __forceinline__ uint32_t pieces() const { return size.steps(); }
  __device__ __forceinline__ const uint4* run(uint32_t n) const {
    const uint32_t mine = jobs.count(size);
    if (n < mine) return weights(0, n);
    const uint32_t layer = (n + mine) / (2 * mine), k = (n + mine) % (2 * mine);
    return weights(2 * layer - 1 + k % 2, k / 2);
  }
  // Of the warp's n-th job.
  __device__ __forceinline__ const uint4* weights(uint32_t matrix, uint32_t n) const {
    return packed + size.packed_forward(matrix) + uint64_t(jobs.group(size, n)) * size.steps() * 128;
  }
};

// Layers, which derives from this, has
//   advance(layer, t, below, before, after): one layer of step t, which reads `below` (layers above 0) and `before`;
//   load(operand, states, step): the A operand of one k16 step of 16 rows, whose states begin at `states`;
//   tile_of(tile): where the states of a tile of 16 rows begin in a plane;
//   meet(): the states that have been written are there for all;
//   kPadding: values that a row of a plane has more than units.
template <typename Layers, int TILES, int BLOCKS, bool SPLIT, bool KEEP> struct LstmPass : LstmRows<TILES, BLOCKS, KEEP> {
  using Rows = LstmRows<TILES, BLOCKS, KEEP>;
  using Rows::a, Rows::at, Rows::block, Rows::warp, Rows::warps, Rows::rows, Rows::kRows, Rows::kOwnTiles, Rows::kOwnRows;
  using Rows::kLanes, Rows::own, Rows::slot, Rows::begin_row, Rows::token_step, Rows::finish, Rows::walk, Rows::logit_stride;
  static constexpr int kParts = SPLIT ? 2 : 1;
  uint32_t spare;  // the buffer of states that is written next
  float* cells;    // [layers][groups][TILES][32 lanes][4]

  __device__ __forceinline__ LstmPass(const LstmForward& a, unsigned char* shared) : Rows(a, shared), spare(a.size.layers) {
    const uint64_t cell_len = uint64_t(a.size.layers) * kRows * a.size.units;
    // kRows * (O + 1) floats: a multiple of 16 bytes as kRows is one of 16.
    float* rest = apart() + (logits_fit_a_plane() ? 0 : kRows * logit_stride());
    cells = a.cell_in_shared ? rest : a.cell_scratch + blockIdx.x * cell_len;
  }
  __device__ __forceinline__ Layers& layers() { return static_cast<Layers&>(*this); }

  __device__ __forceinline__ uint32_t row_len() const { return a.size.units + Layers::kPadding; }
  __device__ __forceinline__ uint32_t plane_len() const { return kRows * row_len(); }
  __device__ __forceinline__ uint32_t buffers() const { return a.size.layers + (KEEP && a.dropout.limit ? 3 : 1); }
  // States, behind the rows: [layers + 1, and 2 more for dropout][parts][kRows * row_len()].
  __device__ __forceinline__ __half* plane(uint32_t buffer) const {
    return reinterpret_cast<__half*>(&rows + 1) + buffer * kParts * plane_len();
  }
  // What a layer hands upwards behind dropout: it reads the plane below while it writes its own, so two take turns.
  __device__ __forceinline__ __half* dropped_plane(uint32_t layer) const { return plane(a.size.layers + 1 + layer % 2); }

  // While logits, [kRows][O + 1], are in use the spare plane is not; where it is too small for them they lie behind all.
  __device__ __forceinline__ bool logits_fit_a_plane() const { return 2 * logit_stride() <= kParts * row_len(); }
  __device__ __forceinline__ float* apart() const { return reinterpret_cast<float*>(plane(buffers())); }
  __device__ __forceinline__ float* logits() const {
    return logits_fit_a_plane() ? reinterpret_cast<float*>(plane(spare)) : apart();
  }

  // The thread's own cells of a tile.
  __device__ __forceinline__ float4* cell(uint32_t layer, uint32_t group, uint32_t tile) const {
    return reinterpret_cast<float4*>(cells) + ((layer * a.size.groups() + group) * TILES + tile) * 32 + at.lane;
  }

  __device__ __forceinline__ void begin() {
    for (uint32_t i = threadIdx.x; i < buffers() * kParts * plane_len() / 2; i += blockDim.x)
      reinterpret_cast<uint32_t*>(plane(0))[i] = 0;
    for (uint32_t i = threadIdx.x; i < a.size.layers * kRows * a.size.units; i += blockDim.x) cells[i] = 0;
    for (uint32_t local = threadIdx.x; local < kRows; local += blockDim.x) begin_row(local);
    layers().meet();
    if (KEEP && threadIdx.x < kOwnTiles) {
      const uint32_t first = own(0) + threadIdx.x * 16;
      uint32_t longest = 0;
      for (int i = 0; i < 16; i++) longest = max(longest, rows.length[first + i]);
      a.tile_steps[slot(first) / 16] = longest;
    }
  }

  // c' = f c + i g, h = o tanh(c'). The gates come as sums and leave as activations.
  static __device__ __forceinline__ void update_cell(float (&gate)[4], float& c, float& h) {
    gate[0] = Activation<SPLIT>::sigmoid(gate[0]);
    gate[1] = Activation<SPLIT>::sigmoid(gate[1]);
    gate[2] = Activation<SPLIT>::tanh(gate[2]);
    gate[3] = Activation<SPLIT>::sigmoid(gate[3]);
    c = gate[1] * c + gate[0] * gate[2];
    h = gate[3] * Activation<SPLIT>::tanh(c);
  }

  // What back-propagation needs of one unit of a row: its activations; and of two: cells and states; and what dropout left.
  __device__ __forceinline__ void keep_gates(uint32_t layer, uint32_t t, uint32_t local, uint32_t unit, const float (&gate)[4]) const {
    const uint64_t row = (uint64_t(layer) * a.longest + t) * a.capacity + slot(local);
    reinterpret_cast<float4*>(a.gates + row * a.size.gates())[unit] = make_float4(gate[0], gate[1], gate[2], gate[3]);
  }
  __device__ __forceinline__ void keep_states(uint32_t layer, uint32_t t, uint32_t local, uint32_t unit, float2 c, float2 h) const {
    const uint64_t row = (uint64_t(layer) * (a.longest + 1) + t + 1) * a.capacity + slot(local);
    *reinterpret_cast<float2*>(a.cell + row * a.size.units + unit) = c;
    keep_parts(a.hidden, row, unit, h);
  }
  __device__ __forceinline__ void keep_dropped(uint32_t layer, uint32_t t, uint32_t local, uint32_t unit, float2 h) const {
    keep_parts(a.dropped, (uint64_t(layer) * a.longest + t) * a.capacity + slot(local), unit, h);
  }
  __device__ __forceinline__ void keep_parts(__nv_bfloat16* states, uint64_t row, uint32_t unit, float2 h) const {
    const Pair pair = split_pair<Bfloats>(h.x, h.y);
    uint32_t* to = reinterpret_cast<uint32_t*>(states + row * 2 * a.size.units + unit);
    to[0] = pair.hi;
    to[a.size.units / 2] = pair.lo;
  }

  // Logits of the top layer's state; what may not be emitted gets -inf. A job is a tile of rows and of eight outputs.
  __device__ __forceinline__ void head(const __half* top) {
    const uint32_t jobs = a.size.outputs / 8 * kOwnTiles;
    for (uint32_t job = warp; job < jobs; job += warps) {
      const uint32_t tile = own(0) / 16 + job % kOwnTiles, column = job / kOwnTiles, first = column * 8 + at.q * 2;
      const __half* states = top + layers().tile_of(tile);
      float acc[kParts + 1][4] = {};  // by product, so that none waits for another
      const uint4* from = a.packed + a.size.packed_head() + uint64_t(column) * a.size.steps() * 32 + at.lane;
      for (uint32_t step = 0; step < a.size.steps(); step += kHeadAhead) {
        uint4 w[kHeadAhead] = {};
#pragma unroll
        for (uint32_t k = 0; k < kHeadAhead; k++)
          if (step + k < a.size.steps()) w[k] = __ldg(from + (step + k) * 32);
#pragma unroll
        for (uint32_t k = 0; k < kHeadAhead; k++)
          if (step + k < a.size.steps()) head_step(acc, states, step + k, w[k]);
      }
      const float2 bias = *reinterpret_cast<const float2*>(a.parameters + a.size.head_bias() + first);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const uint32_t v = first + e % 2;
        const bool output = v < a.size.vocab && v != a.bos && v != a.pad;
        const float z = (e % 2 ? bias.y : bias.x) + (SPLIT ? acc[0][e] + acc[1][e] + acc[kParts][e] : acc[0][e]);
        logits()[(tile * 16 + e / 2 * 8 + at.g) * logit_stride() + v] = output ? z : -INFINITY;
      }
    }
  }
  static constexpr uint32_t kHeadAhead = 5;  // steps whose weights are read at once: three times 5 cover 208 units

  __device__ __forceinline__ void head_step(float (&acc)[kParts + 1][4], const __half* states, uint32_t step, uint4 w) {
    const uint32_t b_hi[2] = {w.x, w.y}, b_lo[2] = {w.z, w.w};
    uint32_t hi[4], lo[4];
    layers().load(hi, states, step);
    Halves::mma(acc[0], hi, b_hi);
    if (!SPLIT) return;
    layers().load(lo, states + plane_len(), step);
    Halves::mma(acc[1], lo, b_hi);
    Halves::mma(acc[kParts], hi, b_lo);
  }

  // Time step t; whether a row goes on, in some thread at least. Each layer writes to the spare buffer and leaves its old one
  // as the next spare, so the layers' states follow the spare in order, modulo layers + 1.
  __device__ __forceinline__ bool step(uint32_t t) {
    const __half* below = nullptr;
    for (uint32_t layer = 0; layer < a.size.layers; layer++) {
      const uint32_t before = (spare + 1) % (a.size.layers + 1);
      layers().advance(layer, t, below, plane(before), plane(spare));
      layers().meet();
      below = KEEP && a.dropout.limit ? dropped_plane(layer) : plane(spare);
      spare = before;
    }
    head(below);
    __syncthreads();
    for (uint32_t n = threadIdx.x / kLanes; n < kOwnRows; n += blockDim.x / kLanes) token_step(own(n), t, logits());
    if (BLOCKS == 2) dev::cluster_sync(); else __syncthreads();
    return threadIdx.x < kRows && rows.alive[threadIdx.x];
  }

  __device__ __forceinline__ void run() {
    begin();
    for (uint32_t t = 0; t < a.longest; t++)
      if (!__syncthreads_or(step(t))) break;
    finish();
    if (!KEEP && a.drawn.phi) walk();
  }
};
