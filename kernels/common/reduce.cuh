// reduce.cuh -- sums over a warp, a block and a cluster of blocks in an order that depends on nothing but the number of
// threads.
#pragma once
#include "common/device.cuh"

// The sum over the warp's lanes, valid in all of them.
template <typename T> DEV_FN T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// The largest of the warp's values, a NaN left out; valid in all lanes.
template <typename T> DEV_FN T warp_max(T value) {
#pragma unroll
  for (int distance = 16; distance; distance >>= 1) {
    const T other = __shfl_xor_sync(~0u, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// The sum over a block of up to 1024 threads, a multiple of 32; valid in all of them.
template <typename T> DEV_FN T block_sum(T value) {
  SHARED(T, partial, [32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = warp_sum(lane < warps ? partial[lane] : T(0));
  __syncthreads();  // the array may be used again
  return value;
}

// The largest of a block's values, as block_sum; a NaN may be left out.
template <typename T> DEV_FN T block_max(T value) {
  SHARED(T, partial, [32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_max(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = warp_max(partial[lane < warps ? lane : 0]);
  __syncthreads();  // the array may be used again
  return value;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// The sum over the blocks of a cluster, up to 32; all threads of a block bring its value. Valid in all threads.
template <typename T> DEV_FN T cluster_sum(T value) {
  SHARED(T, partial, [1]);
  const uint32_t lane = threadIdx.x % 32;
  if (threadIdx.x == 0) partial[0] = value;
  dev::cluster_sync();
  value = warp_sum(lane < dev::cluster_size() ? *dev::cluster_map(partial, lane) : T(0));
  dev::cluster_sync();  // the variable may be used again, and its block may end
  return value;
}

// The largest of the blocks' values, as cluster_sum; a NaN may be left out. A cluster_sum must follow: the variable may
// then be used again, and its block may end.
template <typename T> DEV_FN T cluster_max(T value) {
  SHARED(T, partial, [1]);
  const uint32_t lane = threadIdx.x % 32;
  if (threadIdx.x == 0) partial[0] = value;
  dev::cluster_sync();
  return warp_max(*dev::cluster_map(partial, lane < dev::cluster_size() ? lane : 0));
}
#endif

// How many threads of the block before this one say yes, and how many of all; up to 1024 threads, a multiple of 32.
struct Rank {
  uint32_t before, all;
};
DEV_FN Rank block_rank(bool yes) {
  SHARED(uint32_t, counts, [32]);
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const uint32_t votes = __ballot_sync(~0u, yes);
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  const uint32_t count = lane < warps ? counts[lane] : 0, lower = warp_sum(lane < warp ? count : 0);
  const Rank rank{lower + __popc(votes & ((1u << lane) - 1)), warp_sum(count)};
  __syncthreads();  // the array may be used again
  return rank;
}
