// tokens.cu -- rows of a token batch by number, and rows that begin with a context.
//
// One warp per row: 128 contiguous bytes per load and store, whatever the rows' order. Only the tokens of a sequence are
// read; the rest of its row is written as PAD.
#include "common/rows.cuh"

// Row at + i of `to` becomes row rows[i] of `from`, i < count; both have rows of `longest` tokens. 256 threads, any grid.
extern "C" __global__ void __launch_bounds__(256)
copy_rows(const Rows from, const uint32_t* rows, uint64_t count, uint64_t at, uint32_t longest, uint32_t pad, const Rows to) {
  const uint64_t warps = uint64_t(gridDim.x) * (blockDim.x / 32);
  for (uint64_t i = uint64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; i < count; i += warps)
    copy_row(from, rows[i], to, at + i, longest, pad);
}

// Each of `rows` rows becomes the context that the draw of its number, from first + *skip on, continues: each of `count`
// contexts `draws` times in a row. 256 threads, any grid.
extern "C" __global__ void __launch_bounds__(256)
begin_rows(const uint32_t* contexts, const uint32_t* context_lengths, uint64_t count, uint64_t draws, uint64_t first,
           const uint64_t* skip, uint64_t rows, uint32_t longest, uint32_t pad, const Rows to) {
  const uint32_t lane = threadIdx.x % 32;
  const uint64_t warps = uint64_t(gridDim.x) * (blockDim.x / 32), begin = first + *skip;
  for (uint64_t row = uint64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; row < rows; row += warps) {
    const uint64_t number = (begin + row) / draws % count;
    const uint32_t length = context_lengths[number];
    for (uint32_t t = lane; t < longest; t += 32)
      to.tokens[row * longest + t] = t < length ? contexts[number * longest + t] : pad;
    if (lane == 0) to.lengths[row] = to.given[row] = length, to.context[row] = uint32_t(number);
  }
}

EXPORT_KERNEL(copy_rows)
EXPORT_KERNEL(begin_rows)
