// parts.cuh -- rows of small vocabularies: a warp takes several at a time, each by a part of its lanes.
//
// A lane holds up to 32 logits of its row in registers, in pieces of 16 bytes that the row's lanes take in turn, so that
// lines are read whole; what is made once a row, a logarithm above all, is made for up to 32 rows at once. Vocabulary and
// type alone decide which lane adds what in which order; how a row is aligned decides how wide its loads are, no more.
//
// Accuracy: so few terms are summed in float. At most 5 roundings in a lane and 3 between lanes are 5e-7 of the sum, beside
// the 9e-7 of the exponentials (common/softmax.cuh); their logarithm is one of a float.
#pragma once
#include <type_traits>

#include "common/softmax.cuh"

// The lane's row among those of its warp, and the lane among those of its row.
struct Part {
  uint32_t lanes, lane, row, rows;
};
template <typename Row> DEV_FN Part part_of(uint32_t vocab) {
  uint32_t lanes = 1;
  while (!Row::kAlone && 32 * lanes < vocab) lanes *= 2;
  const uint32_t lane = threadIdx.x % 32;
  return {lanes, lane % lanes, lane / lanes, 32 / lanes};
}

// The bytes, at most 16, that the start of every row is a multiple of.
template <typename T> DEV_FN uint32_t alignment_of(const T* logits, uint64_t stride) {
  const uint32_t bits = uint32_t(reinterpret_cast<uintptr_t>(logits)) | uint32_t(stride * sizeof(T)) | 16;
  return bits & (~bits + 1);
}

