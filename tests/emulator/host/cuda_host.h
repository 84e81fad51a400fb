// cuda_host.h -- compile CUDA C++ kernels as plain C++20 and run them on the CPU.
//
// Every CUDA thread is a fiber on the calling OS thread.  A fiber runs until it meets a collective
// (barrier, warp operation, mbarrier wait) or ends, so between two collectives the skew between
// threads is as large as it can be.  The order is forward, reverse or seeded random (EmuConfig).
// Strict by intent: what CUDA leaves undefined (divergent barriers, shuffles from absent lanes,
// reads of uninitialised shared memory) fails or yields NaN instead of "happening to work".
#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

// ---------------------------------------------------------------- ABI seen from Rust
extern "C" {
struct EmuKernel { const char* name; const char* sig; void (*call)(void** params); };
struct EmuConfig {
  uint32_t grid[3], block[3], cluster[3];
  uint32_t smem, cooperative, order, async_mode, no_poison;  // order: 0 fwd, 1 rev, 2 random; async: 0 lazy, 1 eager, 2 random
  uint64_t seed;
  const char* drop_site;  // "file.cu:123": make the barrier/fence at this line a no-op (mutation testing)
};
int emu_launch(const EmuKernel* k, const EmuConfig* c, void** params, char* err, size_t errlen);
}

// ---------------------------------------------------------------- keywords and vector types
#define __host__
#define __device__
#define __global__
#define __constant__ static
#define __shared__ static thread_local  // plain form works (one copy per OS thread); SHARED() is better
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define EMU_VEC(T, N, A)                                                                            \
  struct alignas(A == 1 ? sizeof(T) : A) N##2 { T x, y; };                                          \
  struct N##3 { T x, y, z; };                                                                       \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) N##4 { T x, y, z, w; };                   \
  static inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                       \
  static inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                               \
  static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VEC(char, char, 2) EMU_VEC(unsigned char, uchar, 2) EMU_VEC(short, short, 4) EMU_VEC(unsigned short, ushort, 4)
EMU_VEC(int, int, 8) EMU_VEC(unsigned, uint, 8) EMU_VEC(float, float, 8) EMU_VEC(long long, longlong, 16)
EMU_VEC(unsigned long long, ulonglong, 16) EMU_VEC(double, double, 16)
struct dim3 { unsigned x = 1, y = 1, z = 1; };
static constexpr int warpSize = 32;

// ---------------------------------------------------------------- the runtime's interface
using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;
#define EMU_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
namespace emu {
struct Block;
struct Warp;
struct Fiber {  // only what device code touches; the runtime derives from it
  uint3 tid;
  unsigned lane;
  Block* blk;
};
struct BlockView { uint3 idx; dim3 dim, grid, cluster; unsigned cluster_rank; };
using WarpOp = void (*)(void* const* lane_args, uint32_t mask);  // run once, by the last lane to arrive
using Poll = bool (*)(void*);
void warp_collective(uint32_t mask, WarpOp op, void* args, const char* what, const char* file, int line, bool orders_memory = false);
struct BarRes { int count, all, any; };
BarRes barrier(int id, int nthreads, int pred, bool wait, const char* what, const char* file, int line);
void cluster_barrier(bool arrive, bool wait, const char* file, int line);
void grid_barrier(const char* file, int line);
void yield(bool always);
void wait_until(Poll p, void* arg, const char* what, const char* file, int line);
void fence();
void sync_release(void* p);
void sync_acquire(void* p);
void cp_async(void* dst, const void* src, unsigned bytes, unsigned src_bytes);
void cp_async_commit();
void cp_async_wait(unsigned keep, const char* file, int line);
void bulk_load(void* dst, const void* src, unsigned bytes, uint64_t* bar, const char* file, int line);
struct alignas(64) TensorMap2D {  // stands for CUtensorMap (128 opaque bytes); filled in by the Rust side
  static constexpr uint64_t kMagic = 0x454d5554454e5332;
  uint64_t magic, base, stride; uint32_t dim[2], box[2], elem, swizzle; uint64_t pad[10];
};
static_assert(sizeof(TensorMap2D) == 128);
void tensor_load_2d(void* dst, const TensorMap2D* m, int x, int y, uint64_t* bar, const char* file, int line);
void async_issue(WarpOp op, void* args, const char* what, const char* file, int line);
void async_commit();
void async_wait(unsigned keep, const char* what, const char* file, int line);
void note_read(const void* p, size_t n);
void* dyn_shared(unsigned* size = nullptr);
void* static_shared(const void* key, size_t size, size_t align);
void* map_shared_rank(const void* p, unsigned rank);
[[noreturn]] void fail(const char* fmt, ...) __attribute__((format(printf, 1, 2)));
const BlockView& view(const Block* b);
unsigned exited_or_absent_lanes();
}  // namespace emu
extern __thread emu::Fiber* emu_cur;
#define threadIdx (emu_cur->tid)
#define blockIdx (emu::view(emu_cur->blk).idx)
#define blockDim (emu::view(emu_cur->blk).dim)
#define gridDim (emu::view(emu_cur->blk).grid)
using CUtensorMap = emu::TensorMap2D;
#define EMU_NOSAN __attribute__((no_sanitize("thread"), noinline))

