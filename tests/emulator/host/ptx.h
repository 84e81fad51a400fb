// ptx.h -- the twins of the PTX wrappers in kernels/common/device.cuh.
#pragma once
#include <bit>
#include <cstring>

#include "half.h"
#include "runtime.h"

namespace emu {

struct Ldmatrix {
  uint16_t row[8];
  uint32_t* out;
};
EMU_ACROSS_LANES inline uint32_t matrix_element(const Lanes& lanes, int row, int column) {
  return static_cast<Ldmatrix*>(lanes.arguments[row])->row[column];
}
// Lane 4 i + j gets elements 2 j and 2 j + 1 of row i (transposed: of column i) of each matrix.
template <bool Transposed> EMU_ACROSS_LANES void ldmatrix_lanes(const Lanes& lanes) {
  expect_whole_warp(lanes);
  for (int lane = 0; lane < 32; lane++) {
    for (int matrix = 0; matrix < 4; matrix++) {
      const int first = 8 * matrix, i = lane / 4, j = lane % 4 * 2;
      const uint32_t low = Transposed ? matrix_element(lanes, first + j, i) : matrix_element(lanes, first + i, j);
      const uint32_t high =
          Transposed ? matrix_element(lanes, first + j + 1, i) : matrix_element(lanes, first + i, j + 1);
      static_cast<Ldmatrix*>(lanes.arguments[lane])->out[matrix] = low | high << 16;
    }
  }
}
template <bool Transposed> void ldmatrix(uint32_t* out, const void* row, Site at) {
  if (uintptr_t(row) % 16) fail(at, "ldmatrix: the row's address is not a multiple of 16");
  Ldmatrix argument;
  argument.out = out;
  std::memcpy(argument.row, row, 16);  // by the lane that names the row, so that sanitizers see who reads what
  meet(~0u, &ldmatrix_lanes<Transposed>, &argument, "ldmatrix", at);
}

// Lane 4 i + j has elements 2 j and 2 j + 1 of row i of both matrices; their columns go where lanes 0 to 15 name.
struct Stmatrix {
  uint32_t words[2];
  uint16_t column[8];
};
EMU_ACROSS_LANES inline void stmatrix_lanes(const Lanes& lanes) {
  expect_whole_warp(lanes);
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      const auto* from = static_cast<Stmatrix*>(lanes.arguments[lane]);
      const int column = lane % 4 * 2 + i % 2;
      static_cast<Stmatrix*>(lanes.arguments[i / 2 * 8 + column])->column[lane / 4] = uint16_t(from->words[i / 2] >> (16 * (i % 2)));
    }
}

struct Mma {
  float* d;
  const uint32_t *a, *b;
};
// Fragments as in the PTX manual, "Matrix fragments for mma.m16n8k16 with floating point type".
template <float (*ToFloat)(uint16_t)> EMU_ACROSS_LANES void mma_lanes(const Lanes& lanes) {
  expect_whole_warp(lanes);
  float a[16][16], b[16][8], product[16][8] = {};
  for (int lane = 0; lane < 32; lane++) {
    const auto* mine = static_cast<Mma*>(lanes.arguments[lane]);
    const int row = lane / 4, column = lane % 4 * 2;
    for (int half = 0; half < 2; half++) {
      for (int i = 0; i < 4; i++)
        a[row + i % 2 * 8][column + i / 2 * 8 + half] = ToFloat(uint16_t(mine->a[i] >> (16 * half)));
      for (int i = 0; i < 2; i++) b[column + i * 8 + half][row] = ToFloat(uint16_t(mine->b[i] >> (16 * half)));
    }
  }
  for (int m = 0; m < 16; m++)
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 8; n++) product[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++)
      static_cast<Mma*>(lanes.arguments[lane])->d[i] += product[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}
}  // namespace emu

namespace dev {
inline double mul_rn(double a, double b) { return a * b; }
inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

// Eleven bits of the result, as a GPU has.
inline float tanh_approx(float x) {
  const uint32_t bits = __float_as_uint(tanhf(x));
  return __uint_as_float((bits + 0x800) & ~0xFFFu);
}

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              emu::Site at = emu::Site::current()) {
  emu::Mma argument{d, a, b};
  emu::meet(~0u, &emu::mma_lanes<&emu::bf16_to_float>, &argument, "mma.m16n8k16.bf16", at);
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             emu::Site at = emu::Site::current()) {
  emu::Mma argument{d, a, b};
  emu::meet(~0u, &emu::mma_lanes<&emu::f16_to_float>, &argument, "mma.m16n8k16.f16", at);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, emu::Site at = emu::Site::current()) {
  emu::ldmatrix<false>(r, row, at);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, emu::Site at = emu::Site::current()) {
  emu::ldmatrix<true>(r, row, at);
}