// kWidth logits side by side.
template <typename T, uint32_t kWidth> struct Piece {
  static constexpr uint32_t kWords = kWidth * sizeof(T) / 4;
  using Whole = std::conditional_t<kWords == 4, uint4, std::conditional_t<kWords == 2, uint2, uint32_t>>;
  alignas(4 * kWords) uint32_t words[kWords];

  // All of them in steps of a Unit.
  template <typename Unit> DEV_FN void move(void* to, const void* from) {
    constexpr uint32_t kSteps = kWords * 4 / sizeof(Unit);
    if constexpr (kSteps > 0)
#pragma unroll
      for (uint32_t i = 0; i < kSteps; i++) reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(from)[i];
  }

  // All of them in the widest steps that rows so aligned, by 4 bytes at least, allow.
  DEV_FN void move_all(void* to, const void* from, uint32_t alignment) {
    if (alignment >= sizeof(Whole)) move<Whole>(to, from);
    else if (alignment >= 8) move<uint2>(to, from);
    else move<uint32_t>(to, from);
  }

  // Those from token `first` on, -inf where there are none.
  __device__ __forceinline__ void load(const T* row, uint32_t first, uint32_t vocab, uint32_t alignment) {
    const T* from = row + first;
    if (first + kWidth > vocab || alignment < 4) {
      float x[kWidth];
#pragma unroll
      for (uint32_t i = 0; i < kWidth; i++) x[i] = first + i < vocab ? float(from[i]) : -INFINITY;
      join(x);
    } else {
      move_all(words, from, alignment);
    }
  }
  __device__ __forceinline__ void store(T* row, uint32_t first, uint32_t vocab, uint32_t alignment) const {
    T* to = row + first;
    if (first + kWidth > vocab || alignment < 4) {
      float x[kWidth];
      split(x);
#pragma unroll
      for (uint32_t i = 0; i < kWidth; i++)
        if (first + i < vocab) to[i] = T(x[i]);
    } else {
      move_all(to, words, alignment);
    }
  }
  __device__ __forceinline__ void split(float (&x)[kWidth]) const {
#pragma unroll
    for (uint32_t i = 0; i < kWords; i++) {
      if constexpr (sizeof(T) == 4) {
        x[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = pair_of(words[i], T());
        x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
      }
    }
  }
  __device__ __forceinline__ void fill(float value) {
    float same[kWidth];
#pragma unroll
    for (uint32_t i = 0; i < kWidth; i++) same[i] = value;
    join(same);
  }
  __device__ __forceinline__ void join(const float (&x)[kWidth]) {
#pragma unroll
    for (uint32_t i = 0; i < kWords; i++) {
      if constexpr (sizeof(T) == 4) words[i] = __float_as_uint(x[i]);
      else words[i] = word_of(x[2 * i], x[2 * i + 1], T());
    }
  }
};

// A lane's logits of its row: piece k of lane l is the (k * lanes + l)-th.
template <typename T, uint32_t kWidth, uint32_t kPieces> struct PartOfRow {
  using Whole = typename Piece<T, kWidth>::Whole;
  static constexpr bool kAlone = kWidth * kPieces <= 8;  // no row has another lane
  float x[kPieces][kWidth];

  // Tokens before the lane's piece; pieces that no lane has are not worked on.
  DEV_FN uint32_t first(const Part& part, uint32_t piece) { return (piece * part.lanes + part.lane) * kWidth; }
  DEV_FN bool any(const Softmax& softmax, const Part& part, uint32_t piece) {
    return piece == 0 || piece * part.lanes * kWidth < softmax.vocab;
  }

  // Whether a row has nothing but whole pieces, each for one load.
  DEV_FN bool regular(const Softmax& softmax, uint32_t alignment) {
    return alignment >= sizeof(Whole) && softmax.vocab % kWidth == 0;
  }

  // -inf where the row is not `read`.
  __device__ __forceinline__ void load(const Softmax& softmax, const Part& part, const T* row, bool read,
                                       uint32_t alignment) {
    Piece<T, kWidth> pieces[kPieces];
    const uint32_t vocab = softmax.vocab;
    if (regular(softmax, alignment)) {
#pragma unroll
      for (uint32_t k = 0; k < kPieces; k++) {
        pieces[k].fill(-INFINITY);
        if (read && first(part, k) < vocab) pieces[k].template move<Whole>(pieces[k].words, row + first(part, k));
      }
    } else {
#pragma unroll
      for (uint32_t k = 0; k < kPieces; k++) pieces[k].load(row, read ? first(part, k) : vocab, vocab, alignment);
    }
#pragma unroll
    for (uint32_t k = 0; k < kPieces; k++) {
      pieces[k].split(x[k]);
      if (softmax.mask && read && first(part, k) < softmax.vocab)
#pragma unroll
        for (uint32_t i = 0; i < kWidth; i++) {
          const uint32_t token = first(part, k) + i;
          if (token < softmax.vocab && !allowed(softmax, token)) x[k][i] = -INFINITY;
        }
    }
  }

  // The logit of a token of the vocabulary; before it becomes an exponential.
  __device__ __forceinline__ float at(const Softmax& softmax, const T* row, uint32_t token) const {
    if (!kAlone) return logit(softmax, row, token);
    float found = x[0][0];
#pragma unroll
    for (uint32_t k = 0; k < kPieces; k++)
#pragma unroll
      for (uint32_t i = 0; i < kWidth; i++) found = token == k * kWidth + i ? x[k][i] : found;
    return found;
  }

  // The row's normaliser, in all its lanes; each logit becomes its exponential.
  template <bool kEntropy> __device__ __forceinline__ Normaliser normalise(const Softmax& softmax, const Part& part) {
    float max = -INFINITY, sums[kPieces], products[kPieces];
#pragma unroll
    for (uint32_t k = 0; k < kPieces; k++)
#pragma unroll
      for (uint32_t i = 0; i < kWidth; i++) max = fmaxf(max, x[k][i]);
    for (uint32_t distance = part.lanes / 2; distance; distance /= 2)
      max = fmaxf(max, __shfl_xor_sync(~0u, max, distance));
    const float shift = max == -INFINITY ? 0.0f : max, c = softmax.scale * kLog2e;  // not NaN for -inf
#pragma unroll
    for (uint32_t k = 0; k < kPieces; k++) {
      sums[k] = products[k] = 0;
      if (!any(softmax, part, k)) continue;
      float part_sum[kWidth], product[kWidth];
#pragma unroll
      for (uint32_t i = 0; i < kWidth; i++) {
        const float below = x[k][i] - shift;
        part_sum[i] = x[k][i] = dev::exp2_approx(below * c);
        product[i] = x[k][i] * fmaxf(below, -FLT_MAX);  // 0 for -inf
      }
      add_in_pairs(part_sum);
      sums[k] = part_sum[0];
      if (kEntropy) add_in_pairs(product);
      if (kEntropy) products[k] = product[0];
    }
    add_in_pairs(sums);
    add_in_pairs(products);
    float total = sums[0], product = products[0];
    for (uint32_t distance = part.lanes / 2; distance; distance /= 2) {
      total += __shfl_xor_sync(~0u, total, distance);
      if (kEntropy) product += __shfl_xor_sync(~0u, product, distance);
    }
    return {max, double(total), double(product)};
  }

  // factor times the exponentials in place of the row, and at_token in place of the token, where there is one.
  __device__ __forceinline__ void store(const Softmax& softmax, const Part& part, float factor, uint32_t token,
                                        float at_token, T* row, uint32_t alignment) const {
    const bool whole = regular(softmax, alignment);
#pragma unroll
    for (uint32_t k = 0; k < kPieces; k++) {
      if (first(part, k) >= softmax.vocab) continue;
      float scaled[kWidth];
#pragma unroll
      for (uint32_t i = 0; i < kWidth; i++)
        scaled[i] = kAlone && token == k * kWidth + i ? at_token : factor * x[k][i];
      Piece<T, kWidth> piece;
      piece.join(scaled);
      if (whole) piece.template move<Whole>(row + first(part, k), piece.words);
      else piece.store(row, first(part, k), softmax.vocab, alignment);
    }
    const bool holds = token < softmax.vocab && token / kWidth % part.lanes == part.lane;
    if (!kAlone && holds) row[token] = T(at_token);  // by the lane that wrote its piece
  }
};

// The log-prob of a token with logit x, never above 0.
DEV_FN float log_prob_of_part(const Softmax& softmax, const Normaliser& found, float x) {
  const double above = double(logf(float(found.total)));
  return fminf(float((double(x) - double(found.max)) * double(softmax.scale) - above), 0.0f);
}

// Calls call(PartOfRow<T, ...>()) with the smallest one that holds what a lane has of a row.
template <typename T, typename Call> DEV_FN void with_part_of_row(uint32_t vocab, Call call) {
  constexpr uint32_t kWidth = 16 / sizeof(T);
  if (vocab <= 2) call(PartOfRow<T, 2, 1>());
  else if (vocab <= 8) call(PartOfRow<T, kWidth, 8 / kWidth>());
  else call(PartOfRow<T, kWidth, 32 / kWidth>());
}