// SHARED(float, red, [32]);   SHARED_DYN(unsigned char, smem);
#define SHARED(T, name, dims)                                                                        \
  auto& name = *static_cast<std::remove_reference_t<T dims>*>(                                      \
      emu::static_shared([]() -> const void* { static char k; return &k; }(), sizeof(T dims), alignof(T)))
#define SHARED_DYN(T, name) T* name = static_cast<T*>(emu::dyn_shared())

// EXPORT_KERNEL(f): an entry with the parameter convention of cuLaunchKernel (void** params)
namespace emu {
template <class T> constexpr char code() {
  if constexpr (std::is_pointer_v<T>) return 'p';
  else if constexpr (std::is_same_v<T, float>) return 'f';
  else if constexpr (std::is_same_v<T, double>) return 'd';
  else if constexpr (std::is_integral_v<T>) return sizeof(T) == 8 ? (std::is_signed_v<T> ? 'l' : 'L') : sizeof(T) == 4 ? (std::is_signed_v<T> ? 'i' : 'I') : 'b';
  else return sizeof(T) == 128 ? 't' : 's';
}
template <auto F> struct Thunk;
template <class... A, void (*F)(A...)> struct Thunk<F> {
  static constexpr char sig[] = {code<A>()..., 0};
  template <size_t... I> static void go(void** p, std::index_sequence<I...>) { F(*static_cast<std::remove_cv_t<A>*>(p[I])...); }
  static void call(void** p) { go(p, std::index_sequence_for<A...>{}); }
};
}  // namespace emu
#define EXPORT_KERNEL(f) extern "C" { extern const EmuKernel emu_kernel_##f; const EmuKernel emu_kernel_##f = {#f, emu::Thunk<&f>::sig, emu::Thunk<&f>::call}; }

// ---------------------------------------------------------------- block-wide synchronisation
static inline void __syncthreads(EMU_SITE) { emu::barrier(0, 0, 0, true, "__syncthreads", file_, line_); }
static inline int __syncthreads_count(int p, EMU_SITE) { return emu::barrier(0, 0, p, true, "__syncthreads_count", file_, line_).count; }
static inline int __syncthreads_and(int p, EMU_SITE) { return emu::barrier(0, 0, p, true, "__syncthreads_and", file_, line_).all; }
static inline int __syncthreads_or(int p, EMU_SITE) { return emu::barrier(0, 0, p, true, "__syncthreads_or", file_, line_).any; }
static inline void __threadfence() { emu::fence(); }
static inline void __threadfence_block() { emu::fence(); }
static inline void __threadfence_system() { emu::fence(); }
static inline void __nanosleep(unsigned) { emu::yield(true); }
static inline void __trap() { emu::fail("__trap()"); }

