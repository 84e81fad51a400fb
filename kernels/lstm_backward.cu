// lstm_backward.cu -- back-propagation through time of the weighted log-probs that lstm_forward kept.
//
// A block owns 16 * TILES slots from their last step to the first. Gate gradients lie in shared memory as bf16 parts, the A
// operands of the products that send them to the step before and to the layer below; the same parts replace the kept
// activations in device memory, where lstm_weights.cu reads them. What a thread accumulates for a unit only that
// thread reads again, so those sums need no barrier and no shared layout.
#include "common/coefficient.cuh"
#include "common/lstm.cuh"
#include "common/reduce.cuh"
#include "common/split.cuh"
#include "common/status.cuh"
#include "common/stream.cuh"

struct LstmBackward {
  const uint4* packed;
  LstmSize size;
  uint32_t longest, capacity, first_slot, kind;
  const uint32_t* order;       // [slots]: the row of each
  const uint32_t* count;       // slots in use
  const uint32_t* tile_steps;  // [capacity / 16]
  const float* weights;        // [rows]
  const double* log_q;         // [rows]; read by a baseline and a divergence
  const double* log_p;         // [rows]; read by a divergence and a balance
  const double* shift;         // null, or one value
  const double* log_probs;     // [rows]: finished log pi
  const float* cell;           // as in lstm_forward
  float* gates;                // in: activations; out: gradients of the pre-activations, a row of each as two parts
  float* residual;             // in: onehot - softmax; out: times the coefficient, a row as two parts
  float* sums;                 // [blocks, 2 layers + 1, rows of a block, U]: dh per layer, dc per layer, dh below
  double alpha;
  float scale;                 // of all kinds of coefficients but those given
  uint32_t unused;
  Dropout dropout;             // as in lstm_forward
};
static_assert(sizeof(LstmBackward) == 184, "src/models/lstm/gpu/backward.rs has the same layout");

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

