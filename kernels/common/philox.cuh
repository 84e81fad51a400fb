// philox.cuh -- Philox4x32-10 (Salmon et al. 2011), the same words as src/rng.rs.
#pragma once
#include "common/device.cuh"

// Key = seed, counter = (sequence low, sequence high, position, purpose).
DEV_FN uint4 philox(uint64_t seed, uint64_t sequence, uint32_t position, uint32_t purpose) {
  uint4 counter = make_uint4(uint32_t(sequence), uint32_t(sequence >> 32), position, purpose);
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t(counter.x) * 0xD2511F53u, b = uint64_t(counter.z) * 0xCD9E8D57u;
    counter = make_uint4(uint32_t(b >> 32) ^ counter.y ^ key0, uint32_t(b), uint32_t(a >> 32) ^ counter.w ^ key1, uint32_t(a));
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The top 24 bits as a multiple of 2^-24 in [0, 1): exact, never 1.
DEV_FN float to_unit(uint32_t word) { return float(word >> 8) * (1.0f / 16777216.0f); }
