// softmax.cuh -- one row of logits, any length and alignment, read once with 16-byte loads: its maximum and the sum of
// its exponentials, by a warp, a block or a cluster of blocks.
//
// Accuracy: 2^((x - max) * c) with c = scale * log2 e in float has a relative error of about 1.3e-7 (|x - max| + 1);
// weighted by the softmax that stays below 2e-6 for any row of up to 2^18 logits, as the average of max - x under its own
// softmax is at most the logarithm of their number. Sums of a pack are made in float, all others in double, so that many
// small terms beside a large one are not lost.
#pragma once
#include <cfloat>

#include "common/reduce.cuh"
#include "common/status.cuh"

constexpr float kLog2e = 1.44269504f;

// 16 bytes of logits as floats, and back.
template <typename T> struct Pack;
template <> struct Pack<float> {
  static constexpr uint32_t kCount = 4;
  DEV_FN void split(uint4 raw, float (&x)[4]) {
    x[0] = __uint_as_float(raw.x), x[1] = __uint_as_float(raw.y);
    x[2] = __uint_as_float(raw.z), x[3] = __uint_as_float(raw.w);
  }
  DEV_FN uint4 join(const float (&x)[4]) {
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
  }
};
DEV_FN float2 pair_of(uint32_t word, __half) { return __half22float2(*reinterpret_cast<const __half2*>(&word)); }
DEV_FN float2 pair_of(uint32_t word, __nv_bfloat16) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
DEV_FN uint32_t word_of(float a, float b, __half) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
DEV_FN uint32_t word_of(float a, float b, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <typename T> struct Pack {
  static constexpr uint32_t kCount = 8;
  DEV_FN void split(uint4 raw, float (&x)[8]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 pair = pair_of(words[i], T());
      x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
  }
  DEV_FN uint4 join(const float (&x)[8]) {
    return make_uint4(word_of(x[0], x[1], T()), word_of(x[2], x[3], T()), word_of(x[4], x[5], T()),
                      word_of(x[6], x[7], T()));
  }
};

// The threads that share a row: a warp, so that a block has several rows; a block; or a cluster of blocks, each of which
// has a part of the row, and which has sums of its own (gradient_cluster.cu). rank() and size() are within the block. What a thread
// has read before it asks for a sum, the others may overwrite once they know that sum.
struct WarpTeam {
  DEV_FN uint32_t rank() { return threadIdx.x % 32; }
  DEV_FN uint32_t size() { return 32; }
  DEV_FN uint32_t index() { return threadIdx.x / 32; }
  DEV_FN uint32_t teams() { return blockDim.x / 32; }
  DEV_FN uint32_t block() { return 0; }
  DEV_FN uint32_t blocks() { return 1; }
  template <typename V> DEV_FN V sum(V value) {
    __syncwarp();  // mutation: shuffles order the emulator's lanes, not memory; the thread sanitizer sees it
    return warp_sum(value);
  }
  template <typename V> DEV_FN V max(V value) { return warp_max(value); }
};
struct BlockTeam {
  DEV_FN uint32_t rank() { return threadIdx.x; }
  DEV_FN uint32_t size() { return blockDim.x; }
  DEV_FN uint32_t index() { return 0; }
  DEV_FN uint32_t teams() { return 1; }
  DEV_FN uint32_t block() { return 0; }
  DEV_FN uint32_t blocks() { return 1; }
  template <typename V> DEV_FN V sum(V value) { return block_sum(value); }
  template <typename V> DEV_FN V max(V value) { return block_max(value); }
};
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
struct ClusterTeam : BlockTeam {
  DEV_FN uint32_t block() { return dev::cluster_rank(); }
  DEV_FN uint32_t blocks() { return dev::cluster_size(); }
};
#endif
template <typename Team> DEV_FN bool is_first() { return Team::rank() == 0 && Team::block() == 0; }

// Which tokens count, and the inverse temperature. Bit t % 32 of mask[t / 32]: token t may occur; null: all may.
struct Softmax {
  uint32_t vocab;
  float scale;
  const uint32_t* mask;
};
DEV_FN bool allowed(const Softmax& softmax, uint32_t token) {
  return !softmax.mask || softmax.mask[token / 32] >> token % 32 & 1;
}
// Bit i: whether token + i may occur, i < count; all these tokens exist.
template <uint32_t count> DEV_FN uint32_t allowed_bits(const Softmax& softmax, uint32_t token) {
  if (!softmax.mask) return ~0u;
  const uint64_t low = softmax.mask[token / 32], high = softmax.mask[(token + count - 1) / 32];
  return uint32_t((high << 32 | low) >> token % 32);
}
template <typename T> DEV_FN float logit(const Softmax& softmax, const T* row, uint32_t token) {
  return allowed(softmax, token) ? float(row[token]) : -INFINITY;
}

// Where the aligned part of a row lies: `packs` 16-byte packs from token `head` on, of which this block has those from
// `begin` to `end`.
struct Layout {
  uint32_t head, packs, begin, end;
};
template <typename Team, typename T> DEV_FN Layout layout(const T* row, uint32_t vocab) {
  const uint32_t missing = uint32_t(0 - reinterpret_cast<uintptr_t>(row)) % 16 / sizeof(T);
  const uint32_t head = missing < vocab ? missing : vocab, packs = (vocab - head) / Pack<T>::kCount;
  const uint32_t blocks = Team::blocks(), part = (packs + blocks - 1) / blocks;
  const uint32_t before = Team::block() * part, begin = before < packs ? before : packs;
  return {head, packs, begin, part < packs - begin ? begin + part : packs};
}
// The tokens before and behind the packs are the first block's.
template <typename Team, typename Single> DEV_FN void for_ends(Layout at, uint32_t vocab, uint32_t pack, Single single) {
  if (Team::block() != 0) return;
  const uint32_t tail = at.head + at.packs * pack, ends = vocab - at.packs * pack;
  for (uint32_t i = Team::rank(); i < ends; i += Team::size()) single(i < at.head ? i : tail + i - at.head);
}
// The block's packs, four loads in flight per thread, the last ones too; wide(pack, raw).
template <typename Team, typename Load, typename Wide> DEV_FN void for_packs(Layout in, Load load, Wide wide) {
  const uint32_t step = Team::size();
  for (uint32_t at = in.begin + Team::rank(); at < in.end; at += 4 * step) {
    uint4 raw[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) raw[i] = load(at + i * step < in.end ? at + i * step : at);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      if (at + i * step >= in.end) break;
      wide(at + i * step, raw[i]);
    }
  }
}

