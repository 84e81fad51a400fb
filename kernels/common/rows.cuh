// rows.cuh -- whole rows of token batches; src/tokens/gpu.rs has the same struct.
#pragma once
#include "common/device.cuh"

// Rows of `longest` tokens with their lengths, the lengths of their contexts and the contexts' numbers.
struct Rows {
  uint32_t *tokens, *lengths, *given, *context;
};
static_assert(sizeof(Rows) == 32, "src/tokens/gpu.rs has the same layout");

// Row `at` of `to` becomes row `row` of `from`, by a warp. Only the tokens of a sequence are read.
DEV_FN void copy_row(const Rows& from, uint64_t row, const Rows& to, uint64_t at, uint32_t longest, uint32_t pad) {
  const uint32_t lane = threadIdx.x % 32, length = from.lengths[row];
  for (uint32_t t = lane; t < longest; t += 32)
    to.tokens[at * longest + t] = t < length ? from.tokens[row * longest + t] : pad;
  if (lane == 0) to.lengths[at] = length, to.given[at] = from.given[row], to.context[at] = from.context[row];
}
