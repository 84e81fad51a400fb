// parts.cuh -- rows of small vocabularies: a warp takes several at a time, each by a part of its lanes.
//
// A lane holds up to 32 logits of its row in registers, in pieces of 16 bytes that the row's lanes take in turn, so that
// lines are read whole; what is made once a row, a logarithm above all, is made for up to 32 rows at once. Vocabulary and
// type alone decide which lane adds what in which order; how a row is aligned decides how wide its loads are, no more.
#pragma once
#include "common/softmax.cuh"

// The lane's row among those of its warp, and the lane among those of its row.
struct Part {
  uint32_t lanes, lane, row, rows;
};
DEV_FN Part part_of(uint32_t vocab) {
  uint32_t lanes = 1;
  while (32 * lanes < vocab) lanes *= 2;
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
  alignas(4 * kWords) uint32_t words[kWords];

  // All of them in steps of a Unit.
  template <typename Unit> DEV_FN void move(void* to, const void* from) {
    constexpr uint32_t kSteps = kWords * 4 / sizeof(Unit);
    if constexpr (kSteps > 0)
#pragma unroll
      for (uint32_t i = 0; i < kSteps; i++) reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(from)[i];
  }

  // Those from token `first` on, -inf where there are none.
  __device__ __forceinline__ void load(const T* row, uint32_t first, uint32_t vocab, uint32_t alignment) {
    const T* from = row + first;
    if (first + kWidth > vocab || alignment < 4) {
      float x[kWidth];
#pragma unroll
      for (uint32_t i = 0; i < kWidth; i++) x[i] = first + i < vocab ? float(from[i]) : -INFINITY;
      join(x);
    } else if (kWords == 4 && alignment == 16) {
      move<uint4>(words, from);
    } else if (kWords > 1 && alignment >= 8) {
      move<uint2>(words, from);
    } else {
      move<uint32_t>(words, from);
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
    } else if (kWords == 4 && alignment == 16) {
      move<uint4>(to, words);
    } else if (kWords > 1 && alignment >= 8) {
      move<uint2>(to, words);
    } else {
      move<uint32_t>(to, words);
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
  float x[kPieces][kWidth];

  // Tokens before the lane's piece; pieces that no lane has are not worked on.
  DEV_FN uint32_t first(const Part& part, uint32_t piece) { return (piece * part.lanes + part.lane) * kWidth; }
  DEV_FN bool any(const Softmax& softmax, const Part& part, uint32_t piece) {
    return piece == 0 || piece * part.lanes * kWidth < softmax.vocab;
  }

  // The lane that has a token.
  DEV_FN uint32_t holder(const Part& part, uint32_t token) { return token / kWidth % part.lanes; }

  // -inf where the row is not `read`.
  __device__ __forceinline__ void load(const Softmax& softmax, const Part& part, const T* row, bool read,
                                       uint32_t alignment) {
    Piece<T, kWidth> pieces[kPieces];
#pragma unroll
    for (uint32_t k = 0; k < kPieces; k++)
      pieces[k].load(row, read ? first(part, k) : softmax.vocab, softmax.vocab, alignment);
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
    double total = double(sums[0]), product = double(products[0]);
    for (uint32_t distance = part.lanes / 2; distance; distance /= 2) {
      total += __shfl_xor_sync(~0u, total, distance);
      if (kEntropy) product += __shfl_xor_sync(~0u, product, distance);
    }
    return {max, total, product};
  }

  // factor times the exponentials, in place of the row.
  __device__ __forceinline__ void store(const Softmax& softmax, const Part& part, float factor, T* row,
                                        uint32_t alignment) const {
#pragma unroll
    for (uint32_t k = 0; k < kPieces; k++) {
      if (first(part, k) >= softmax.vocab) continue;
      float scaled[kWidth];
#pragma unroll
      for (uint32_t i = 0; i < kWidth; i++) scaled[i] = factor * x[k][i];
      Piece<T, kWidth> piece;
      piece.join(scaled);
      piece.store(row, first(part, k), softmax.vocab, alignment);
    }
  }
};

// Calls call(PartOfRow<T, ...>()) with the smallest one that holds what a lane has of a row.
template <typename T, typename Call> DEV_FN void with_part_of_row(uint32_t vocab, Call call) {
  constexpr uint32_t kWidth = 16 / sizeof(T);
  if (vocab <= 2) call(PartOfRow<T, 2, 1>());
  else if (vocab <= 8) call(PartOfRow<T, kWidth, 8 / kWidth>());
  else call(PartOfRow<T, kWidth, 32 / kWidth>());
}