// The sum of e = 2^((x - max) * c) over the logits so far and, for the entropy, of e * (x - max).
template <bool kEntropy> struct Online {
  float max, c;
  double sum, product;
  DEV_FN void rescale(Online& online, float to) {
    const double factor = double(dev::exp2_approx((online.max - to) * online.c));
    if (kEntropy && factor > 0) online.product = factor * (online.product + (double(online.max) - double(to)) * online.sum);
    if (kEntropy && factor == 0) online.product *= 0.0;
    online.sum *= factor;
    online.max = to;
  }
};
template <int N> DEV_FN void add_in_pairs(float (&part)[N]) {
#pragma unroll
  for (int width = N / 2; width; width /= 2)
#pragma unroll
    for (int i = 0; i < width; i++) part[i] += part[i + width];
}
template <bool kEntropy, int N> DEV_FN void push(Online<kEntropy>& online, const float (&x)[N]) {
  float high = x[0];
#pragma unroll
  for (int i = 1; i < N; i++) high = fmaxf(high, x[i]);
  if (high > online.max) Online<kEntropy>::rescale(online, high);
  const float shift = online.max == -INFINITY ? 0.0f : online.max;  // not NaN for -inf
  float part[N];
#pragma unroll
  for (int i = 0; i < N; i++) part[i] = dev::exp2_approx((x[i] - shift) * online.c);
  if (kEntropy) {
    float product[N];
#pragma unroll
    for (int i = 0; i < N; i++) product[i] = part[i] * fmaxf(x[i] - shift, -FLT_MAX);  // 0 for -inf
    add_in_pairs(product);
    online.product += double(product[0]);
  }
  add_in_pairs(part);
  online.sum += double(part[0]);
}

