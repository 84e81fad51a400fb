// stream.cuh -- packed weights on their way from the second-level cache into a warp's registers, piece by piece.
//
// A kernel that steps through time needs the same weights at each step. A Walk says in which order one warp takes them: at
// each step runs() of them, run(n) the n-th, each of pieces() pieces, kStride packs of 16 bytes apart. A lane holds kPacks
// packs of a piece, the first 32 * kPacks of which are wanted.
#pragma once
#include "common/device.cuh"

// kAhead pieces are on their way before their use, across the ends of runs and of time steps, so that only the very first
// ones are waited for: a warp is idle for some 800 cycles otherwise, as often as it begins a run. A piece's place in the ring
// is a register's name, known when compiling; so there is code for each place that a run can begin at, and nothing is moved
// from place to place, which would wait for it.
template <int kPacks, int kAhead, typename Walk> struct Stream {
  static constexpr uint32_t kStride = 128;  // packs

  const Walk walk;
  uint4 ring[kAhead][kPacks];
  uint32_t run = 0, begins = 0;  // the run that is used next, and the place of its first piece
  const uint4* next;             // this lane's packs of the piece that is asked for next

  __device__ __forceinline__ explicit Stream(const Walk& walk) : walk(walk), next(of_run()) {
    if (walk.pieces() < kAhead) return;
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ahead++) fetch(ring[ahead]);
  }

  __device__ __forceinline__ const uint4* of_run() const { return walk.run(run) + threadIdx.x % 32; }
  __device__ __forceinline__ void fetch(uint4 (&to)[kPacks]) {
#pragma unroll
    for (int i = 0; i < kPacks; i++) to[i] = __ldg(next + i * 32);
    next += kStride;
  }
  __device__ __forceinline__ void to_next_run() {
    if (++run == walk.runs()) run = 0;
    next = of_run();
  }

  // use(piece, packs) for each piece of the walk's next run.
  template <typename Use> __device__ __forceinline__ void each(Use use) {
    if (walk.pieces() < kAhead) each_alone(use);
    else begin_at<0>(use);
  }

  // Runs that are shorter than the ring are read when they are used.
  template <typename Use> __device__ __forceinline__ void each_alone(Use use) {
    for (uint32_t piece = 0; piece < walk.pieces(); piece++) {
      fetch(ring[0]);
      use(piece, ring[0]);
    }
    to_next_run();
  }

  template <int FIRST, typename Use> __device__ __forceinline__ void begin_at(Use use) {
    if constexpr (FIRST + 1 < kAhead)
      if (begins != FIRST) return begin_at<FIRST + 1>(use);
    const uint32_t pieces = walk.pieces(), rounds = pieces / kAhead * kAhead;
    for (uint32_t first = 0; first < rounds; first += kAhead) {
#pragma unroll
      for (uint32_t k = 0; k < kAhead; k++) take(first + k, ring[(FIRST + k) % kAhead], use);
    }
#pragma unroll
    for (uint32_t k = 0; k + 1 < kAhead; k++)
      if (rounds + k < pieces) take(rounds + k, ring[(FIRST + k) % kAhead], use);
    begins = (FIRST + pieces) % kAhead;
  }

  // The piece's place is asked to be filled again: the last ones of a run with the first of the run behind.
  template <typename Use> __device__ __forceinline__ void take(uint32_t piece, uint4 (&place)[kPacks], Use use) {
    use(piece, place);
    if (piece + kAhead == walk.pieces()) to_next_run();
    fetch(place);
  }
};
