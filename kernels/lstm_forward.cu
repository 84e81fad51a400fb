// lstm_forward.cu -- one persistent kernel that samples whole batches from the first token to EOS, scores given ones,
// or scores them and keeps what back-propagation needs. What it samples it also takes a feature table through, if asked.
//
// A block owns 16 * TILES sequences from start to end. Hidden states stay in shared memory as fp16 parts (the A operands),
// cells in shared memory or, where that is too small, in a scratch buffer that the second-level cache holds; only the
// training mode writes states out. Weights come packed from the second-level cache into registers: the block's warps share
// out the groups of 8 units, so no weight is read twice by a block, and there is no barrier inside a layer. Where a batch is
// so small that each block would read all weights for few rows, two blocks of a cluster (sm_90) share 32 rows: each has
// half of the groups, hands its states to the other, and takes the token steps of 16 rows.
//
// Work per step and block: 2 * 16 * TILES * (weights) operations, three times that when SPLIT; bytes from the
// second-level cache: 2 (SPLIT: 4) per weight. See kernels/README.md for what that predicts.
#include "common/features.cuh"
#include "common/lstm.cuh"
#include "common/reduce.cuh"
#include "common/split.cuh"
#include "common/status.cuh"
#include "common/stream.cuh"

enum Mode : uint32_t { kSample = 0, kScore = 1 };

// Sequences are [rows, longest] with a stride of `longest`; the log-probs [rows].
struct LstmForward {
  const float* parameters;
  const uint4* packed;
  LstmSize size;
  uint32_t longest, bos, eos, pad;
  uint32_t mode, rows;
  uint32_t cell_in_shared;
  uint32_t capacity;      // training: slots of the kept buffers
  uint32_t first_slot;    // training: the row of slot 0 is order[first_slot]
  uint32_t states;        // of the guide
  uint32_t purpose;
  uint32_t classes;       // of the guide
  uint64_t seed, first;   // of the draw
  const uint64_t* skip;   // added to `first`
  const uint32_t* order;  // training: the row of each slot
  const uint32_t* count;  // training: slots in use
  uint32_t* tokens;       // written when sampling
  uint32_t* lengths;
  const uint32_t* given;  // tokens of each row's context, which are read and have no log-prob
  double* log_q;          // log-prob under what was drawn from (guided if there is a guide)
  double* log_model;      // sampling: under the model itself
  const uint32_t* class_of;  // guide, or null: [V], [states, classes], [longest + 1, states], [states]
  const uint32_t* next;
  const float* log_h;
  const float* log_end;
  float* cell_scratch;    // [blocks, layers, rows of a block, U]
  // Kept for back-propagation, slots row-major inside a step:
  __nv_bfloat16* hidden;  // [layers, longest + 1, capacity, 2 parts, U]; step 0 is zero
  float* cell;            // [layers, longest + 1, capacity, U]; step 0 is zero
  float* gates;           // [layers, longest, capacity, 4, U]: activations
  float* residual;        // [longest, capacity, O]: onehot - softmax
  uint32_t* inputs;       // [longest, capacity]
  uint32_t* tile_steps;   // [capacity / 16]: steps of the longest of 16 slots
  __nv_bfloat16* dropped; // [layers, longest, capacity, 2 parts, U]: states behind dropout, where there is any
  Dropout dropout;        // training
  features::DrawnRows drawn;  // sampling
  unsigned long long* status;
};
static_assert(sizeof(LstmForward) == 328, "src/models/lstm/gpu/forward.rs has the same layout");

