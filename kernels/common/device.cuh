// device.cuh -- everything that the kernels use beyond plain CUDA C++ goes through here: under nvcc inline PTX, under
// the host's C++ compiler the emulation in tests/emulator/host. A new wrapper needs its twin in host/ptx.h and a case in
// tests/emulator/kernels/conformance.cu.
#pragma once
// Clusters of blocks, and what else is of sm_90 and later.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HAS_CLUSTERS
#endif
// Products by warpgroups, of sm_90a alone.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WARPGROUPS
#endif
#if defined(__CUDACC__)
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// SHARED(float, tile, [16][64]); and, once per kernel, SHARED_DYN(float, tile);
#define SHARED(T, name, dims) __shared__ T name dims
#define SHARED_DYN(T, name)                                   \
  extern __shared__ __align__(128) unsigned char dyn_smem_[]; \
  T* name = reinterpret_cast<T*>(dyn_smem_)
// Names a kernel for the emulator's table; a driver finds it by its symbol.
#define EXPORT_KERNEL(f)
#define DEV_FN static __device__ __forceinline__

namespace dev {
// Rounded by itself: nvcc would fuse a * b + c, where the CPU rounds twice.
DEV_FN double mul_rn(double a, double b) { return __dmul_rn(a, b); }
// 2^x to 2 ulp; results below 2^-126 are 0.
DEV_FN float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

// tanh x to 2^-11.
DEV_FN float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

// A plain store of values that products of warpgroups may read: the emulator notes who has to fence them.
template <typename T> DEV_FN void store_operand(T* to, T value) { *to = value; }

// The address of shared memory as PTX takes it.
DEV_FN uint32_t smem(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// d += a b for a warp: 16x16 (row-major) times 16x8 (column-major), in the fragments of the PTX manual.
#define DEV_MMA_M16N8K16(TYPE)                                                             \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "              \
               "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"                        \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
DEV_FN void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  DEV_MMA_M16N8K16("bf16");
}
DEV_FN void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  DEV_MMA_M16N8K16("f16");
}
#undef DEV_MMA_M16N8K16

// Four 8x8 matrices of 16-bit values from shared memory; lane i names row i % 8 of matrix i / 8, aligned to 16 bytes.
DEV_FN void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem(row))
               : "memory");
}
// The same, each matrix transposed.
DEV_FN void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem(row))
               : "memory");
}

// 16 bytes of shared memory from global memory, asynchronously: the first `bytes` from there, the rest zeros.
DEV_FN void cp_async16(void* to, const void* from, unsigned bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(smem(to)), "l"(from), "r"(bytes) : "memory");
}
// Makes a group of this thread's copies so far.
DEV_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all but the N latest groups of this thread; a barrier must follow before other threads read.
template <int N> DEV_FN void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Barrier `id` (1..15) among `threads` threads, a multiple of 32: to wait at it, or only to be counted.
DEV_FN void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0,%1;" ::"r"(id), "r"(threads) : "memory");
}
DEV_FN void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0,%1;" ::"r"(id), "r"(threads) : "memory");
}

#ifdef HAS_CLUSTERS
// A cluster of blocks: how many there are, its size, this block's number, a barrier, and the same shared variable of
// another block.
DEV_FN uint32_t clusters() {
  uint32_t count;
  asm volatile("mov.u32 %0,%%nclusterid.x;" : "=r"(count));
  return count;
}
DEV_FN uint32_t cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0,%%cluster_nctarank;" : "=r"(size));
  return size;
}
DEV_FN uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0,%%cluster_ctarank;" : "=r"(rank));
  return rank;
}
DEV_FN void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEV_FN void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEV_FN void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
template <typename T> DEV_FN T* cluster_map(T* p, uint32_t rank) {
  uint64_t address;
  asm volatile("mapa.u64 %0,%1,%2;" : "=l"(address) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(address);
}

// An mbarrier in shared memory: phases that end when `count` threads have arrived and all expected bytes have landed.
DEV_FN void mbar_init(uint64_t* bar, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(smem(bar)), "r"(count) : "memory");
}
// After the initialisation, before anything else (a bulk copy, another block) uses the barrier.
DEV_FN void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV_FN void mbar_arrive(uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(smem(bar)) : "memory");
}
DEV_FN void mbar_arrive_expect_tx(uint64_t* bar, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(smem(bar)), "r"(bytes) : "memory");
}
// Waits for the end of the phase of this parity.
DEV_FN void mbar_wait(uint64_t* bar, unsigned parity) {
  asm volatile("{\n.reg .pred p;\nW_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p,[%0],%1;\n@!p bra W_%=;\n}"
               ::"r"(smem(bar)), "r"(parity)
               : "memory");
}
// 16 bytes to the same place of block `rank`'s shared memory, asynchronously, counted at that block's own mbarrier. A count
// may arrive before the block has said what it expects. In launches by clusters of two blocks and more: on an H200 it ended one
// without clusters as an illegal instruction.
DEV_FN void store_to_block(uint4* to, uint4 value, uint64_t* bar, uint32_t rank) {
  asm volatile("{\n.reg .b32 to,bar;\nmapa.shared::cluster.u32 to,%0,%6;\nmapa.shared::cluster.u32 bar,%1,%6;\n"
               "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to],{%2,%3,%4,%5},[bar];\n}"
               ::"r"(smem(to)), "r"(smem(bar)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(rank)
               : "memory");
}
// `bytes` (a multiple of 16) of shared memory from global memory, both aligned to 16, counted at the mbarrier.
DEV_FN void bulk_load(void* to, const void* from, unsigned bytes, uint64_t* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];"
               ::"r"(smem(to)), "l"(from), "r"(bytes), "r"(smem(bar))
               : "memory");
}

