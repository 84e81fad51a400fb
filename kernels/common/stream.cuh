// stream.cuh -- packed weights on their way from the second-level cache into a warp's registers, piece by piece.
//
// A kernel that steps through time needs the same weights at each step. A Walk says in which order one warp takes them: at
// each step runs() of them, run(n) the n-th, each of pieces() pieces, kStride packs of 16 bytes apart. A lane holds kPacks
// packs of a piece, the first 32 * kPacks of which are wanted.
#pragma once
#include "common/device.cuh"

// kAhead pieces are on their way before their use, across the ends of runs and of time steps, so that only the very first
// ones are waited for: a warp is idle for some 800 cycles otherwise, as often as it begins a run.
template <int kPacks, int kAhead, typename Walk> struct Stream {
  static constexpr uint32_t kStride = 128;  // packs

  const Walk walk;
  uint4 ring[kAhead][kPacks];  // the first pieces of the run that is used next, and of those behind it
  const uint4* next;           // this lane's packs of the piece behind those
  uint32_t run = 0, left;      // that piece's run, and how many of its pieces are still to be asked for

  __device__ __forceinline__ explicit Stream(const Walk& walk)
      : walk(walk), next(walk.run(0) + threadIdx.x % 32), left(walk.pieces()) {
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ahead++) fetch(ring[ahead]);
  }

  __device__ __forceinline__ void fetch(uint4 (&to)[kPacks]) {
#pragma unroll
    for (int i = 0; i < kPacks; i++) to[i] = __ldg(next + i * 32);
    next += kStride;
    if (--left > 0) return;
    left = walk.pieces();
    if (++run == walk.runs()) run = 0;
    next = walk.run(run) + threadIdx.x % 32;
  }

  // use(piece, packs) for each piece of the walk's next run.
  template <typename Use> __device__ __forceinline__ void each(Use use) {
    const uint32_t pieces = walk.pieces();
    for (uint32_t first = 0; first < pieces; first += kAhead) {
#pragma unroll
      for (uint32_t k = 0; k < kAhead; k++) {
        if (first + k >= pieces) break;
        use(first + k, ring[k]);
        fetch(ring[k]);
      }
    }
    for (uint32_t behind = pieces % kAhead; behind > 0; behind--) rotate();
  }

  // The piece that is behind the first becomes the first.
  __device__ __forceinline__ void rotate() {
#pragma unroll
    for (int i = 0; i < kPacks; i++) {
      const uint4 first = ring[0][i];
#pragma unroll
      for (int k = 0; k + 1 < kAhead; k++) ring[k][i] = ring[k + 1][i];
      ring[kAhead - 1][i] = first;
    }
  }
};
