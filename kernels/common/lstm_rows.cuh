// lstm_rows.cuh -- the sequences of a block that takes an LSTM forward, and their token step: score or draw, from logits.
#pragma once
#include "common/features.cuh"
#include "common/lstm.cuh"
#include "common/status.cuh"

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
  float* gates;           // [layers, longest, capacity, U, 4]: activations
  float* residual;        // [longest, capacity, O]: onehot - softmax
  uint32_t* inputs;       // [longest, capacity]
  uint32_t* tile_steps;   // [capacity / 16]: steps of the longest of 16 slots
  __nv_bfloat16* dropped; // [layers, longest, capacity, 2 parts, U]: states behind dropout, where there is any
  Dropout dropout;        // training
  features::DrawnRows drawn;  // sampling
  unsigned long long* status;
};
static_assert(sizeof(LstmForward) == 328, "src/models/lstm/gpu/forward.rs has the same layout");

// 16 * TILES rows shared by BLOCKS of a cluster. KEEP is the training mode.
template <int TILES, int BLOCKS, bool KEEP> struct LstmRows {
  static constexpr int kRows = 16 * TILES, kOwnTiles = TILES / BLOCKS, kOwnRows = 16 * kOwnTiles;
  static constexpr uint32_t kLanes = 8;  // of a row in the token step
  const LstmForward& a;
  const Lane at;
  const uint32_t block, warp, warps;  // `block` of the cluster
  // Of each row, at the start of the block's shared memory.
  struct Rows {
    double log_q[kRows], log_model[kRows];
    uint32_t row[kRows], token[kRows], length[kRows], state[kRows], alive[kRows];
  };
  Rows& rows;

  __device__ __forceinline__ LstmRows(const LstmForward& a, unsigned char* shared)
      : a(a), block(BLOCKS == 2 ? dev::cluster_rank() : 0), warp(threadIdx.x / 32), warps(blockDim.x / 32),
        rows(*reinterpret_cast<Rows*>(shared)) {}

  // Writes here and to the same place of the other block.
  template <typename T> __device__ __forceinline__ void put(T* to, T value) const {
    *to = value;
    if (BLOCKS == 2) *dev::cluster_map(to, block ^ 1) = value;
  }

  __device__ __forceinline__ bool samples() const { return !KEEP && a.mode == kSample; }

  // Of a row of logits, in floats: an odd number, which spreads rows over the banks.
  __device__ __forceinline__ uint32_t logit_stride() const { return a.size.outputs + 1; }

  // A slot of the kept buffers, and whether a row has it: all rows have, or those with a coefficient.
  __device__ __forceinline__ uint32_t slot(uint32_t local) const { return blockIdx.x / BLOCKS * kRows + local; }
  __device__ __forceinline__ bool used(uint32_t local) const {
    return a.first_slot + slot(local) < (KEEP ? *a.count : a.rows);
  }
  // The n-th row of those whose tokens this block takes.
  __device__ __forceinline__ uint32_t own(uint32_t n) const { return block * kOwnRows + n; }

  __device__ __forceinline__ void begin_row(uint32_t local) {
    const bool in_use = used(local);
    rows.row[local] = !in_use ? 0 : KEEP ? a.order[a.first_slot + slot(local)] : slot(local);
    rows.token[local] = a.bos;
    rows.state[local] = 0;
    rows.log_q[local] = rows.log_model[local] = 0;
    rows.length[local] = !in_use ? 0 : samples() ? a.longest : a.lengths[rows.row[local]];
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
  __device__ __forceinline__ void token_step(uint32_t local, uint32_t t, const float* logits) {
    bool live = rows.alive[local];
    if (!__any_sync(~0u, live)) {
      if (KEEP) keep_nothing(local, t);
      return;
    }
    const uint64_t sequence = uint64_t(rows.row[local]) * a.longest;
    const bool given = live && t < a.given[rows.row[local]], draws = live && samples() && !given;
    uint32_t emitted = live && !draws ? a.tokens[sequence + t] : 0;
    const bool bad = emitted >= a.size.vocab;
    if (bad) live = false, emitted = 0;
    const uint32_t in_state = rows.state[local];
    const Logits plain{a, logits + local * logit_stride(), t, in_state, false};
    const Logits drawn{a, plain.z, t, in_state, a.next != nullptr};
    const Softmax model = softmax(plain), q = drawn.guided ? softmax(drawn) : model;
    if (samples()) {
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
      if (samples())
        for (uint32_t t = rows.length[local] + at.lane; t < a.longest; t += 32) a.tokens[sequence + t] = a.pad;
      if (at.lane != 0) continue;
      if (samples()) a.lengths[rows.row[local]] = rows.length[local];
      if (samples()) a.log_model[rows.row[local]] = rows.log_model[local];
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
};
