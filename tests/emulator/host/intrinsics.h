// intrinsics.h -- loads and stores with cache hints, arithmetic and bit intrinsics.
#pragma once
#include <bit>

#include "language.h"

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcg(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stcs(T* p, std::type_identity_t<T> value) { *p = value; }

#define __expf(x) expf(x)  // macros: glibc declares functions of these names
#define __logf(x) logf(x)
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

#define EMU_MIN_MAX(T)                                 \
  static inline T min(T a, T b) { return b < a ? b : a; } \
  static inline T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

static inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
static inline float __uint_as_float(unsigned u) { return std::bit_cast<float>(u); }
static inline int __float_as_int(float f) { return std::bit_cast<int>(f); }
static inline float __int_as_float(int i) { return std::bit_cast<float>(i); }
static inline long long __double_as_longlong(double d) { return std::bit_cast<long long>(d); }
static inline double __longlong_as_double(long long i) { return std::bit_cast<double>(i); }

static inline int __popc(unsigned x) { return std::popcount(x); }
static inline int __popcll(unsigned long long x) { return std::popcount(x); }
static inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
static inline int __ffsll(long long x) { return x ? std::countr_zero(static_cast<unsigned long long>(x)) + 1 : 0; }
static inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
static inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned pick = selector >> (4 * i) & 7;  // unlike prmt, no bit 3 that repeats the sign
    result |= (unsigned(bytes >> (8 * pick)) & 255) << (8 * i);
  }
  return result;
}
