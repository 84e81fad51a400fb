// lstm_back.cuh -- back-propagation through time of the weighted log-probs that a forward pass kept: a block's slots, from their
// last step to the first. How gate gradients are multiplied by weights is what the kernels differ in.
#pragma once
#include "common/coefficient.cuh"
#include "common/lstm.cuh"
#include "common/split.cuh"

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

// Products, which derives from this, has
//   differentiate(layer, t): the layer's gate gradients at step t, from what has been sent to it;
//   send(layer): the layer's gate gradients to its own state of the step before and to the layer below;
//   place(local, column), operand_len(columns): where values lie in one part of an operand, and how long that is;
//   meet(): what has been written to operands is there for all.
template <typename Products, int TILES> struct BackwardPass {
  static constexpr int kRows = 16 * TILES;
  const LstmBackward& a;
  const Lane at;
  const uint32_t warp, warps;
  float* coefficient;       // [kRows]
  uint32_t* row;            // [kRows]
  uint32_t* tile_longest;   // [TILES, padded to 4]: steps that the forward pass kept
  __nv_bfloat16* gates;     // [2 parts] of 4U columns
  __nv_bfloat16* residual;  // [2 parts] of O columns

  __device__ __forceinline__ BackwardPass(const LstmBackward& a, unsigned char* shared)
      : a(a), warp(threadIdx.x / 32), warps(blockDim.x / 32) {
    coefficient = reinterpret_cast<float*>(shared);
    row = reinterpret_cast<uint32_t*>(coefficient + kRows);
    tile_longest = row + kRows;
    gates = reinterpret_cast<__nv_bfloat16*>(tile_longest + 4);
    residual = gates + 2 * Products::operand_len(a.size.gates());
  }
  __device__ __forceinline__ Products& products() { return static_cast<Products&>(*this); }

  // A slot of the kept buffers, and whether a row has it.
  __device__ __forceinline__ uint32_t slot(uint32_t local) const { return blockIdx.x * kRows + local; }
  __device__ __forceinline__ bool used(uint32_t local) const { return a.first_slot + slot(local) < *a.count; }
  // Its row among those kept of a step, or of a layer's step.
  __device__ __forceinline__ uint64_t kept(uint64_t step, uint32_t local) const { return step * a.capacity + slot(local); }

  // The block's sums: dh of each layer, dc of each layer, dh from the layer above. Each is [kRows * U] in an order of the kernel's.
  __device__ __forceinline__ float4* sums(uint32_t which) const {
    const uint64_t block = uint64_t(blockIdx.x) * (2 * a.size.layers + 1) + which;
    return reinterpret_cast<float4*>(a.sums + block * kRows * a.size.units);
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
    for (uint32_t i = threadIdx.x; i < 2 * a.size.layers * kRows * a.size.units / 4; i += blockDim.x)
      sums(0)[i] = make_float4(0, 0, 0, 0);
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
      uint32_t* to = reinterpret_cast<uint32_t*>(residual + products().place(local, column, a.size.outputs));
      dev::store_operand(to, pair.hi);
      dev::store_operand(to + Products::operand_len(a.size.outputs) / 2, pair.lo);
    }
  }

  // One unit of a row: its gate gradients from that of its state. dc becomes that of the step before. Where a tile had ended by
  // this step, what the buffers hold is of another time, and there is no gradient.
  __device__ __forceinline__ void differentiate_unit(uint32_t layer, uint32_t t, uint32_t local, uint32_t unit, float dh, float& dc) {
    float gate[4] = {};
    if (t < tile_longest[local / 16]) {
      const uint64_t step = uint64_t(layer) * a.longest + t;
      const float* cell = a.cell + kept(step + layer, local) * a.size.units + unit;
      const float4 kept_gates = reinterpret_cast<const float4*>(a.gates + kept(step, local) * a.size.gates())[unit];
      gate[0] = kept_gates.x, gate[1] = kept_gates.y, gate[2] = kept_gates.z, gate[3] = kept_gates.w;
      differentiate_cell(gate, dh, dc, cell[0], cell[uint64_t(a.capacity) * a.size.units]);
    }
    const Pair first = split_pair<Bfloats>(gate[0], gate[1]), second = split_pair<Bfloats>(gate[2], gate[3]);
    __nv_bfloat16* to = gates + products().place(local, unit * 4, a.size.gates());
    dev::store_operand(reinterpret_cast<uint2*>(to), make_uint2(first.hi, second.hi));
    dev::store_operand(reinterpret_cast<uint2*>(to + Products::operand_len(a.size.gates())), make_uint2(first.lo, second.lo));
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

  // An operand with so many columns to where a step's rows are kept, each as its parts.
  __device__ __forceinline__ void copy_out(const __nv_bfloat16* operand, uint32_t columns, uint64_t step, float* to) {
    const uint32_t packs = columns / 8;
    for (uint32_t i = threadIdx.x; i < 2 * kRows * packs; i += blockDim.x) {
      const uint32_t line = i / packs, part = line / kRows, local = line % kRows, pack = i % packs;
      const __nv_bfloat16* from = operand + part * Products::operand_len(columns) + products().place(local, pack * 8, columns);
      reinterpret_cast<uint4*>(to + kept(step, local) * columns)[part * packs + pack] = *reinterpret_cast<const uint4*>(from);
    }
  }

  // Time step t of all layers.
  __device__ __forceinline__ void step(uint32_t t) {
    load_residual(t);
    products().meet();
    copy_out(residual, a.size.outputs, t, a.residual);
    for (uint32_t layer = a.size.layers; layer-- > 0;) {
      products().differentiate(layer, t);
      products().meet();
      copy_out(gates, a.size.gates(), uint64_t(layer) * a.longest + t, a.gates);
      products().send(layer);
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
