// lstm_pack.cu -- the LSTM's weights as tensor-core operands, made anew after each update; layouts in common/lstm.cuh.
#include "common/lstm.cuh"
#include "common/split.cuh"

// Two rows k, k + 1 of one column of a [K, stride] matrix.
template <typename Kind> DEV_FN Pair column_pair(const float* from, uint64_t stride) {
  return split_pair<Kind>(from[0], from[stride]);
}

// Forward gates: `at` counts [group][step][part][half][lane]. For products of warpgroups (rows of A) the two gates take turns,
// for those of warps (columns of B) each gate's two words are neighbours.
DEV_FN uint4 forward_gates(const LstmSize& size, const float* matrix, uint64_t at, bool for_warpgroups) {
  const uint32_t lane = at % 32, half = at / 32 % 2, part = at / 64 % 2;
  const uint32_t step = at / 128 % size.steps(), group = uint32_t(at / 128 / size.steps());
  const uint32_t unit = group * 8 + lane / 4, k = step * 16 + lane % 4 * 2;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t gate = half * 2 + (for_warpgroups ? i % 2 : i / 2), row = k + (for_warpgroups ? i / 2 : i % 2) * 8;
    const Pair pair = column_pair<Halves>(matrix + uint64_t(row) * size.gates() + unit * 4 + gate, size.gates());
    words[i] = part ? pair.lo : pair.hi;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// A [K, N] operand with 8 columns a tile and both parts in one piece: `from` points to (k, n) of the lane.
template <typename Kind> DEV_FN uint4 both_parts(const float* from, uint64_t k_stride) {
  const Pair low = column_pair<Kind>(from, k_stride), high = column_pair<Kind>(from + 8 * k_stride, k_stride);
  return make_uint4(low.hi, high.hi, low.lo, high.lo);
}

// An operand A of 16 rows in one part: `from` points to (row 0, k 0) of a step.
template <typename Kind> DEV_FN uint4 rows_of_part(const float* from, uint64_t row_stride, uint32_t lane, bool low) {
  const float* mine = from + lane / 4 * row_stride + lane % 4 * 2;
  const Pair pairs[4] = {column_pair<Kind>(mine, 1), column_pair<Kind>(mine + 8 * row_stride, 1), column_pair<Kind>(mine + 8, 1),
                         column_pair<Kind>(mine + 8 * row_stride + 8, 1)};
  return low ? make_uint4(pairs[0].lo, pairs[1].lo, pairs[2].lo, pairs[3].lo)
             : make_uint4(pairs[0].hi, pairs[1].hi, pairs[2].hi, pairs[3].hi);
}

// A matrix [U, columns] transposed, K running over columns: for warps `at` counts [group][step][lane], both parts together, for
// warpgroups [group of 16][step][part][lane].
DEV_FN uint4 transposed(const float* matrix, uint32_t columns, uint64_t at, bool for_warpgroups) {
  const uint32_t steps = columns / 16, lane = at % 32;
  if (for_warpgroups) {
    const uint64_t step = at / 64 % steps, tile = at / 64 / steps;
    return rows_of_part<Bfloats>(matrix + tile * 16 * columns + step * 16, columns, lane, at / 32 % 2);
  }
  const uint64_t step = at / 32 % steps, group = at / 32 / steps;
  return both_parts<Bfloats>(matrix + (group * 8 + lane / 4) * columns + step * 16 + lane % 4 * 2, 1);
}

DEV_FN uint4 pack_piece(const LstmSize& size, const float* parameters, uint64_t at, bool for_warpgroups) {
  const uint32_t lane = at % 32, k = lane % 4 * 2, n = lane / 4;
  const uint64_t len = size.packed_matrix_len();
  if (at < size.packed_backward(0))
    return forward_gates(size, parameters + size.matrix(uint32_t(at / len)), at % len, for_warpgroups);
  if (at < size.packed_head()) {
    const uint64_t in = at - size.packed_backward(0);
    return transposed(parameters + size.matrix(uint32_t(in / len)), size.gates(), in % len, for_warpgroups);
  }
  if (at < size.packed_head_backward()) {
    const uint64_t in = (at - size.packed_head()) / 32, step = in % size.steps(), tile = in / size.steps();
    return both_parts<Halves>(parameters + size.head() + (step * 16 + k) * size.outputs + tile * 8 + n, size.outputs);
  }
  return transposed(parameters + size.head(), size.outputs, at - size.packed_head_backward(), for_warpgroups);
}

// packed[size.packed_len()] from parameters. Any grid.
extern "C" __global__ void __launch_bounds__(256)
lstm_pack(const float* parameters, uint4* packed, uint32_t layers, uint32_t units, uint32_t vocab, uint32_t outputs,
          uint32_t for_warpgroups) {
  const LstmSize size{layers, units, vocab, outputs};
  const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < size.packed_len(); at += stride)
    packed[at] = pack_piece(size, parameters, at, for_warpgroups);
}

EXPORT_KERNEL(lstm_pack)
