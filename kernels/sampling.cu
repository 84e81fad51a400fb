// sampling.cu -- one token per row of logits under temperature, top-k, top-p and min-p, with its log q.
//
// A block per row. Weights 2^((x - max) * c) are counted as multiples of 2^-40: integers, so that sums by atomics have no
// order. A threshold is found by four passes over the row, one byte of the ordered bits of a logit each: a histogram of
// tokens and weights, then the highest bin from which on there is enough. The draw is one more pass in the order of the
// tokens, a tile of 256 at a time, up to the tile that holds it. All passes but the first find the row in the L2.
#include "common/philox.cuh"
#include "common/softmax.cuh"

constexpr uint32_t kThreads = 256;
constexpr float kOne = 1099511627776.0f;  // 2^40

// Bits that order as the numbers do; -0 is 0.
DEV_FN uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}
constexpr uint32_t kNoLogitKey = 0x007FFFFF;  // of -inf

DEV_FN uint64_t weight_of(float x, float max, float c) { return uint64_t(dev::exp2_approx((x - max) * c) * kOne); }

// floor(share * total), of a share in [0, 1) with at most 40 bits behind the point.
DEV_FN uint64_t share_of(float share, uint64_t total) {
  return __umul64hi(uint64_t(share * kOne) << 24, total);
}

// What a threshold is to leave: so many tokens, or so much weight.
struct Least {
  bool tokens;
  uint64_t wanted;
};
struct Bins {
  uint32_t tokens[256];
  unsigned long long weights[256];
  uint32_t bin;
  unsigned long long above;
};

// The highest key, at least `least`, from which on the logits are enough; `least` where all are not. Valid in all threads.
template <typename T>
DEV_FN uint32_t threshold(const Softmax& softmax, const T* row, float max, uint32_t least, Least wanted, Bins* bins) {
  const float c = softmax.scale * kLog2e;
  uint32_t prefix = 0;
  uint64_t above = 0;  // enough above this prefix's bins
  for (int shift = 24; shift >= 0; shift -= 8) {
    bins->tokens[threadIdx.x] = 0;
    bins->weights[threadIdx.x] = 0;
    if (threadIdx.x == 0) bins->bin = 256;
    __syncthreads();
    for (uint32_t token = threadIdx.x; token < softmax.vocab; token += kThreads) {
      const float x = logit(softmax, row, token);
      const uint32_t key = key_of(x);
      if (key < least || (shift < 24 && key >> (shift + 8) != prefix >> (shift + 8))) continue;
      atomicAdd(&bins->tokens[key >> shift & 255], 1u);
      atomicAdd(&bins->weights[key >> shift & 255], static_cast<unsigned long long>(weight_of(x, max, c)));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      uint64_t sum = above;
      for (int bin = 255; bin >= 0; bin--) {
        const uint64_t more = wanted.tokens ? bins->tokens[bin] : bins->weights[bin];
        if (bins->tokens[bin] && sum + more >= wanted.wanted) {
          bins->bin = uint32_t(bin), bins->above = sum;
          break;
        }
        sum += more;
      }
    }
    __syncthreads();
    const uint32_t bin = bins->bin;
    above = bins->above;
    __syncthreads();  // the bins are used again
    if (bin == 256) return least;
    prefix |= bin << shift;
  }
  return prefix;
}

// The weight of the tokens from `least` on, in all threads; `dropped` where a token that may occur is below.
template <typename T>
DEV_FN uint64_t total_of(const Softmax& softmax, const T* row, float max, uint32_t least, bool* dropped) {
  const float c = softmax.scale * kLog2e;
  uint64_t total = 0;
  uint32_t low = 0;
  for (uint32_t token = threadIdx.x; token < softmax.vocab; token += kThreads) {
    const float x = logit(softmax, row, token);
    if (key_of(x) >= least) total += weight_of(x, max, c);
    low |= key_of(x) < least && x > -INFINITY;
  }
  *dropped = block_max(low) != 0;
  return block_sum(total);
}

