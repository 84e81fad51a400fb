// split.cuh -- a float as the sum of two 16-bit numbers, for products on tensor cores: x*y = hi*hi + hi*lo + lo*hi.
//
// fp16 parts keep 22 bits of numbers of ordinary size (states, weights): an absolute error below 3e-8. bf16 parts keep
// 16 bits over the whole range of float, which gradients need.
#pragma once
#include "common/device.cuh"

struct Halves {
  using Part = __half;
  static __device__ __forceinline__ Part narrow(float x) { return __float2half_rn(x); }
  static __device__ __forceinline__ float widen(Part x) { return __half2float(x); }
  static __device__ __forceinline__ uint32_t bits(Part x) { return __half_as_ushort(x); }
  static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    dev::mma_m16n8k16_f16(d, a, b);
  }
};

struct Bfloats {
  using Part = __nv_bfloat16;
  static __device__ __forceinline__ Part narrow(float x) { return __float2bfloat16_rn(x); }
  static __device__ __forceinline__ float widen(Part x) { return __bfloat162float(x); }
  static __device__ __forceinline__ uint32_t bits(Part x) { return __bfloat16_as_ushort(x); }
  static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    dev::mma_m16n8k16_bf16(d, a, b);
  }
};

// Two neighbours, the first in the low half, as high parts and low parts.
struct Pair {
  uint32_t hi, lo;
};

template <typename Kind> DEV_FN Pair split_pair(float first, float second) {
  const auto hi0 = Kind::narrow(first), hi1 = Kind::narrow(second);
  const auto lo0 = Kind::narrow(first - Kind::widen(hi0)), lo1 = Kind::narrow(second - Kind::widen(hi1));
  return {Kind::bits(hi0) | Kind::bits(hi1) << 16, Kind::bits(lo0) | Kind::bits(lo1) << 16};
}

// d += (hi + lo of a) * (hi + lo of b), without the product of the low parts.
template <typename Kind>
DEV_FN void mma_split(float (&d)[4], const uint32_t (&a_hi)[4], const uint32_t (&a_lo)[4], const uint32_t (&b_hi)[2],
                      const uint32_t (&b_lo)[2]) {
  Kind::mma(d, a_lo, b_hi);
  Kind::mma(d, a_hi, b_lo);
  Kind::mma(d, a_hi, b_hi);
}
