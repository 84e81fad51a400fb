// half.h -- bfloat16 and half: storage and conversion, with the bits of NVIDIA's headers. Arithmetic goes through float.
#pragma once
#include <bit>
#include <cmath>

#include "language.h"

namespace emu {
inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;  // NaN
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

inline uint16_t float_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return 0x7fff;                     // NaN
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to infinity
  if (size < 0x38800000)                                   // subnormal: a multiple of 2^-24
    return uint16_t(sign | uint32_t(lrintf(std::bit_cast<float>(size) * 16777216.0f)));
  const uint32_t rebased = size - 0x38000000;
  return uint16_t(sign | (rebased + 0xfff + (rebased >> 13 & 1)) >> 13);
}
inline float f16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(mantissa ? 0x7fffffff : sign | 0x7f800000);
  const float size = exponent ? std::bit_cast<float>((exponent + 112) << 23 | mantissa << 13)
                              : float(mantissa) / 16777216.0f;
  return sign ? -size : size;
}
}  // namespace emu

// The operators are deleted: on a GPU they would round after each step.
#define EMU_HALF(T, TO, FROM)                            \
  struct T {                                             \
    uint16_t bits;                                       \
    T() = default;                                       \
    T(float value) : bits(emu::TO(value)) {}             \
    operator float() const { return emu::FROM(bits); }   \
    friend void operator+(T, T) = delete;                \
    friend void operator-(T, T) = delete;                \
    friend void operator*(T, T) = delete;                \
    friend void operator/(T, T) = delete;                \
  };                                                     \
  struct alignas(4) T##2 { T x, y; };
EMU_HALF(__half, float_to_f16, f16_to_float)
EMU_HALF(__nv_bfloat16, float_to_bf16, bf16_to_float)
#undef EMU_HALF
// The larger of each two; a NaN gives way, and +0 is above -0.
namespace emu {
template <class T> T larger(T a, T b) {
  const float x = a, y = b;
  if (x != x || y != y) return x == x ? a : y == y ? b : T(NAN);
  return x > y || (x == y && !std::signbit(x)) ? a : b;
}
}  // namespace emu
static inline __half2 __hmax2(__half2 a, __half2 b) { return {emu::larger(a.x, b.x), emu::larger(a.y, b.y)}; }
static inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {emu::larger(a.x, b.x), emu::larger(a.y, b.y)};
}
using half = __half;
using half2 = __half2;

static inline __half __float2half(float value) { return value; }
static inline __half __float2half_rn(float value) { return value; }
static inline float __half2float(__half value) { return value; }
static inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
static inline float2 __half22float2(__half2 value) { return {value.x, value.y}; }
static inline unsigned short __half_as_ushort(__half value) { return value.bits; }
static inline __half __ushort_as_half(unsigned short bits) { return std::bit_cast<__half>(bits); }

static inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
static inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
static inline float __bfloat162float(__nv_bfloat16 value) { return value; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 value) { return {value.x, value.y}; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return std::bit_cast<__nv_bfloat16>(bits); }