// ---------------------------------------------------------------- warp collectives
namespace emu {
template <class T> struct ShflArgs { T in, out; int src; };
template <class T> EMU_NOSAN void shfl_op(void* const* a, uint32_t mask) {
  for (int l = 0; l < 32; l++) if (mask >> l & 1) {
    auto* me = static_cast<ShflArgs<T>*>(a[l]);
    if (!(mask >> me->src & 1)) fail("shuffle: lane %d reads lane %d, which takes no part (mask %08x)", l, me->src, mask);
    me->out = static_cast<ShflArgs<T>*>(a[me->src])->in;
  }
}
template <class T> T shfl(uint32_t mask, T v, int src, const char* what, const char* file, int line) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  ShflArgs<T> a{v, v, src};
  warp_collective(mask, &shfl_op<T>, &a, what, file, line);
  return a.out;
}
struct VoteArgs { uint64_t in; uint32_t out; };
enum class Vote { Ballot, MatchAny, Add, Min, Max, And, Or, Xor, SMin, SMax };
EMU_NOSAN inline uint64_t vote_in(void* const* a, int l) { return static_cast<VoteArgs*>(a[l])->in; }
template <Vote K> EMU_NOSAN void vote_op(void* const* a, uint32_t mask) {
  uint32_t r = 0; bool first = true;
  for (int l = 0; l < 32; l++) if (mask >> l & 1) {
    uint32_t v = uint32_t(vote_in(a, l));
    if constexpr (K == Vote::Ballot) r |= uint32_t(v != 0) << l;
    else if (first) r = v;
    else if constexpr (K == Vote::Add) r += v;
    else if constexpr (K == Vote::Min) r = v < r ? v : r;
    else if constexpr (K == Vote::Max) r = v > r ? v : r;
    else if constexpr (K == Vote::SMin) r = int(v) < int(r) ? v : r;
    else if constexpr (K == Vote::SMax) r = int(v) > int(r) ? v : r;
    else if constexpr (K == Vote::And) r &= v;
    else if constexpr (K == Vote::Or) r |= v;
    else if constexpr (K == Vote::Xor) r ^= v;
    first = false;
  }
  for (int l = 0; l < 32; l++) if (mask >> l & 1) {
    if constexpr (K == Vote::MatchAny) { r = 0; for (int j = 0; j < 32; j++) if (mask >> j & 1 && vote_in(a, j) == vote_in(a, l)) r |= 1u << j; }
    static_cast<VoteArgs*>(a[l])->out = r;
  }
}
template <Vote K> uint32_t vote(uint32_t mask, uint64_t v, const char* what, const char* file, int line) {
  VoteArgs a{v, 0};
  warp_collective(mask, &vote_op<K>, &a, what, file, line);
  return a.out;
}
}  // namespace emu
template <class T> T __shfl_sync(unsigned m, T v, int src, int w = 32, EMU_SITE) {
  return emu::shfl(m, v, int(emu_cur->lane & ~unsigned(w - 1)) | (src & (w - 1)), "__shfl_sync", file_, line_);
}
template <class T> T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32, EMU_SITE) {
  int l = int(emu_cur->lane), s = l - int(d);
  return emu::shfl(m, v, s < (l & ~(w - 1)) ? l : s, "__shfl_up_sync", file_, line_);
}
template <class T> T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32, EMU_SITE) {
  int l = int(emu_cur->lane), s = l + int(d);
  return emu::shfl(m, v, s > (l | (w - 1)) ? l : s, "__shfl_down_sync", file_, line_);
}
template <class T> T __shfl_xor_sync(unsigned m, T v, int x, int w = 32, EMU_SITE) {
  int l = int(emu_cur->lane), s = l ^ x;
  return emu::shfl(m, v, s > (l | (w - 1)) ? l : s, "__shfl_xor_sync", file_, line_);
}
static inline void __syncwarp(unsigned m = ~0u, EMU_SITE) { emu::warp_collective(m, nullptr, nullptr, "__syncwarp", file_, line_, true); }
static inline unsigned __ballot_sync(unsigned m, int p, EMU_SITE) { return emu::vote<emu::Vote::Ballot>(m, p != 0, "__ballot_sync", file_, line_); }
static inline int __any_sync(unsigned m, int p, EMU_SITE) { return emu::vote<emu::Vote::Or>(m, p != 0, "__any_sync", file_, line_) != 0; }
static inline int __all_sync(unsigned m, int p, EMU_SITE) { return emu::vote<emu::Vote::And>(m, p != 0, "__all_sync", file_, line_) != 0; }
template <class T> unsigned __match_any_sync(unsigned m, T v, EMU_SITE) {
  uint64_t b = 0; std::memcpy(&b, &v, sizeof v);
  return emu::vote<emu::Vote::MatchAny>(m, b, "__match_any_sync", file_, line_);
}
#define EMU_RED(N, U, S)                                                                             \
  static inline unsigned __reduce_##N##_sync(unsigned m, unsigned v, EMU_SITE) { return emu::vote<emu::Vote::U>(m, v, "__reduce_sync", file_, line_); } \
  static inline int __reduce_##N##_sync(unsigned m, int v, EMU_SITE) { return int(emu::vote<emu::Vote::S>(m, unsigned(v), "__reduce_sync", file_, line_)); }
EMU_RED(add, Add, Add) EMU_RED(min, Min, SMin) EMU_RED(max, Max, SMax) EMU_RED(and, And, And) EMU_RED(or, Or, Or) EMU_RED(xor, Xor, Xor)
static inline unsigned __activemask() { return 1u << emu_cur->lane; }  // legal answer; code that needs more is wrong

