// tokens.cu -- rows of a token batch by number.
//
// One warp per row: 128 contiguous bytes per load and store, whatever the rows' order. Only the tokens of a sequence are
// read; the rest of its row is written as PAD.
#include "common/device.cuh"

// Row at + i of `to` becomes row rows[i] of `from`, i < count; both have rows of `longest` tokens. 256 threads, any grid.
extern "C" __global__ void __launch_bounds__(256)
copy_rows(const uint32_t* from, const uint32_t* from_lengths, const uint32_t* rows, uint64_t count, uint64_t at,
          uint32_t longest, uint32_t pad, uint32_t* to, uint32_t* to_lengths) {
  const uint32_t lane = threadIdx.x % 32;
  const uint64_t warps = uint64_t(gridDim.x) * (blockDim.x / 32);
  for (uint64_t i = uint64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; i < count; i += warps) {
    const uint64_t row = rows[i];
    const uint32_t length = from_lengths[row];
    const uint32_t* source = from + row * longest;
    uint32_t* target = to + (at + i) * longest;
    for (uint32_t t = lane; t < longest; t += 32) target[t] = t < length ? source[t] : pad;
    if (lane == 0) to_lengths[at + i] = length;
  }
}

EXPORT_KERNEL(copy_rows)