// Four consecutive warps' products, 64 rows of D += A B: each warp has 16 rows of A and D in registers, laid out as A and the
// accumulators of mma.m16n8k16 are (D once for each 8 columns). They run by themselves until waited for: until then neither
// A nor D may be touched, nor B in shared memory be overwritten.
#ifdef HAS_WARPGROUPS
// Before a warpgroup's first product, and after other instructions have touched A or D.
DEV_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Makes a group of the products so far.
DEV_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all but the N latest groups.
template <int N> DEV_FN void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// After the wait, before D is read: keeps the compiler from reading it earlier.
template <int N> DEV_FN void wgmma_done(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// B in shared memory, 16 values deep: pieces of 8 columns by 8 values, each 128 bytes, a column's values side by side. So many
// bytes lie between the two pieces in depth, and between pieces of the next eight columns. Adding 1 moves it by 16 bytes.
DEV_FN uint64_t wgmma_operand(const void* first, uint32_t depth_stride, uint32_t column_stride) {
  return (smem(first) >> 4 & 0x3FFF) | uint64_t(depth_stride >> 4) << 16 | uint64_t(column_stride >> 4) << 32;
}
#define DEV_OUT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define DEV_OUT32(i) DEV_OUT(i), DEV_OUT(i + 8), DEV_OUT(i + 16), DEV_OUT(i + 24)
#define DEV_D8 "{%0,%1,%2,%3,%4,%5,%6,%7"
#define DEV_D16 DEV_D8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define DEV_D32 DEV_D16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define DEV_D64 DEV_D32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
                        ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define DEV_D104 DEV_D64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
                         ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95" \
                         ",%96,%97,%98,%99,%100,%101,%102,%103"
// NAME for N columns, D in VALUES registers; TRANS is 1 where B's columns lie side by side.
#define DEV_WGMMA(NAME, TYPE, N, VALUES, TRANS, D, AB, ...)                                                   \
  DEV_FN void NAME(float (&d)[VALUES], uint4 a, uint64_t b) {                                                 \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #TYPE "." #TYPE D "}," AB ",1,1,1," #TRANS ";" \
                 : __VA_ARGS__                                                                                \
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b));                                           \
  }
DEV_WGMMA(wgmma_f16, f16, 16, 8, 0, DEV_D8, "{%8,%9,%10,%11},%12", DEV_OUT(0))
DEV_WGMMA(wgmma_f16, f16, 32, 16, 0, DEV_D16, "{%16,%17,%18,%19},%20", DEV_OUT(0), DEV_OUT(8))
DEV_WGMMA(wgmma_f16, f16, 64, 32, 0, DEV_D32, "{%32,%33,%34,%35},%36", DEV_OUT32(0))
DEV_WGMMA(wgmma_bf16, bf16, 16, 8, 0, DEV_D8, "{%8,%9,%10,%11},%12", DEV_OUT(0))
DEV_WGMMA(wgmma_bf16, bf16, 32, 16, 0, DEV_D16, "{%16,%17,%18,%19},%20", DEV_OUT(0), DEV_OUT(8))
DEV_WGMMA(wgmma_bf16, bf16, 64, 32, 0, DEV_D32, "{%32,%33,%34,%35},%36", DEV_OUT32(0))
// The same where a piece of B is 8 values deep by 8 columns, the columns' values of a depth side by side.
DEV_WGMMA(wgmma_bf16_trans, bf16, 32, 16, 1, DEV_D16, "{%16,%17,%18,%19},%20", DEV_OUT(0), DEV_OUT(8))
DEV_WGMMA(wgmma_bf16_trans, bf16, 64, 32, 1, DEV_D32, "{%32,%33,%34,%35},%36", DEV_OUT32(0))
DEV_WGMMA(wgmma_bf16_trans, bf16, 128, 64, 1, DEV_D64, "{%64,%65,%66,%67},%68", DEV_OUT32(0), DEV_OUT32(32))
DEV_WGMMA(wgmma_bf16_trans, bf16, 208, 104, 1, DEV_D104, "{%104,%105,%106,%107},%108", DEV_OUT32(0), DEV_OUT32(32), DEV_OUT32(64),
          DEV_OUT(96))
#undef DEV_WGMMA
#undef DEV_D104
#undef DEV_D64
#undef DEV_D32
#undef DEV_D16
#undef DEV_D8
#undef DEV_OUT32
#undef DEV_OUT
#endif

// What this thread has written to its block's shared memory may be read by products of warpgroups, once a barrier has followed;
// or what it has written to any block's of its cluster. The latter waits for stores to global memory too (MEMBAR.ALL.GPU).
DEV_FN void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEV_FN void fence_async_cluster() { asm volatile("fence.proxy.async;" ::: "memory"); }
// Two 8x8 matrices of 16-bit values in the layout of an accumulator, transposed, to shared memory; lane i names column i % 8 of
// matrix i / 8, aligned to 16 bytes, where the other lanes' words go too.
DEV_FN void stmatrix_x2_trans(void* column, uint32_t first, uint32_t second) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0],{%1,%2};" ::"r"(smem(column)), "r"(first), "r"(second)
               : "memory");
}
#else
// So that code for both compiles; it is never run.
DEV_FN uint32_t cluster_rank() { __trap(); return 0; }
DEV_FN void cluster_sync() { __trap(); }
template <typename T> DEV_FN T* cluster_map(T* p, uint32_t) { __trap(); return p; }
#endif
#ifndef HAS_WARPGROUPS
template <int N> DEV_FN void wgmma_wait() { __trap(); }
#endif
}  // namespace dev
#else
#include "emulator.h"
#define DEV_FN static inline
#endif