// A row's largest logit and the sum of its exponentials: NaN where a logit is NaN or +inf, 0 where all are -inf; for the
// entropy also the sum of each exponential times its logit less the largest.
struct Normaliser {
  float max;
  double total, product;
};

// One pass over the row, whose packs load(pack) gives. Valid in all threads of the team.
template <typename Team, bool kEntropy = false, typename T, typename Load>
DEV_FN Normaliser normaliser(const Softmax& softmax, const T* row, Layout at, Load load) {
  constexpr uint32_t N = Pack<T>::kCount;
  Online<kEntropy> online{-INFINITY, softmax.scale * kLog2e, 0.0, 0.0};
  for_ends<Team>(at, softmax.vocab, N, [&](uint32_t token) {
    const float x[1] = {logit(softmax, row, token)};
    push(online, x);
  });
  for_packs<Team>(at, load, [&](uint32_t pack, uint4 raw) {
    float x[N];
    Pack<T>::split(raw, x);
    if (softmax.mask)
#pragma unroll
      for (uint32_t i = 0; i < N; i++)
        if (!allowed(softmax, at.head + pack * N + i)) x[i] = -INFINITY;
    push(online, x);
  });
  const float max = Team::max(online.max);
  if (online.max > -INFINITY) Online<kEntropy>::rescale(online, max);
  return {max, Team::sum(online.sum), kEntropy ? Team::sum(online.product) : 0.0};
}
template <typename Team, bool kEntropy = false, typename T>
DEV_FN Normaliser normaliser(const Softmax& softmax, const T* row) {
  const Layout at = layout<Team>(row, softmax.vocab);
  const uint4* packs = reinterpret_cast<const uint4*>(row + at.head);
  return normaliser<Team, kEntropy>(softmax, row, at, [&](uint32_t pack) { return packs[pack]; });
}

// The log-prob of a token with logit x, never above 0.
DEV_FN double log_prob_of(const Softmax& softmax, const Normaliser& row, float x) {
  return fmin((double(x) - double(row.max)) * double(softmax.scale) - log(row.total), 0.0);
}

// -sum p log p, from 0 up.
DEV_FN double entropy_of(const Softmax& softmax, const Normaliser& row) {
  return fmax(log(row.total) - double(softmax.scale) * row.product / row.total, 0.0);
}

// Whether the row has a softmax and the token is in it; notes the fault otherwise.
DEV_FN bool check_row(const Softmax& softmax, const Normaliser& found, uint64_t row, uint32_t token, bool first,
                      unsigned long long* status) {
  if (token < softmax.vocab && found.total > 0) return true;
  if (first) note_fault(status, row, token >= softmax.vocab ? kBadToken : found.total == 0 ? kNoLogit : kBadLogits);
  return false;
}

// Every logit of a row becomes value.
template <typename Team, typename T> DEV_FN void fill_row(T* row, uint32_t vocab, float value) {
  constexpr uint32_t N = Pack<T>::kCount;
  const Layout at = layout<Team>(row, vocab);
  float x[N];
#pragma unroll
  for (uint32_t i = 0; i < N; i++) x[i] = value;
  const uint4 raw = Pack<T>::join(x);
  for (uint32_t pack = at.begin + Team::rank(); pack < at.end; pack += Team::size())
    reinterpret_cast<uint4*>(row + at.head)[pack] = raw;
  for_ends<Team>(at, vocab, N, [&](uint32_t token) { row[token] = T(value); });
}
