// subtrajectory.cu -- sub-trajectory balance: prefixes of the sequences of an update are ended, and held against each other.
//
// src/tune/subtrajectory/mod.rs has the mathematics. A sequence has a group of `prefixes` rows, of which the first
// min(prefixes, candidates) are in use; its candidates are its ended prefixes that hold its context, itself the longest.
#include "common/philox.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"
#include "common/status.cuh"

constexpr int kBlock = 1024;

// Draws `count` of the numbers begin .. end without repetition, all sets alike (Floyd), to at[0 .. count). All lanes of the
// warp.
DEV_FN void draw_positions(uint32_t* at, uint32_t count, uint32_t begin, uint32_t end, uint64_t seed, uint64_t index,
                           uint32_t purpose) {
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t k = 0; k < count; k++) {
    const uint32_t last = end - count + k;
    const uint32_t picked = begin + uint32_t(uint64_t(philox(seed, index, k, purpose).x) * (last - begin + 1) >> 32);
    bool taken = false;
    for (uint32_t j = lane; j < k; j += 32) taken |= at[j] == picked;
    taken = __any_sync(~0u, taken);
    if (lane == 0) at[k] = taken ? last : picked;
    __syncwarp();
  }
}

// The ended prefixes of `sequences` rows of `longest` tokens, of which the first `*chosen` are in use and were the last of
// `*picks`: candidates[sequences], positions[sequences * prefixes], and the prefixes themselves; an EOS where a row is not
// in use. A warp per sequence, any grid.
extern "C" __global__ void __launch_bounds__(256)
end_prefixes(const Rows from, uint64_t sequences, uint32_t prefixes, uint32_t longest, uint32_t eos, uint32_t pad,
             uint64_t seed, uint32_t purpose, const uint64_t* picks, const uint64_t* chosen, uint32_t* candidates,
             uint32_t* positions, const Rows to) {
  const uint64_t warps = uint64_t(gridDim.x) * (blockDim.x / 32), used = *chosen, before = *picks - used;
  const uint32_t lane = threadIdx.x % 32;
  for (uint64_t s = uint64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; s < sequences; s += warps) {
    const uint32_t *source = from.tokens + s * longest, length = from.lengths[s], given = from.given[s];
    const uint32_t content = length - (source[length - 1] == eos);
    const uint32_t of = s < used ? content - given + 1 : 0, held = min(of, prefixes);
    uint32_t* at = positions + s * prefixes;
    draw_positions(at, held, given, content + 1, seed, before + s, purpose);
    for (uint32_t k = 0; k < prefixes; k++) {
      const uint32_t position = k < held ? at[k] : 0;
      const uint64_t row = s * prefixes + k;
      // A sequence that was cut has `longest` tokens and no EOS.
      for (uint32_t t = lane; t < longest; t += 32)
        to.tokens[row * longest + t] = t < position ? source[t] : t == position ? eos : pad;
      if (lane != 0) continue;
      to.lengths[row] = min(position + 1, longest);
      to.given[row] = k < held ? given : 0, to.context[row] = k < held ? from.context[s] : 0;
      if (k >= held) at[k] = 0;
    }
    if (lane == 0) candidates[s] = of;
  }
}

// What is known of each row, and which rows of one group are in use.
struct Group {
  const uint32_t* positions;
  const double *log_p, *log_pi, *powers;
  uint64_t begin, end;
};

// A, the log-weight of an ended prefix.
DEV_FN double log_weight(const Group& group, uint64_t row) { return group.log_p[row] - group.log_pi[row]; }

// sum_j lambda^(|i - j| - 1) (A_i - A_j) over the group, in order, for the prefix of row `row`; 0 where an A is not finite.
DEV_FN double imbalance(const Group& group, uint64_t row) {
  const double own = log_weight(group, row);
  double sum = 0;
  for (uint64_t other = group.begin; other < group.end; other++) {
    const uint32_t a = group.positions[row], b = group.positions[other];
    if (!isfinite(log_weight(group, other))) return 0;
    sum += dev::mul_rn(group.powers[a < b ? b - a : a - b], own - log_weight(group, other));
  }
  return sum;
}

// weights[rows]: the coefficients of the ended prefixes, 0 where a row is not in use or in a group with an A that is not
// finite, whose row is noted; the sum of -log pi over the rows in use joins the loss. One block.
extern "C" __global__ void __launch_bounds__(kBlock)
balance_prefixes(const uint32_t* candidates, const uint32_t* positions, const double* log_p, const double* log_pi,
                 const double* powers, const double* shares, uint64_t rows, uint32_t prefixes, uint32_t longest,
                 const uint64_t* chosen, float* weights, double* loss, double* loss_weight, unsigned long long* status) {
  const float scale = 1.0f / (float(*chosen) * float(longest));
  double total = 0, count = 0;
  for (uint64_t row = threadIdx.x; row < rows; row += kBlock) {
    const uint64_t s = row / prefixes, begin = s * prefixes, end = begin + min(candidates[s], prefixes);
    weights[row] = 0;
    if (row >= end) continue;
    const Group group{positions, log_p, log_pi, powers, begin, end};
    if (!isfinite(log_weight(group, row))) {
      note_fault(status, row, kBadPrefix);
      continue;
    }
    weights[row] = float(dev::mul_rn(imbalance(group, row), shares[candidates[s]])) * scale;
    total -= log_pi[row], count += 1;
  }
  total = block_sum(total), count = block_sum(count);
  if (threadIdx.x == 0) *loss += total, *loss_weight += count * double(longest);
}

EXPORT_KERNEL(end_prefixes)
EXPORT_KERNEL(balance_prefixes)