// The first token from `least` on whose cumulated weight exceeds the target, in all threads.
template <typename T>
DEV_FN uint32_t draw(const Softmax& softmax, const T* row, float max, uint32_t least, uint64_t target) {
  SHARED(unsigned long long, of_warp, [kThreads / 32]);
  SHARED(uint32_t, found, [1]);
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float c = softmax.scale * kLog2e;
  uint64_t before = 0;
  for (uint32_t first = 0; first < softmax.vocab; first += kThreads) {
    const uint32_t token = first + threadIdx.x;
    const float x = token < softmax.vocab ? logit(softmax, row, token) : -INFINITY;
    const uint64_t weight = x > -INFINITY && key_of(x) >= least ? weight_of(x, max, c) : 0;
    uint64_t upto = weight;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, upto, distance);
      if (lane >= distance) upto += other;
    }
    if (lane == 31) of_warp[warp] = upto;
    __syncthreads();
    uint64_t tile = 0;
    for (uint32_t w = 0; w < kThreads / 32; w++) {
      if (w < warp) upto += of_warp[w];
      tile += of_warp[w];
    }
    upto += before;
    if (upto > target && upto - weight <= target) *found = token;
    before += tile;
    __syncthreads();  // found is there, and of_warp may be used again
    if (before > target) break;
  }
  return *found;
}

template <typename T>
DEV_FN void sample_rows(const T* logits, uint64_t rows, uint64_t stride, Softmax softmax, uint32_t top_k, float top_p,
                        float lowest, uint64_t seed, uint64_t first, uint32_t position, uint32_t purpose,
                        const uint32_t* numbers, uint32_t* tokens, float* log_q, uint32_t* unreachable,
                        unsigned long long* status) {
  SHARED(Bins, bins, [1]);
  for (uint64_t at = blockIdx.x; at < rows; at += gridDim.x) {
    const T* row = logits + at * stride;
    const Normaliser found = normaliser<BlockTeam>(softmax, row);
    if (!check_row(softmax, found, at, 0, threadIdx.x == 0, status)) {
      if (threadIdx.x == 0) tokens[at] = 0, log_q[at] = NAN;
      continue;
    }
    uint32_t least = kNoLogitKey;
    bool dropped;
    if (top_k < softmax.vocab) least = threshold(softmax, row, found.max, least, Least{true, top_k}, bins);
    if (top_p < 1) {
      const uint64_t share = share_of(top_p, total_of(softmax, row, found.max, least, &dropped));
      least = threshold(softmax, row, found.max, least, Least{false, share ? share : 1}, bins);
    }
    if (lowest > -INFINITY) {
      uint32_t high = 0;  // of the complement, as the block has a maximum
      for (uint32_t token = threadIdx.x; token < softmax.vocab; token += kThreads) {
        const float x = logit(softmax, row, token);
        if (x - found.max >= lowest) high = max(high, ~key_of(x));
      }
      least = max(least, ~block_max(high));
    }
    const uint64_t total = total_of(softmax, row, found.max, least, &dropped);
    const uint64_t number = first + (numbers ? numbers[at] : at);
    const float uniform = to_unit(philox(seed, number, position, purpose).x);
    const uint32_t token = draw(softmax, row, found.max, least, share_of(uniform, total));
    if (threadIdx.x == 0) {
      const double depth = (double(float(row[token])) - double(found.max)) * double(softmax.scale);
      tokens[at] = token;
      log_q[at] = float(fmin(depth - log(double(total) / double(kOne)), 0.0));
      if (dropped) unreachable[at] = 1;
    }
  }
}

#define SAMPLE(name, T)                                                                                                 \
  extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                             \
  sample_##name(const T* logits, uint64_t rows, uint32_t vocab, uint64_t stride, float scale, const uint32_t* mask,     \
                uint32_t top_k, float top_p, float lowest, uint64_t seed, uint64_t first, uint32_t position,            \
                uint32_t purpose, const uint32_t* numbers, uint32_t* tokens, float* log_q, uint32_t* unreachable,       \
                unsigned long long* status) {                                                                           \
    sample_rows(logits, rows, stride, Softmax{vocab, scale, mask}, top_k, top_p, lowest, seed, first, position, purpose, \
                numbers, tokens, log_q, unreachable, status);                                                           \
  }
SAMPLE(f32, float)
SAMPLE(f16, __half)
SAMPLE(bf16, __nv_bfloat16)

EXPORT_KERNEL(sample_f32)
EXPORT_KERNEL(sample_f16)
EXPORT_KERNEL(sample_bf16)