// The order in which a warp takes its jobs' weights in one time step: layer 0 has recurrent ones, those above also input
// ones, which come first.
template <int PARTS> struct ForwardWalk {
  const uint4* const& packed;  // references to the launch's argument, which takes no registers
  const LstmSize& size;
  WarpJobs<PARTS> jobs;
  __device__ __forceinline__ ForwardWalk(const LstmForward& a, WarpJobs<PARTS> jobs)
      : packed(a.packed), size(a.size), jobs(jobs) {}
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

// KEEP is the training mode, by itself as what it keeps takes registers. BLOCKS of a cluster share the rows.
template <int TILES, int BLOCKS, bool SPLIT, bool KEEP, int AHEAD> struct Forward {
  static constexpr int kRows = 16 * TILES, kOwnTiles = TILES / BLOCKS, kOwnRows = 16 * kOwnTiles, kParts = SPLIT ? 2 : 1;
  static constexpr uint32_t kLanes = 8;                    // of a row in the token step
  static constexpr int kShares = BLOCKS == 1 ? TILES : 1;  // of a group that is left over
  const LstmForward& a;
  const Lane at;
  const uint32_t block, warp, warps, stride, plane_len, logit_stride;  // `block` of the cluster
  const WarpJobs<kShares> jobs;
  // Of each row, at the start of the block's shared memory.
  struct Rows {
    double log_q[kRows], log_model[kRows];
    uint32_t row[kRows], token[kRows], length[kRows], state[kRows], alive[kRows];
  };
  Rows& rows;
  Stream<2 * kParts, AHEAD, ForwardWalk<kShares>> weights;
  uint32_t spare;  // the buffer of states that is written next
  float* cells;    // [layers][groups][TILES][32 lanes][4]

  __device__ __forceinline__ Forward(const LstmForward& a, unsigned char* shared)
      : a(a), block(BLOCKS == 2 ? dev::cluster_rank() : 0), warp(threadIdx.x / 32), warps(blockDim.x / 32),
        stride(a.size.units + 8), plane_len(kRows * stride), logit_stride(a.size.outputs + 1), jobs(block, BLOCKS), rows(*reinterpret_cast<Rows*>(shared)), weights(ForwardWalk<kShares>(a, jobs)), spare(a.size.layers) {
    const uint64_t cell_len = uint64_t(a.size.layers) * kRows * a.size.units;
    // kRows * (O + 1) floats: a multiple of 16 bytes as kRows is one of 16.
    float* rest = apart() + (logits_fit_a_plane() ? 0 : kRows * logit_stride);
    cells = a.cell_in_shared ? rest : a.cell_scratch + blockIdx.x * cell_len;
  }

  // Writes here and to the same place of the other block.
  template <typename T> __device__ __forceinline__ void put(T* to, T value) const {
    *to = value;
    if (BLOCKS == 2) *dev::cluster_map(to, block ^ 1) = value;
  }

  __device__ __forceinline__ uint32_t buffers() const { return a.size.layers + (KEEP && a.dropout.limit ? 3 : 1); }
  // States, behind the rows: [layers + 1, and 2 more for dropout][parts][kRows][U + 8].
  __device__ __forceinline__ __half* plane(uint32_t buffer) const {
    return reinterpret_cast<__half*>(&rows + 1) + buffer * kParts * plane_len;
  }

  // While logits, [kRows][O + 1], are in use the spare plane is not; where it is too small for them they lie behind all.
  __device__ __forceinline__ bool logits_fit_a_plane() const { return 2 * logit_stride <= kParts * stride; }
  __device__ __forceinline__ float* apart() const { return reinterpret_cast<float*>(plane(buffers())); }
  __device__ __forceinline__ float* logits() const {
    return logits_fit_a_plane() ? reinterpret_cast<float*>(plane(spare)) : apart();
  }

  // A slot of the kept buffers, and whether a row has it: all rows have, or those with a coefficient.
  __device__ __forceinline__ uint32_t slot(uint32_t local) const { return blockIdx.x / BLOCKS * kRows + local; }
  __device__ __forceinline__ bool used(uint32_t local) const {
    return a.first_slot + slot(local) < (KEEP ? *a.count : a.rows);
  }
  // The n-th row of those whose tokens this block takes.
  __device__ __forceinline__ uint32_t own(uint32_t n) const { return block * kOwnRows + n; }

  __device__ __forceinline__ void begin() {
    for (uint32_t i = threadIdx.x; i < buffers() * kParts * plane_len / 2; i += blockDim.x)
      reinterpret_cast<uint32_t*>(plane(0))[i] = 0;
    for (uint32_t i = threadIdx.x; i < a.size.layers * kRows * a.size.units; i += blockDim.x) cells[i] = 0;
    for (uint32_t local = threadIdx.x; local < kRows; local += blockDim.x) begin_row(local);
    if (BLOCKS == 2) dev::cluster_sync(); else __syncthreads();
    if (KEEP && threadIdx.x < kOwnTiles) {
      const uint32_t first = own(0) + threadIdx.x * 16;
      uint32_t longest = 0;
      for (int i = 0; i < 16; i++) longest = max(longest, rows.length[first + i]);
      a.tile_steps[slot(first) / 16] = longest;
    }
  }

  __device__ __forceinline__ void begin_row(uint32_t local) {
    const bool in_use = used(local);
    rows.row[local] = !in_use ? 0 : KEEP ? a.order[a.first_slot + slot(local)] : slot(local);
    rows.token[local] = a.bos;
    rows.state[local] = 0;
    rows.log_q[local] = rows.log_model[local] = 0;
    rows.length[local] = !in_use ? 0 : a.mode == kSample ? a.longest : a.lengths[rows.row[local]];
    if (in_use && (rows.length[local] <= a.given[rows.row[local]] || rows.length[local] > a.longest)) reject(local);
    rows.alive[local] = rows.length[local] > 0;
  }

  // A row whose data is out of range: NaN, and noted.
  __device__ __forceinline__ void reject(uint32_t local) {
    note_fault(a.status, rows.row[local], kBadRow);
    rows.length[local] = 0;
    rows.alive[local] = 0;
    rows.log_q[local] = rows.log_model[local] = NAN;
  }

  // The thread's own cells of a tile: rows g and g + 8, two units each.
  __device__ __forceinline__ float4* cell(uint32_t layer, uint32_t group, uint32_t tile) {
    return reinterpret_cast<float4*>(cells) + ((layer * a.size.groups() + group) * TILES + tile) * 32 + at.lane;
  }

  // One k16 step of one group and N tiles: acc += states * weights, all gates.
  template <int N>
  __device__ __forceinline__ void multiply_step(float (&acc)[N][4][4], const __half* states, const uint4 (&w)[2 * kParts]) {
    const uint32_t high[4][2] = {{w[0].x, w[0].y}, {w[0].z, w[0].w}, {w[1].x, w[1].y}, {w[1].z, w[1].w}};
    const uint4 c = w[kParts], d = w[2 * kParts - 1];  // the low parts when SPLIT, else unused
    const uint32_t low[4][2] = {{c.x, c.y}, {c.z, c.w}, {d.x, d.y}, {d.z, d.w}};
#pragma unroll
    for (int tile = 0; tile < N; tile++) {
      uint32_t part[4];
      if (SPLIT) {
        load_rows(part, states + plane_len + tile * 16 * stride, stride);
#pragma unroll
        for (int gate = 0; gate < 4; gate++) Halves::mma(acc[tile][gate], part, high[gate]);
      }
      load_rows(part, states + tile * 16 * stride, stride);
#pragma unroll
      for (int gate = 0; gate < 4 && SPLIT; gate++) Halves::mma(acc[tile][gate], part, low[gate]);
#pragma unroll
      for (int gate = 0; gate < 4; gate++) Halves::mma(acc[tile][gate], part, high[gate]);
    }
  }

  // acc += states * weights, which are the walk's next run, over all steps.
  template <int N> __device__ __forceinline__ void multiply(float (&acc)[N][4][4], const __half* states) {
    weights.each([&](uint32_t step, const uint4(&w)[2 * kParts]) { multiply_step(acc, states + step * 16, w); });
  }

  // What the gates start from: the table row of the input token (a one-hot product is a look-up), or the bias.
  template <int N>
  __device__ __forceinline__ void start(float (&acc)[N][4][4], uint32_t layer, uint32_t group, uint32_t first) {
    const float* from = a.parameters + a.size.start(layer) + group * 8 + at.q * 2;
#pragma unroll
    for (int tile = 0; tile < N; tile++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint64_t line = layer == 0 ? rows.token[(first + tile) * 16 + half * 8 + at.g] : 0;
#pragma unroll
        for (int gate = 0; gate < 4; gate++) {
          const float2 two = __ldg(reinterpret_cast<const float2*>(from + line * a.size.gates() + gate * a.size.units));
          acc[tile][gate][2 * half] = two.x;
          acc[tile][gate][2 * half + 1] = two.y;
        }
      }
  }

  // c' = f c + i g, h = o tanh(c'), for the thread's two neighbours of one row; new states go to `out`.
  __device__ __forceinline__ void update(float (&acc)[4][4], float4 cells_before, uint32_t layer, uint32_t group, int tile,
                                         uint32_t t, __half* out) {
    float c[4] = {cells_before.x, cells_before.y, cells_before.z, cells_before.w}, h[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      acc[0][e] = Activation<SPLIT>::sigmoid(acc[0][e]);
      acc[1][e] = Activation<SPLIT>::sigmoid(acc[1][e]);
      acc[2][e] = Activation<SPLIT>::tanh(acc[2][e]);
      acc[3][e] = Activation<SPLIT>::sigmoid(acc[3][e]);
      c[e] = acc[1][e] * c[e] + acc[0][e] * acc[2][e];
      h[e] = acc[3][e] * Activation<SPLIT>::tanh(c[e]);
    }
    *cell(layer, group, tile) = make_float4(c[0], c[1], c[2], c[3]);
    set_states(h, group, tile, out);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t local = tile * 16 + half * 8 + at.g, unit = group * 8 + at.q * 2;
      if (KEEP) keep(acc, c, h, layer, t, local, unit, half);
      if (KEEP && a.dropout.limit) drop(h[2 * half], h[2 * half + 1], layer, group, t, local);
    }
  }

  // The thread's states as an operand. To another block go 16 bytes at a time, which is what it takes fastest.
  __device__ __forceinline__ void set_states(const float (&h)[4], uint32_t group, int tile, __half* out) {
    const Pair low = split_pair<Halves>(h[0], h[1]), high = split_pair<Halves>(h[2], h[3]);
    __half* to = out + (tile * 16 + at.g) * stride + group * 8;
    if constexpr (BLOCKS == 2 && SPLIT) {
      uint32_t words[4] = {low.hi, low.lo, high.hi, high.lo};
      transpose_quad(words);
      to += at.q % 2 * plane_len + at.q / 2 * 8 * stride;
      put(reinterpret_cast<uint4*>(to), make_uint4(words[0], words[1], words[2], words[3]));
    } else {
      uint32_t* words = reinterpret_cast<uint32_t*>(to) + at.q;
      put(words, low.hi);
      put(words + 4 * stride, high.hi);
      if (SPLIT) put(words + plane_len / 2, low.lo);
      if (SPLIT) put(words + plane_len / 2 + 4 * stride, high.lo);
    }
  }

  // What the layer above sees of two units of one row: behind dropout, in a plane of its own.
  __device__ __forceinline__ void drop(float one, float two, uint32_t layer, uint32_t group, uint32_t t, uint32_t local) {
    const float2 mask = a.dropout.mask(a.size, rows.row[local], t, layer, group, at.q);
    const uint32_t unit = group * 8 + at.q * 2;
    one *= mask.x;
    two *= mask.y;
    const Pair pair = split_pair<Halves>(one, two);
    uint32_t* to = reinterpret_cast<uint32_t*>(dropped_plane(layer) + local * stride + unit);
    put(to, pair.hi);
    if (SPLIT) put(to + plane_len / 2, pair.lo);
    keep_parts(a.dropped, (uint64_t(layer) * a.longest + t) * a.capacity + slot(local), unit, one, two);
  }
  // Two units of one slot's row of states.
  __device__ __forceinline__ void keep_parts(__nv_bfloat16* states, uint64_t row, uint32_t unit, float one, float two) {
    const Pair pair = split_pair<Bfloats>(one, two);
    uint32_t* to = reinterpret_cast<uint32_t*>(states + row * 2 * a.size.units + unit);
    to[0] = pair.hi;
    to[a.size.units / 2] = pair.lo;
  }
  // A layer reads the plane below while it writes its own: two take turns.
  __device__ __forceinline__ __half* dropped_plane(uint32_t layer) { return plane(a.size.layers + 1 + layer % 2); }

  __device__ __forceinline__ void keep(const float (&gates)[4][4], const float (&c)[4], const float (&h)[4],
                                       uint32_t layer, uint32_t t, uint32_t local, uint32_t unit, int half) {
    const uint64_t step = uint64_t(layer) * a.longest + t, capacity = a.capacity, units = a.size.units;
    const uint64_t after = (step + layer + 1) * capacity + slot(local);
    *reinterpret_cast<float2*>(a.cell + after * units + unit) = make_float2(c[2 * half], c[2 * half + 1]);
    keep_parts(a.hidden, after, unit, h[2 * half], h[2 * half + 1]);
    float* to = a.gates + (step * capacity + slot(local)) * a.size.gates() + unit;
#pragma unroll
    for (int gate = 0; gate < 4; gate++)
      *reinterpret_cast<float2*>(to + gate * units) = make_float2(gates[gate][2 * half], gates[gate][2 * half + 1]);
  }

  // One layer of step t: reads `below` (layers above 0) and `before`, writes `after`.
  __device__ __forceinline__ void advance(uint32_t layer, uint32_t t, const __half* below, const __half* before,
                                          __half* after) {
    const uint32_t whole = jobs.whole(a.size), count = jobs.count(a.size);
    for (uint32_t n = 0; n < whole; n++) advance_tiles<TILES>(layer, t, below, before, after, jobs.group(a.size, n), 0);
    if constexpr (kShares > 1)
      for (uint32_t n = whole; n < count; n++)
        advance_tiles<1>(layer, t, below, before, after, jobs.group(a.size, n), jobs.part(a.size, n));
  }

  // N tiles of one group, from the first on.
  template <int N>
  __device__ __forceinline__ void advance_tiles(uint32_t layer, uint32_t t, const __half* below, const __half* before,
                                                __half* after, uint32_t group, uint32_t first) {
    float acc[N][4][4];
    start(acc, layer, group, first);
    if (layer > 0) multiply(acc, below + first * 16 * stride);
    multiply(acc, before + first * 16 * stride);
#pragma unroll
    for (int tile = 0; tile < N; tile++)
      update(acc[tile], *cell(layer, group, first + tile), layer, group, first + tile, t, after);
  }

  // Logits of the top layer's state; what may not be emitted gets -inf. A job is a tile of rows and of eight outputs.
  __device__ __forceinline__ void head(const __half* top) {
    const uint32_t jobs = a.size.outputs / 8 * kOwnTiles;
    for (uint32_t job = warp; job < jobs; job += warps) {
      const uint32_t tile = own(0) / 16 + job % kOwnTiles, column = job / kOwnTiles, first = column * 8 + at.q * 2;
      const __half* states = top + tile * 16 * stride;
      float acc[kParts + 1][4] = {};  // by product, so that none waits for another
      const uint4* from = a.packed + a.size.packed_head() + uint64_t(column) * a.size.steps() * 32 + at.lane;
      for (uint32_t step = 0; step < a.size.steps(); step += kHeadAhead) {
        uint4 w[kHeadAhead] = {};
#pragma unroll
        for (uint32_t k = 0; k < kHeadAhead; k++)
          if (step + k < a.size.steps()) w[k] = __ldg(from + (step + k) * 32);
#pragma unroll
        for (uint32_t k = 0; k < kHeadAhead; k++)
          if (step + k < a.size.steps()) head_step(acc, states + (step + k) * 16, w[k]);
      }
      const float2 bias = *reinterpret_cast<const float2*>(a.parameters + a.size.head_bias() + first);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const uint32_t v = first + e % 2;
        const bool output = v < a.size.vocab && v != a.bos && v != a.pad;
        const float z = (e % 2 ? bias.y : bias.x) + (SPLIT ? acc[0][e] + acc[1][e] + acc[kParts][e] : acc[0][e]);
        logits()[(tile * 16 + e / 2 * 8 + at.g) * logit_stride + v] = output ? z : -INFINITY;
      }
    }
  }
  static constexpr uint32_t kHeadAhead = 5;  // steps whose weights are read at once: three times 5 cover 208 units

  __device__ __forceinline__ void head_step(float (&acc)[kParts + 1][4], const __half* states, uint4 w) const {
    const uint32_t b_hi[2] = {w.x, w.y}, b_lo[2] = {w.z, w.w};
    uint32_t hi[4], lo[4];
    load_rows(hi, states, stride);
    Halves::mma(acc[0], hi, b_hi);
    if (!SPLIT) return;
    load_rows(lo, states + plane_len, stride);
    Halves::mma(acc[1], lo, b_hi);
    Halves::mma(acc[kParts], hi, b_lo);
  }

  // A row's logits, with what the guide adds at step t in a state if there is one.
  struct Logits {
    const LstmForward& a;
    const float* z;
    uint32_t t, state;
    bool guided;
    __device__ __forceinline__ float operator()(uint32_t v) const { return guided ? z[v] + boost(v) : z[v]; }
    __device__ __forceinline__ float boost(uint32_t v) const {
      if (v == a.eos) return a.log_end[state];
      if (v == a.bos || v == a.pad) return -INFINITY;
      return a.log_h[uint64_t(t + 1) * a.states + a.next[uint64_t(state) * a.classes + a.class_of[v]]];
    }
  };

  struct Softmax {
    float max, sum;
    __device__ __forceinline__ double log_prob(float logit) const {
      if (logit == -INFINITY) return double(logit);
      const double value = double(logit) - double(max) - log(double(sum));
      return value > 0 ? 0 : value;
    }
  };

  // The rank of this lane among those of its row, and that row's bits of a ballot.
  __device__ __forceinline__ uint32_t rank() const { return at.lane % kLanes; }
  __device__ __forceinline__ uint32_t of_row(uint32_t ballot) const {
    return ballot >> (at.lane - rank()) & ((1u << kLanes) - 1);
  }

  // Over a row each, by all lanes of a warp.
  __device__ __forceinline__ Softmax softmax(const Logits& logit) const {
    Softmax result{-INFINITY, 0};
    for (uint32_t v = rank(); v < a.size.vocab; v += kLanes) result.max = fmaxf(result.max, logit(v));
#pragma unroll
    for (uint32_t distance = kLanes / 2; distance > 0; distance /= 2)
      result.max = fmaxf(result.max, __shfl_xor_sync(~0u, result.max, distance));
    for (uint32_t v = rank(); v < a.size.vocab; v += kLanes) result.sum += weight(logit(v), result.max);
#pragma unroll
    for (uint32_t distance = kLanes / 2; distance > 0; distance /= 2)
      result.sum += __shfl_xor_sync(~0u, result.sum, distance);
    return result;
  }

  // exp(logit - max); 0 for a logit of -inf, even where all are.
  static __device__ __forceinline__ float weight(float logit, float max) {
    return logit == -INFINITY ? 0.0f : expf(logit - max);
  }

  // The first token whose cumulated weight exceeds uniform * sum; one of weight 0 is never drawn. Rows side by side, until
  // all that are wanted have theirs.
  __device__ __forceinline__ uint32_t pick(const Logits& logit, Softmax softmax, float uniform, bool wanted) const {
    const float threshold = uniform * softmax.sum;
    float before = 0;
    uint32_t last = 0;
    for (uint32_t first = 0; first < a.size.vocab && __any_sync(~0u, wanted); first += kLanes) {
      const uint32_t v = first + rank();
      const float own = v < a.size.vocab ? weight(logit(v), softmax.max) : 0.0f;
      float cumulated = own;
#pragma unroll
      for (uint32_t distance = 1; distance < kLanes; distance *= 2) {
        const float lower = __shfl_up_sync(~0u, cumulated, distance, kLanes);
        if (rank() >= distance) cumulated += lower;
      }
      cumulated += before;
      const uint32_t possible = of_row(__ballot_sync(~0u, own > 0));
      const uint32_t beyond = of_row(__ballot_sync(~0u, own > 0 && cumulated > threshold));
      if (wanted && (beyond | possible)) last = first + (beyond ? __ffs(beyond) - 1 : 31 - __clz(possible));
      wanted &= !beyond;
      before = __shfl_sync(~0u, cumulated, kLanes - 1, kLanes);
    }
    return last;
  }

  // The token step of the rows that a warp takes side by side: score or draw, unless the token is of the context; then the
  // next input. A row that has ended comes along, as the lanes of a warp go together.
  __device__ __forceinline__ void token_step(uint32_t local, uint32_t t) {
    bool live = rows.alive[local];
    if (!__any_sync(~0u, live)) {
      if (KEEP) keep_nothing(local, t);
      return;
    }
    const uint64_t sequence = uint64_t(rows.row[local]) * a.longest;
    const bool given = live && t < a.given[rows.row[local]], draws = live && a.mode == kSample && !given;
    uint32_t emitted = live && !draws ? a.tokens[sequence + t] : 0;
    const bool bad = emitted >= a.size.vocab;
    if (bad) live = false, emitted = 0;
    const uint32_t in_state = rows.state[local];
    const Logits plain{a, logits() + local * logit_stride, t, in_state, false};
    const Logits drawn{a, plain.z, t, in_state, a.next != nullptr};
    const Softmax model = softmax(plain), q = drawn.guided ? softmax(drawn) : model;
    if (a.mode == kSample) {
      const uint32_t picked = pick(drawn, q, draws ? uniform(local, t) : 0, draws);
      if (draws) emitted = picked;
    }
    if (KEEP && live) keep_residual(local, t, plain.z, model, emitted, given);
    if (KEEP && !live) keep_nothing(local, t);
    __syncwarp();  // mutation: orders what the lanes read before the first one's writes; only the thread sanitizer sees that
    if (rank() != 0) return;
    if (bad) {
      reject(local);
      put(&rows.alive[local], 0u);
    }
    if (!live) return;
    if (!given) rows.log_model[local] += model.log_prob(plain(emitted)), rows.log_q[local] += q.log_prob(drawn(emitted));
    if (drawn.guided) rows.state[local] = a.next[uint64_t(in_state) * a.classes + a.class_of[emitted]];
    if (draws) a.tokens[sequence + t] = emitted;
    if (draws && emitted == a.eos) rows.length[local] = t + 1;
    put(&rows.token[local], emitted);
    put(&rows.alive[local], uint32_t(t + 1 < rows.length[local]));
  }

  __device__ __forceinline__ float uniform(uint32_t local, uint32_t t) const {
    return to_unit(philox(a.seed, a.first + *a.skip + rows.row[local], t, a.purpose).x);
  }

  // A token of the context has no gradient of its own.
  __device__ __forceinline__ void keep_residual(uint32_t local, uint32_t t, const float* z, Softmax model, uint32_t emitted,
                                                bool given) {
    const uint64_t index = uint64_t(t) * a.capacity + slot(local);
    for (uint32_t v = rank(); v < a.size.outputs; v += kLanes) {
      const float p = v < a.size.vocab ? weight(z[v], model.max) / model.sum : 0.0f;
      a.residual[index * a.size.outputs + v] = given ? 0.0f : (v == emitted ? 1.0f : 0.0f) - p;
    }
    if (rank() == 0) a.inputs[index] = rows.token[local];
  }

  // A row that has ended: no gradient, and any valid input token.
  __device__ __forceinline__ void keep_nothing(uint32_t local, uint32_t t) {
    const uint64_t index = uint64_t(t) * a.capacity + slot(local);
    for (uint32_t v = rank(); v < a.size.outputs; v += kLanes) a.residual[index * a.size.outputs + v] = 0;
    if (rank() == 0) a.inputs[index] = a.pad;
  }

  __device__ __forceinline__ void finish() {
    for (uint32_t n = warp; n < kOwnRows; n += warps) {
      const uint32_t local = own(n);
      if (!used(local)) continue;
      const uint64_t sequence = uint64_t(rows.row[local]) * a.longest;
      if (a.mode == kSample)
        for (uint32_t t = rows.length[local] + at.lane; t < a.longest; t += 32) a.tokens[sequence + t] = a.pad;
      if (at.lane != 0) continue;
      if (a.mode == kSample) a.lengths[rows.row[local]] = rows.length[local];
      if (a.mode == kSample) a.log_model[rows.row[local]] = rows.log_model[local];
      a.log_q[rows.row[local]] = rows.log_q[local];
    }
  }

  // phi of the rows that the block has drawn, as its last act: from then on all the shared memory of the block is free
  // for table and tokens, and an automaton's state stays in a register from the first token to the last.
  __device__ __forceinline__ void walk() {
    __syncthreads();  // the rows are written, and what was read of them here
    const uint32_t first = slot(own(0));
    const features::Tokens<uint32_t> batch{a.tokens, a.lengths, min(a.rows, first + kOwnRows), a.longest, a.eos};
    features::of_drawn_rows(a.drawn, batch, first, a.size.vocab, reinterpret_cast<uint32_t*>(&rows), a.status);
  }

  // Time step t; whether a row goes on, in some thread at least. Each layer writes to the spare buffer and leaves its old one
  // as the next spare, so the layers' states follow the spare in order, modulo layers + 1.
  __device__ __forceinline__ bool step(uint32_t t) {
    const __half* below = nullptr;
    for (uint32_t layer = 0; layer < a.size.layers; layer++) {
      const uint32_t before = (spare + 1) % (a.size.layers + 1);
      advance(layer, t, below, plane(before), plane(spare));
      if (BLOCKS == 2) dev::cluster_sync(); else __syncthreads();
      below = KEEP && a.dropout.limit ? dropped_plane(layer) : plane(spare);
      spare = before;
    }
    head(below);
    __syncthreads();
    for (uint32_t n = threadIdx.x / kLanes; n < kOwnRows; n += blockDim.x / kLanes) token_step(own(n), t);
    if (BLOCKS == 2) dev::cluster_sync(); else __syncthreads();
    return threadIdx.x < kRows && rows.alive[threadIdx.x];
  }

  __device__ __forceinline__ void run() {
    begin();
    for (uint32_t t = 0; t < a.longest; t++)
      if (!__syncthreads_or(step(t))) break;
    finish();
    if (a.drawn.phi) walk();
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
      Forward<TILES, 1, SPLIT, KEEP, AHEAD>(arguments, shared).run();                                   \
  }