// ---------------------------------------------------------------- atomics (relaxed, as in CUDA)
template <class T> using emu_id = std::type_identity_t<T>;
template <class T, class F> T emu_rmw(T* p, F f) {
  using B = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  emu::yield(false);
  B* b = reinterpret_cast<B*>(p);
  B o = __atomic_load_n(b, __ATOMIC_RELAXED);
  for (;;) {
    B n = std::bit_cast<B>(T(f(std::bit_cast<T>(o))));
    if (__atomic_compare_exchange_n(b, &o, n, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return std::bit_cast<T>(o);
  }
}
template <class T> T atomicAdd(T* p, emu_id<T> v) { return emu_rmw(p, [=](T o) { return T(o + v); }); }
template <class T> T atomicSub(T* p, emu_id<T> v) { return emu_rmw(p, [=](T o) { return T(o - v); }); }
template <class T> T atomicMin(T* p, emu_id<T> v) { return emu_rmw(p, [=](T o) { return v < o ? v : o; }); }
template <class T> T atomicMax(T* p, emu_id<T> v) { return emu_rmw(p, [=](T o) { return v > o ? v : o; }); }
template <class T> T atomicAnd(T* p, emu_id<T> v) { return emu_rmw(p, [=](T o) { return T(o & v); }); }
template <class T> T atomicOr(T* p, emu_id<T> v) { return emu_rmw(p, [=](T o) { return T(o | v); }); }
template <class T> T atomicXor(T* p, emu_id<T> v) { return emu_rmw(p, [=](T o) { return T(o ^ v); }); }
template <class T> T atomicExch(T* p, emu_id<T> v) { return emu_rmw(p, [=](T) { return v; }); }
template <class T> T atomicCAS(T* p, emu_id<T> c, emu_id<T> v) { return emu_rmw(p, [=](T o) { return o == c ? v : o; }); }
static inline unsigned atomicInc(unsigned* p, unsigned m) { return emu_rmw(p, [=](unsigned o) { return o >= m ? 0 : o + 1; }); }

// ---------------------------------------------------------------- arithmetic intrinsics
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcs(T* p, emu_id<T> v) { *p = v; }
template <class T> void __stcg(T* p, emu_id<T> v) { *p = v; }
#define __expf(x) expf(x)  // macros: glibc declares functions of these names
#define __logf(x) logf(x)
#define __powf(x, y) powf(x, y)
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __saturatef(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }
#define EMU_MINMAX(T) static inline T min(T a, T b) { return b < a ? b : a; } static inline T max(T a, T b) { return a < b ? b : a; }
EMU_MINMAX(int) EMU_MINMAX(unsigned) EMU_MINMAX(long) EMU_MINMAX(unsigned long) EMU_MINMAX(long long) EMU_MINMAX(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
static inline int __float_as_int(float f) { return std::bit_cast<int>(f); }
static inline float __uint_as_float(unsigned u) { return std::bit_cast<float>(u); }
static inline float __int_as_float(int u) { return std::bit_cast<float>(u); }
static inline int __popc(unsigned x) { return std::popcount(x); }
static inline int __popcll(unsigned long long x) { return std::popcount(x); }
static inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
static inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) { return unsigned((uint64_t(hi) << 32 | lo) << (s & 31) >> 32); }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  uint64_t v = uint64_t(b) << 32 | a; unsigned r = 0;
  for (int i = 0; i < 4; i++) { unsigned k = s >> (4 * i) & 15, by = unsigned(v >> (8 * (k & 7))) & 255; if (k & 8) by = by & 128 ? 255 : 0; r |= by << (8 * i); }
  return r;
}

// ---------------------------------------------------------------- bfloat16 and half
namespace emu {
inline uint16_t f2bf(float f) { uint32_t u = std::bit_cast<uint32_t>(f); return (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16); }
inline float bf2f(uint16_t h) { return std::bit_cast<float>(uint32_t(h) << 16); }
inline uint16_t f2h(float f) {
  uint32_t u = std::bit_cast<uint32_t>(f), s = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return 0x7fff;
  if (a >= 0x477ff000) return uint16_t(s | 0x7c00);
  if (a < 0x38800000) return uint16_t(s | uint32_t(lrintf(std::bit_cast<float>(a) * 16777216.0f)));
  a -= 0x38000000; return uint16_t(s | (a + 0xfff + (a >> 13 & 1)) >> 13);
}
inline float h2f(uint16_t h) {
  uint32_t s = uint32_t(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023;
  if (e == 31) return std::bit_cast<float>(m ? 0x7fffffff : s | 0x7f800000);
  float v = e ? std::bit_cast<float>((e + 112) << 23 | m << 13) : float(m) / 16777216.0f;
  return s ? -v : v;
}
}  // namespace emu
#define EMU_F16(T, T2, TO, FROM, F2T, T2F)                                                           \
  struct T { uint16_t x; T() = default; T(float f) : x(TO(f)) {} operator float() const { return FROM(x); } }; \
  struct alignas(4) T2 { T x, y; };                                                                  \
  static inline T F2T(float f) { return T(f); }                                                      \
  static inline T F2T##_rn(float f) { return T(f); }                                                 \
  static inline float T2F(T v) { return float(v); }
EMU_F16(__nv_bfloat16, __nv_bfloat162, emu::f2bf, emu::bf2f, __float2bfloat16, __bfloat162float)
EMU_F16(__half, __half2, emu::f2h, emu::h2f, __float2half, __half2float)
using half = __half; using half2 = __half2;
static inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
static inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }
static inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return std::bit_cast<__nv_bfloat16>(u); }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.x; }