inline void stmatrix_x2_trans(void* column, uint32_t first, uint32_t second, emu::Site at = emu::Site::current()) {
  emu::Stmatrix argument{{first, second}, {}};
  emu::meet(~0u, &emu::stmatrix_lanes, &argument, "stmatrix", at);
  if (emu_thread->lane >= 16) return;
  if (uintptr_t(column) % 16) emu::fail(at, "stmatrix: the column's address is not a multiple of 16");
  std::memcpy(column, argument.column, 16);  // by the lane that names the column
  emu::note_unfenced(column);
}
template <class T> void store_operand(T* to, T value) {
  *to = value;
  emu::note_unfenced(to);
}
inline void fence_async(emu::Site at = emu::Site::current()) {
  if (!emu::is_dropped(at)) emu::fence_async(false);
}
inline void fence_async_cluster(emu::Site at = emu::Site::current()) {
  if (!emu::is_dropped(at)) emu::fence_async(true);
}

template <int N> void wgmma_f16(float (&d)[N], const uint4& a, uint64_t b, emu::Site at = emu::Site::current()) {
  emu::wgmma(d, 2 * N, &a, b, false, &emu::f16_to_float, "wgmma.f16", at);
}
template <int N> void wgmma_bf16(float (&d)[N], const uint4& a, uint64_t b, emu::Site at = emu::Site::current()) {
  emu::wgmma(d, 2 * N, &a, b, false, &emu::bf16_to_float, "wgmma.bf16", at);
}
template <int N> void wgmma_bf16_trans(float (&d)[N], const uint4& a, uint64_t b, emu::Site at = emu::Site::current()) {
  emu::wgmma(d, 2 * N, &a, b, true, &emu::bf16_to_float, "wgmma.bf16", at);
}
inline void wgmma_fence(emu::Site at = emu::Site::current()) { emu::wgmma_fence(at); }
inline void wgmma_commit(emu::Site at = emu::Site::current()) { emu::wgmma_commit(at); }
template <int N> void wgmma_wait(emu::Site at = emu::Site::current()) { emu::wgmma_wait(N, at); }
template <int N> void wgmma_done(float (&)[N]) {}
inline uint64_t wgmma_operand(const void* first, uint32_t depth_stride, uint32_t column_stride,
                              emu::Site at = emu::Site::current()) {
  return emu::wgmma_operand(first, depth_stride, column_stride, at);
}

inline void cp_async16(void* to, const void* from, unsigned bytes = 16, emu::Site at = emu::Site::current()) {
  emu::copy_async(to, from, bytes, at);
}
inline void cp_async_commit() { emu::copy_async_commit(); }
template <int N> void cp_async_wait(emu::Site at = emu::Site::current()) { emu::copy_async_wait(N, at); }

inline void named_barrier_sync(int id, int threads, emu::Site at = emu::Site::current()) {
  emu::named_barrier(id, threads, true, at);
}
inline void named_barrier_arrive(int id, int threads, emu::Site at = emu::Site::current()) {
  emu::named_barrier(id, threads, false, at);
}

inline uint32_t clusters() { return emu_thread->block->grid.x / emu_thread->block->cluster_size; }
inline uint32_t cluster_size() { return emu_thread->block->cluster_size; }
inline uint32_t cluster_rank() { return emu_thread->block->cluster_rank; }
inline void cluster_arrive(emu::Site at = emu::Site::current()) { emu::cluster_barrier(true, false, at); }
inline void cluster_wait(emu::Site at = emu::Site::current()) { emu::cluster_barrier(false, true, at); }
inline void cluster_sync(emu::Site at = emu::Site::current()) { emu::cluster_barrier(true, true, at); }
template <class T> T* cluster_map(T* p, uint32_t rank, emu::Site at = emu::Site::current()) {
  return static_cast<T*>(emu::cluster_shared(p, rank, at));
}

inline void mbar_init(uint64_t* bar, unsigned count, emu::Site at = emu::Site::current()) {
  emu::mbarrier_init(bar, count, at);
}
inline void mbar_init_fence() { emu::fence(); }
inline void mbar_arrive(uint64_t* bar, emu::Site at = emu::Site::current()) { emu::mbarrier_arrive(bar, 0, at); }
inline void mbar_arrive_expect_tx(uint64_t* bar, unsigned bytes, emu::Site at = emu::Site::current()) {
  emu::mbarrier_arrive(bar, bytes, at);
}
inline void mbar_wait(uint64_t* bar, unsigned parity, emu::Site at = emu::Site::current()) {
  emu::mbarrier_wait(bar, parity, at);
}
inline void store_to_block(uint4* to, uint4 value, uint64_t* bar, uint32_t rank, emu::Site at = emu::Site::current()) {
  const auto bytes = std::bit_cast<std::array<unsigned char, 16>>(value);
  emu::store_async(cluster_map(to, rank, at), bytes, cluster_map(bar, rank, at), at);
}
inline void bulk_load(void* to, const void* from, unsigned bytes, uint64_t* bar, emu::Site at = emu::Site::current()) {
  emu::bulk_copy(to, from, bytes, bar, at);
}
}  // namespace dev
