// reduce.cuh -- sums over a warp and a block in an order that depends on nothing but the number of threads.
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

// The same of floats by one reduction of integers that are ordered as they are; a positive NaN wins.
DEV_FN float warp_highest(float value) {
  const int bits = __float_as_int(value), most = __reduce_max_sync(~0u, bits ^ (bits >> 31 & 0x7fffffff));
  return __int_as_float(most ^ (most >> 31 & 0x7fffffff));
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
