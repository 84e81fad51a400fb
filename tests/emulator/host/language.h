// language.h -- CUDA's keywords and vector types as C++20. `__shared__` is missing on purpose: kernels use SHARED.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#define __host__
#define __device__
#define __global__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __grid_constant__

// The vectors of two, three and four with CUDA's alignment.
#define EMU_VECTORS(T, NAME)                                                              \
  struct alignas(2 * sizeof(T)) NAME##2 { T x, y; };                                      \
  struct NAME##3 { T x, y, z; };                                                          \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) NAME##4 { T x, y, z, w; };      \
  static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                       \
  static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }               \
  static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char)
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned, uint)
EMU_VECTORS(long long, longlong)
EMU_VECTORS(unsigned long long, ulonglong)
EMU_VECTORS(float, float)
EMU_VECTORS(double, double)
#undef EMU_VECTORS

struct dim3 { unsigned x = 1, y = 1, z = 1; };
static constexpr int warpSize = 32;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;