LSTM_FORWARD(lstm_forward_split_1, 1, true, false, 16, 2)
LSTM_FORWARD(lstm_forward_split_2, 2, true, false, 8, 3)
LSTM_FORWARD(lstm_forward_split_4, 4, true, false, 8, 3)
LSTM_FORWARD(lstm_forward_plain_1, 1, false, false, 16, 4)
LSTM_FORWARD(lstm_forward_plain_2, 2, false, false, 8, 4)
LSTM_FORWARD(lstm_forward_plain_4, 4, false, false, 8, 4)
LSTM_FORWARD(lstm_forward_keep_1, 1, true, true, 12, 2)
LSTM_FORWARD(lstm_forward_keep_2, 2, true, true, 8, 2)

// The same in clusters of two blocks that share 32 rows: an even number of blocks, of at most half as many warps as there
// are groups of units.
#ifdef HAS_CLUSTERS
#define LSTM_FORWARD_PAIR(name, SPLIT, KEEP, AHEAD)                                                     \
  extern "C" __global__ void __launch_bounds__(32 * LSTM_WARPS(13), 1)                                  \
      name(const __grid_constant__ LstmForward arguments) {                                             \
    SHARED_DYN(unsigned char, shared);                                                                  \
    const uint32_t rows = KEEP ? *arguments.count : arguments.rows;                                     \
    if (arguments.first_slot + blockIdx.x / 2 * 32 < rows)                                              \
      Forward<2, 2, SPLIT, KEEP, AHEAD>(arguments, shared).run();                                       \
  }
#else
#define LSTM_FORWARD_PAIR(name, SPLIT, KEEP, AHEAD) \
  extern "C" __global__ void name(const __grid_constant__ LstmForward) { __trap(); }
#endif
LSTM_FORWARD_PAIR(lstm_forward_pair_split, true, false, 2)
LSTM_FORWARD_PAIR(lstm_forward_pair_plain, false, false, 3)
LSTM_FORWARD_PAIR(lstm_forward_pair_keep, true, true, 1)

EXPORT_KERNEL(lstm_forward_split_1)
EXPORT_KERNEL(lstm_forward_split_2)
EXPORT_KERNEL(lstm_forward_split_4)
EXPORT_KERNEL(lstm_forward_plain_1)
EXPORT_KERNEL(lstm_forward_plain_2)
EXPORT_KERNEL(lstm_forward_plain_4)
EXPORT_KERNEL(lstm_forward_keep_1)
EXPORT_KERNEL(lstm_forward_keep_2)
EXPORT_KERNEL(lstm_forward_pair_split)
EXPORT_KERNEL(lstm_forward_pair_plain)
EXPORT_KERNEL(lstm_forward_pair_keep)