template <int TILES> struct Backward {
  static constexpr int kRows = 16 * TILES;
  const LstmBackward& a;
  const Lane at;
  const uint32_t warp, warps, gate_stride, residual_stride;
  Stream<4, 2, BackwardWalk> weights;
  float* coefficient;       // [kRows]
  uint32_t* row;            // [kRows]
  uint32_t* tile_longest;   // [TILES, padded to 4]: steps that the forward pass kept
  __nv_bfloat16* gates;     // [2 parts][kRows][4U + 8]
  __nv_bfloat16* residual;  // [2 parts][kRows][O + 8]

  __device__ __forceinline__ Backward(const LstmBackward& a, unsigned char* shared)
      : a(a), warp(threadIdx.x / 32), warps(blockDim.x / 32), gate_stride(a.size.gates() + 8),
        residual_stride(a.size.outputs + 8), weights(BackwardWalk(a)) {
    coefficient = reinterpret_cast<float*>(shared);
    row = reinterpret_cast<uint32_t*>(coefficient + kRows);
    tile_longest = row + kRows;
    gates = reinterpret_cast<__nv_bfloat16*>(tile_longest + 4);
    residual = gates + 2 * kRows * gate_stride;
  }

  // A slot of the kept buffers, and whether a row has it.
  __device__ __forceinline__ uint32_t slot(uint32_t local) const { return blockIdx.x * kRows + local; }
  __device__ __forceinline__ bool used(uint32_t local) const { return a.first_slot + slot(local) < *a.count; }
  // Its row among those kept of a step, or of a layer's step.
  __device__ __forceinline__ uint64_t kept(uint64_t step, uint32_t local) const { return step * a.capacity + slot(local); }

  // The thread's own sums of one tile: dh of `layer`, dc of `layer`, dh from the layer above.
  __device__ __forceinline__ float4* own(uint32_t which, uint32_t group, int tile) {
    const uint64_t block = uint64_t(blockIdx.x) * (2 * a.size.layers + 1) + which;
    return reinterpret_cast<float4*>(a.sums) + ((block * a.size.groups() + group) * TILES + tile) * 32 + at.lane;
  }
  __device__ __forceinline__ uint32_t hidden_of(uint32_t layer) const { return layer; }
  __device__ __forceinline__ uint32_t cell_of(uint32_t layer) const { return a.size.layers + layer; }
  __device__ __forceinline__ uint32_t below() const { return 2 * a.size.layers; }

  // The coefficient of a row; all kinds but the given one need the whole sequence's log pi.
  __device__ __forceinline__ float coefficient_of(uint32_t row) const {
    if (a.kind == kGiven) return a.weights[row];
    const double log_pi = a.log_probs[row];
    if (a.kind == kBaseline) return a.weights[row] - a.scale * float(exp(log_pi - a.log_q[row]));
    const double shift = a.shift ? *a.shift : 0.0, log_q = a.kind == kBalance ? 0.0 : a.log_q[row];
    return float(double(a.scale) * shifted_coefficient(a.kind, a.alpha, log_pi, a.log_p[row], log_q, shift));
  }

  __device__ __forceinline__ void begin() {
    for (uint32_t local = threadIdx.x; local < kRows; local += blockDim.x) {
      row[local] = used(local) ? a.order[a.first_slot + slot(local)] : 0;
      coefficient[local] = used(local) ? coefficient_of(row[local]) : 0.0f;
    }
    if (threadIdx.x < TILES)
      tile_longest[threadIdx.x] = used(threadIdx.x * 16) ? a.tile_steps[slot(threadIdx.x * 16) / 16] : 0;
    for (uint32_t group = warp; group < a.size.groups(); group += warps)
      for (uint32_t which = 0; which < 2 * a.size.layers; which++)
        for (int tile = 0; tile < TILES; tile++) *own(which, group, tile) = make_float4(0, 0, 0, 0);
    __syncthreads();
  }

  // The step's residual times the coefficients as an operand.
  __device__ __forceinline__ void load_residual(uint32_t t) {
    const uint32_t pairs = a.size.outputs / 2;
    for (uint32_t i = threadIdx.x; i < kRows * pairs; i += blockDim.x) {
      const uint32_t local = i / pairs, column = i % pairs * 2;
      float2 two = make_float2(0, 0);
      if (t < tile_longest[local / 16]) {
        const float2* from = reinterpret_cast<const float2*>(a.residual + kept(t, local) * a.size.outputs + column);
        const float by = coefficient[local];
        if (by != 0) two = make_float2(from->x * by, from->y * by);
      }
      const Pair pair = split_pair<Bfloats>(two.x, two.y);
      uint32_t* to = reinterpret_cast<uint32_t*>(residual + local * residual_stride + column);
      to[0] = pair.hi;
      to[kRows * residual_stride / 2] = pair.lo;
    }
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
      add_step(sums.by[0], residual + step * 16, residual_stride, __ldg(packed + step * 32));
  }

  // sums += gate gradients * weights, which are the walk's next run, both in two parts.
  __device__ __forceinline__ void multiply(Sums& sums) {
    weights.each([&](uint32_t piece, const uint4(&w)[4]) {
#pragma unroll
      for (int i = 0; i < 4; i++) add_step(sums.by[i % 2], gates + (piece * 4 + i) * 16, gate_stride, w[i]);
    });
  }

  __device__ __forceinline__ void add_step(float (&sums)[3][TILES][4], const __nv_bfloat16* rows, uint32_t stride, uint4 w) {
    const uint32_t b_hi[2] = {w.x, w.y}, b_lo[2] = {w.z, w.w};
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      uint32_t hi[4], lo[4];
      load_rows(hi, rows + tile * 16 * stride, stride);
      load_rows(lo, rows + kRows * stride + tile * 16 * stride, stride);
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

  __device__ __forceinline__ void differentiate_tile(uint32_t layer, uint32_t t, uint32_t group, int tile, const float (&dh)[4]) {
    if (t >= tile_longest[tile]) return no_gradient(group, tile);
    float4* own_cell = own(cell_of(layer), group, tile);
    float dc[4] = {own_cell->x, own_cell->y, own_cell->z, own_cell->w};
    const uint64_t units = a.size.units, capacity = a.capacity, unit = group * 8 + at.q * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t local = tile * 16 + half * 8 + at.g;
      const uint64_t step = uint64_t(layer) * a.longest + t;
      const float* cell = a.cell + ((step + layer) * capacity + slot(local)) * units + unit;
      const float2 before = *reinterpret_cast<const float2*>(cell);
      const float2 after = *reinterpret_cast<const float2*>(cell + capacity * units);
      const float4* activations = reinterpret_cast<const float4*>(a.gates + kept(step, local) * a.size.gates()) + unit;
      const float4 first = activations[0], second = activations[1];
      float one[4] = {first.x, first.y, first.z, first.w}, two[4] = {second.x, second.y, second.z, second.w};
      differentiate_cell(one, dh[2 * half], dc[2 * half], before.x, after.x);
      differentiate_cell(two, dh[2 * half + 1], dc[2 * half + 1], before.y, after.y);
      set_gates(local, unit, one, two);
    }
    *own_cell = make_float4(dc[0], dc[1], dc[2], dc[3]);
  }

  // The gate gradients of two neighbouring units as an operand.
  __device__ __forceinline__ void set_gates(uint32_t local, uint32_t unit, const float (&one)[4], const float (&two)[4]) {
    const Pair a = split_pair<Bfloats>(one[0], one[1]), b = split_pair<Bfloats>(one[2], one[3]);
    const Pair c = split_pair<Bfloats>(two[0], two[1]), d = split_pair<Bfloats>(two[2], two[3]);
    __nv_bfloat16* to = gates + local * gate_stride + unit * 4;
    *reinterpret_cast<uint4*>(to) = make_uint4(a.hi, b.hi, c.hi, d.hi);
    *reinterpret_cast<uint4*>(to + kRows * gate_stride) = make_uint4(a.lo, b.lo, c.lo, d.lo);
  }

  // A tile that had ended by this step: what the buffers hold there is of another time.
  __device__ __forceinline__ void no_gradient(uint32_t group, int tile) {
    const float none[4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) set_gates(tile * 16 + half * 8 + at.g, group * 8 + at.q * 2, none, none);
  }

  // In: the activations i, f, g, o; out: the gradients of their pre-activations. dc becomes that of the step before.
  static __device__ __forceinline__ void differentiate_cell(float (&gate)[4], float dh, float& dc, float before, float after) {
    const float i = gate[0], f = gate[1], g = gate[2], o = gate[3], squashed = tanh_of(after);
    dc += dh * o * (1.0f - squashed * squashed);
    gate[0] = dc * g * i * (1.0f - i);
    gate[1] = dc * before * f * (1.0f - f);
    gate[2] = dc * i * (1.0f - g * g);
    gate[3] = dh * squashed * o * (1.0f - o);
    dc *= f;
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

  // Rows of an operand, [2 parts][kRows][stride] with so many columns in use, to where a step's are kept, each as its parts.
  __device__ __forceinline__ void copy_out(const __nv_bfloat16* rows, uint32_t stride, uint32_t columns, uint64_t step, float* to) {
    const uint32_t packs = columns / 8;
    for (uint32_t i = threadIdx.x; i < 2 * kRows * packs; i += blockDim.x) {
      const uint32_t line = i / packs, part = line / kRows, local = line % kRows, pack = i % packs;
      uint4* row = reinterpret_cast<uint4*>(to + kept(step, local) * columns);
      row[part * packs + pack] = *reinterpret_cast<const uint4*>(rows + line * stride + pack * 8);
    }
  }

  // Time step t of all layers.
  __device__ __forceinline__ void step(uint32_t t) {
    load_residual(t);
    __syncthreads();
    copy_out(residual, residual_stride, a.size.outputs, t, a.residual);
    for (uint32_t layer = a.size.layers; layer-- > 0;) {
      differentiate(layer, t);
      __syncthreads();
      copy_out(gates, gate_stride, a.size.gates(), uint64_t(layer) * a.longest + t, a.gates);
      send(layer);
      __syncthreads();
    }
  }

  __device__ __forceinline__ void run() {
    begin();
    uint32_t longest = 0;
    for (int tile = 0; tile < TILES; tile++) longest = max(longest, tile_longest[tile]);
    for (uint32_t t = longest; t-- > 0;) step(t);
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
