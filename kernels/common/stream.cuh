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
//
// ASYNCHRONOUS are products that run by themselves (wgmma), and read a piece when `use` has returned: its place is filled
// again when the next piece's have begun. A run ends when all have ended.
template <int kPacks, int kAhead, typename Walk, bool ASYNCHRONOUS = false> struct Stream {
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

  // use(piece, packs) for each piece of the walk's next run.
  template <typename Use> __device__ __forceinline__ void each(Use use) {
    if (++run == walk.runs()) run = 0;
    const uint4* behind = of_run();  // of the run behind this one
    if (walk.pieces() < kAhead) each_alone(use, behind);
    else begin_at<0>(use, behind);
  }

  // Runs that are shorter than the ring are read when they are used.
  template <typename Use> __device__ __forceinline__ void each_alone(Use use, const uint4* behind) {
    for (uint32_t piece = 0; piece < walk.pieces(); piece++) {
      fetch(ring[0]);
      use(piece, ring[0]);
      if constexpr (ASYNCHRONOUS) dev::wgmma_wait<0>();
    }
    next = behind;
  }

  template <int FIRST, typename Use> __device__ __forceinline__ void begin_at(Use use, const uint4* behind) {
    if constexpr (FIRST + 1 < kAhead)
      if (begins != FIRST) return begin_at<FIRST + 1>(use, behind);
    const uint32_t pieces = walk.pieces(), rounds = pieces / kAhead * kAhead;
    for (uint32_t first = 0; first < rounds; first += kAhead) {
#pragma unroll
      for (int k = 0; k < kAhead; k++) {
        use(first + k, ring[(FIRST + k) % kAhead]);
        if (!ASYNCHRONOUS) refill(first + k, (FIRST + k) % kAhead, behind);
        else if (k > 0) refill_after<1>(first + k - 1, (FIRST + k - 1) % kAhead, behind);
      }
      if (ASYNCHRONOUS) refill_after<0>(first + kAhead - 1, (FIRST + kAhead - 1) % kAhead, behind);
    }
#pragma unroll
    for (int k = 0; k + 1 < kAhead; k++) {
      if (rounds + k >= pieces) continue;
      use(rounds + k, ring[(FIRST + k) % kAhead]);
      if (ASYNCHRONOUS) refill_after<0>(rounds + k, (FIRST + k) % kAhead, behind);
      else refill(rounds + k, (FIRST + k) % kAhead, behind);
    }
    begins = (FIRST + pieces) % kAhead;
  }

  // The piece's place is asked to be filled again: the last ones of a run with the first of the run behind.
  __device__ __forceinline__ void refill(uint32_t piece, int place, const uint4* behind) {
    if (piece + kAhead == walk.pieces()) next = behind;
    fetch(ring[place]);
  }
  // The same when no more than LATER pieces' products may still run.
  template <int LATER> __device__ __forceinline__ void refill_after(uint32_t piece, int place, const uint4* behind) {
    if constexpr (ASYNCHRONOUS) dev::wgmma_wait<LATER>();
    refill(piece, place, behind);
  }
};
