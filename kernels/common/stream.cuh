// stream.cuh -- packed weights on their way to a warp, piece by piece: straight from the second-level cache into its
// registers, or through the shared memory of two blocks of a cluster, which reads each piece once for both (sm_90).
//
// A kernel that steps through time needs the same weights at each step. A Walk says in which order one warp takes them: at
// each step runs() of them, run(n) the n-th, each of pieces() pieces, kStride packs of 16 bytes apart. A lane holds kPacks
// packs of a piece, the first 32 · kPacks of which are wanted.
#pragma once
#include "common/device.cuh"

// Into registers, kAhead pieces before their use: a warp's products of so many pieces take longer than the second-level
// cache.
template <int kPacks, int kAhead> struct FromCache {
  static constexpr uint32_t kBlocks = 1, kStride = 128;  // packs

  __device__ __forceinline__ void begin() {}
  __device__ __forceinline__ void pass() {}
  __device__ __forceinline__ void end() {}
  __device__ __forceinline__ uint32_t larger(uint32_t value) { return value; }

  // use(piece, packs) for each piece of a run.
  template <typename Use> __device__ __forceinline__ void each(const uint4* run, uint32_t pieces, Use use) {
    uint4 ring[kAhead][kPacks];
    run += threadIdx.x % 32;
#pragma unroll
    for (uint32_t ahead = 0; ahead < kAhead; ahead++)
      if (ahead < pieces) fetch(ring[ahead], run + ahead * kStride);
    for (uint32_t first = 0; first < pieces; first += kAhead) {
#pragma unroll
      for (uint32_t k = 0; k < kAhead; k++) {
        const uint32_t piece = first + k;
        if (piece >= pieces) break;
        use(piece, ring[k]);
        if (piece + kAhead < pieces) fetch(ring[k], run + (piece + kAhead) * kStride);
      }
    }
  }

  static __device__ __forceinline__ void fetch(uint4 (&to)[kPacks], const uint4* from) {
#pragma unroll
    for (int i = 0; i < kPacks; i++) to[i] = __ldg(from + i * 32);
  }
};

#ifdef HAS_COPIES_TO_BLOCKS
// Through kStages places of shared memory a warp. Equal warps of the two blocks take the same pieces; each reads one half of
// a piece for both. A place is filled again once both have given it back; one place of slack lets either be a piece ahead.
// The block that is behind never waits for the other, so there is no deadlock.
template <int kPacks, int kStages, typename Walk> struct FromPair {
  static constexpr uint32_t kBlocks = 2, kStride = 128, kPiece = 32 * kPacks, kBytes = 16 * kPiece;  // packs, packs, bytes

  // A place, and which time round.
  struct Turn {
    uint32_t stage = 0, phase = 0;
    __device__ __forceinline__ void advance() {
      if (++stage < kStages) return;
      stage = 0;
      phase ^= 1;
    }
  };

  const Walk walk;
  const uint32_t lane, rank;
  uint4* stages;           // [kStages][kPiece], this warp's
  uint64_t *full, *empty;  // [kStages], this warp's
  uint32_t* said;          // [2]: see either
  Turn taken, asked;
  uint32_t vote = 0, run = 0, piece = 0;
  const uint4* next;  // to be asked for: `piece` of `run`

  // What a block of so many warps needs, a multiple of 16.
  static __device__ __forceinline__ uint32_t shared_bytes(uint32_t warps) {
    return warps * kStages * (kBytes + 16) + 16;
  }

  __device__ __forceinline__ FromPair(const Walk& walk, unsigned char* shared)
      : walk(walk), lane(threadIdx.x % 32), rank(dev::cluster_rank()) {
    const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
    stages = reinterpret_cast<uint4*>(shared) + warp * kStages * kPiece;
    uint64_t* barriers = reinterpret_cast<uint64_t*>(shared + warps * kStages * kBytes);
    full = barriers + warp * 2 * kStages;
    empty = full + kStages;
    said = reinterpret_cast<uint32_t*>(barriers + warps * 2 * kStages);
    next = walk.run(0);
  }

  __device__ __forceinline__ void begin() {
    if (lane == 0) {
      for (int stage = 0; stage < kStages; stage++) {
        dev::mbar_init(full + stage, 1);
        dev::mbar_init(empty + stage, 2);
      }
      dev::mbar_init_fence();
    }
    dev::cluster_sync();
    if (lane == 0)
      for (int stage = 0; stage + 1 < kStages; stage++) ask();
  }

  // Lane 0 alone.
  __device__ __forceinline__ void ask() {
    uint64_t* bar = full + asked.stage;
    uint4* to = stages + asked.stage * kPiece + rank * (kPiece / 2);
    dev::mbar_wait_cluster(empty + asked.stage, asked.phase ^ 1);  // at once the first time round
    dev::mbar_arrive_expect_tx(bar, kBytes);
    dev::bulk_load_to_blocks(to, next + rank * (kPiece / 2), kBytes / 2, bar, 3);
    asked.advance();
    next += kStride;
    if (++piece < walk.pieces()) return;
    piece = 0;
    if (++run == walk.runs()) run = 0;
    next = walk.run(run);
  }

  __device__ __forceinline__ void take(uint4 (&to)[kPacks]) {
    dev::mbar_wait(full + taken.stage, taken.phase);
    const uint4* from = stages + taken.stage * kPiece + lane;
#pragma unroll
    for (int i = 0; i < kPacks; i++) to[i] = from[i * 32];
    __syncwarp();  // all lanes have read
    if (lane == 0) {
      dev::mbar_arrive_at(empty + taken.stage, 0);
      dev::mbar_arrive_at(empty + taken.stage, 1);
      ask();
    }
    taken.advance();
  }

  // use(piece, packs) for each piece of the run, which is the walk's next.
  template <typename Use> __device__ __forceinline__ void each(const uint4*, uint32_t pieces, Use use) {
    for (uint32_t piece = 0; piece < pieces; piece++) {
      uint4 packs[kPacks];
      take(packs);
      use(piece, packs);
    }
  }

  // A block with nothing to do at a time step takes its pieces all the same.
  __device__ __forceinline__ void pass() {
    uint4 packs[kPacks];
    for (uint32_t left = walk.runs() * walk.pieces(); left > 0; left--) take(packs);
  }

  // The larger of the two blocks' values, the same in all threads of a block; a barrier of both.
  __device__ __forceinline__ uint32_t larger(uint32_t value) {
    uint32_t* here = said + vote;  // in turns, as the other block may read the last one still
    vote ^= 1;
    if (threadIdx.x == 0) *here = value;
    dev::cluster_sync();
    return max(value, *dev::cluster_map(here, rank ^ 1));
  }

  // Behind the last step: what was asked for lands, and the other block has arrived here for the last time, before this
  // block uses the memory for something else or ends.
  __device__ __forceinline__ void end() {
    for (int stage = 0; stage + 1 < kStages; stage++, taken.advance()) dev::mbar_wait(full + taken.stage, taken.phase);
    dev::cluster_sync();  // mutation: the other block's last arrival comes before the copy behind it, on a CPU; no GPU says so
  }
};
#endif