// ---------------------------------------------------------------- cooperative groups (subset)
namespace cooperative_groups {
struct thread_block {
  void sync(EMU_SITE) const { emu::barrier(0, 0, 0, true, "thread_block::sync", file_, line_); }
  unsigned thread_rank() const { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
  unsigned size() const { return blockDim.x * blockDim.y * blockDim.z; }
};
inline thread_block this_thread_block() { return {}; }
template <unsigned N> struct thread_block_tile {
  static_assert(N && N <= 32 && !(N & (N - 1)));
  unsigned mask() const { return N == 32 ? ~0u : ((1u << (N & 31)) - 1) << (emu_cur->lane & ~(N - 1)); }
  unsigned thread_rank() const { return emu_cur->lane & (N - 1); }
  static constexpr unsigned size() { return N; }
  unsigned meta_group_rank() const { return thread_block().thread_rank() / N; }
  void sync(EMU_SITE) const { __syncwarp(mask(), file_, line_); }
  template <class T> T shfl(T v, int s, EMU_SITE) const { return __shfl_sync(mask(), v, s, N, file_, line_); }
  template <class T> T shfl_xor(T v, int s, EMU_SITE) const { return __shfl_xor_sync(mask(), v, s, N, file_, line_); }
  template <class T> T shfl_down(T v, unsigned s, EMU_SITE) const { return __shfl_down_sync(mask(), v, s, N, file_, line_); }
  template <class T> T shfl_up(T v, unsigned s, EMU_SITE) const { return __shfl_up_sync(mask(), v, s, N, file_, line_); }
  unsigned ballot(int p, EMU_SITE) const { return (__ballot_sync(mask(), p, file_, line_) & mask()) >> (emu_cur->lane & ~(N - 1)); }
  int any(int p, EMU_SITE) const { return __any_sync(mask(), p, file_, line_); }
  int all(int p, EMU_SITE) const { return __all_sync(mask(), p, file_, line_); }
};
template <unsigned N> thread_block_tile<N> tiled_partition(const thread_block&) { return {}; }
template <class T> struct plus { T operator()(T a, T b) const { return a + b; } };
template <class T> struct less { T operator()(T a, T b) const { return b < a ? b : a; } };
template <class T> struct greater { T operator()(T a, T b) const { return a < b ? b : a; } };
template <unsigned N, class T, class Op> T reduce(const thread_block_tile<N>& t, T v, Op op, EMU_SITE) {
  for (unsigned d = N / 2; d; d /= 2) v = op(v, t.shfl_xor(v, int(d), file_, line_));
  return v;
}
struct cluster_group {
  void sync(EMU_SITE) const { emu::cluster_barrier(true, true, file_, line_); }
  void barrier_arrive(EMU_SITE) const { emu::cluster_barrier(true, false, file_, line_); }
  void barrier_wait(EMU_SITE) const { emu::cluster_barrier(false, true, file_, line_); }
  unsigned block_rank() const { return emu::view(emu_cur->blk).cluster_rank; }
  unsigned num_blocks() const { auto c = emu::view(emu_cur->blk).cluster; return c.x * c.y * c.z; }
  template <class T> T* map_shared_rank(T* p, unsigned r) const { return static_cast<T*>(emu::map_shared_rank(p, r)); }
};
inline cluster_group this_cluster() { return {}; }
struct grid_group { void sync(EMU_SITE) const { emu::grid_barrier(file_, line_); } };
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups
