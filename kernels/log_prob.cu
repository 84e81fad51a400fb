// log_prob.cu -- log softmax(scale * logits) at one token per row, and its sums over sequences.
//
// One read of the logits, 16 bytes per load with ragged heads and tails, a part of a warp per row for the smallest
// vocabularies, one warp for small and one block for large ones: four to a multiprocessor, so that one's first loads and
// barriers hide behind the others. Each row's result depends on nothing but the row and the number of threads that share it,
// which the vocabulary alone decides.
#include "common/parts.cuh"

// log_probs[rows] of tokens[rows] from logits[rows, vocab], `stride` values from row to row, and entropies[rows]. Any grid;
// a block has one team or several.
template <typename Team, bool kEntropy, typename T>
DEV_FN void log_probs_of(const T* logits, const uint32_t* tokens, uint64_t rows, uint64_t stride, Softmax softmax,
                         float* log_probs, float* entropies, unsigned long long* status) {
  const uint64_t step = uint64_t(gridDim.x) * Team::teams();
  for (uint64_t at = uint64_t(blockIdx.x) * Team::teams() + Team::index(); at < rows; at += step) {
    const T* row = logits + at * stride;
    const Normaliser found = normaliser<Team, kEntropy>(softmax, row);
    if (Team::rank() != 0) continue;
    const uint32_t token = tokens[at];
    const bool good = check_row(softmax, found, at, token, true, status);
    log_probs[at] = good ? float(log_prob_of(softmax, found, logit(softmax, row, token))) : NAN;
    if (kEntropy) entropies[at] = good ? float(entropy_of(softmax, found)) : NAN;
  }
}

// The same for vocabularies of at most 256: a warp has several rows. Any grid.
template <bool kEntropy, typename Row, typename T>
DEV_FN void log_probs_of_parts(Row held, const T* logits, const uint32_t* tokens, uint64_t rows, uint64_t stride,
                               Softmax softmax, float* log_probs, float* entropies, unsigned long long* status) {
  const Part part = part_of<Row>(softmax.vocab);
  const uint32_t warps = blockDim.x / 32, alignment = alignment_of(logits, stride);
  const uint64_t step = uint64_t(gridDim.x) * warps * part.rows;
  for (uint64_t first = (uint64_t(blockIdx.x) * warps + threadIdx.x / 32) * part.rows; first < rows; first += step) {
    const uint64_t at = first + part.row;
    const bool exists = at < rows;
    const T* row = logits + at * stride;
    const uint32_t token = exists ? tokens[at] : ~0u;
    held.load(softmax, part, row, exists, alignment);
    const float x = token < softmax.vocab ? held.at(softmax, row, token) : NAN;
    const Normaliser found = held.template normalise<kEntropy>(softmax, part);
    if (!exists || part.lane != 0) continue;
    const bool good = check_row(softmax, found, at, token, true, status);
    log_probs[at] = good ? log_prob_of_part(softmax, found, x) : NAN;
    if (kEntropy) entropies[at] = good ? float(entropy_of(softmax, found)) : NAN;
  }
}

#define LOG_PROB_KERNEL(name, T, threads, resident)                                                                    \
  extern "C" __global__ void __launch_bounds__(threads, resident)                                                      \
  name(const T* logits, const uint32_t* tokens, uint64_t rows, uint32_t vocab, uint64_t stride, float scale,           \
       const uint32_t* mask, float* log_probs, float* entropies, unsigned long long* status)
#define LOG_PROB(name, Team, T, threads)                                                                               \
  LOG_PROB_KERNEL(log_prob_##name, T, threads, 1024 / threads) {                                                       \
    log_probs_of<Team, false>(logits, tokens, rows, stride, Softmax{vocab, scale, mask}, log_probs, entropies, status); \
  }                                                                                                                    \
  LOG_PROB_KERNEL(entropy_##name, T, threads, 1024 / threads) {                                                        \
    log_probs_of<Team, true>(logits, tokens, rows, stride, Softmax{vocab, scale, mask}, log_probs, entropies, status); \
  }
LOG_PROB(warp_f32, WarpTeam, float, 256)
LOG_PROB(warp_f16, WarpTeam, __half, 256)
LOG_PROB(warp_bf16, WarpTeam, __nv_bfloat16, 256)
LOG_PROB(block_f32, BlockTeam, float, 256)
LOG_PROB(block_f16, BlockTeam, __half, 256)
LOG_PROB(block_bf16, BlockTeam, __nv_bfloat16, 256)

#define LOG_PROB_OF_PARTS(name, entropy, T)                                                                            \
  LOG_PROB_KERNEL(name, T, 256, 3) {                                                                                   \
    with_part_of_row<T>(vocab, [&](auto held) {                                                                        \
      log_probs_of_parts<entropy>(held, logits, tokens, rows, stride, Softmax{vocab, scale, mask}, log_probs,          \
                                  entropies, status);                                                                  \
    });                                                                                                                \
  }
LOG_PROB_OF_PARTS(log_prob_part_f32, false, float)
LOG_PROB_OF_PARTS(log_prob_part_f16, false, __half)
LOG_PROB_OF_PARTS(log_prob_part_bf16, false, __nv_bfloat16)
LOG_PROB_OF_PARTS(entropy_part_f32, true, float)
LOG_PROB_OF_PARTS(entropy_part_f16, true, __half)
LOG_PROB_OF_PARTS(entropy_part_bf16, true, __nv_bfloat16)

// sums[s] = the sum of values[offsets[s] .. offsets[s + 1]], s < sequences, in double and in an order that depends on the
// sequence alone: one warp per sequence. Offsets that fall or go beyond `rows` give NaN. Any grid, 256 threads.
extern "C" __global__ void __launch_bounds__(256)
sequence_sums(const float* values, uint64_t rows, const uint64_t* offsets, uint64_t sequences, double* sums,
              unsigned long long* status) {
  const uint32_t lane = threadIdx.x % 32;
  const uint64_t step = uint64_t(gridDim.x) * (blockDim.x / 32);
  for (uint64_t s = uint64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; s < sequences; s += step) {
    const uint64_t begin = offsets[s], end = offsets[s + 1];
    const bool good = begin <= end && end <= rows;
    double sum = good ? 0.0 : double(NAN);
    for (uint64_t at = begin + lane; good && at < end; at += 32) sum += double(values[at]);
    sum = warp_sum(sum);
    if (lane == 0) sums[s] = sum;
    if (lane == 0 && !good) note_fault(status, s, kBadRow);
  }
}

EXPORT_KERNEL(log_prob_part_f32)
EXPORT_KERNEL(log_prob_part_f16)
EXPORT_KERNEL(log_prob_part_bf16)
EXPORT_KERNEL(log_prob_warp_f32)
EXPORT_KERNEL(log_prob_warp_f16)
EXPORT_KERNEL(log_prob_warp_bf16)
EXPORT_KERNEL(log_prob_block_f32)
EXPORT_KERNEL(log_prob_block_f16)
EXPORT_KERNEL(log_prob_block_bf16)
EXPORT_KERNEL(entropy_part_f32)
EXPORT_KERNEL(entropy_part_f16)
EXPORT_KERNEL(entropy_part_bf16)
EXPORT_KERNEL(entropy_warp_f32)
EXPORT_KERNEL(entropy_warp_f16)
EXPORT_KERNEL(entropy_warp_bf16)
EXPORT_KERNEL(entropy_block_f32)
EXPORT_KERNEL(entropy_block_f16)
EXPORT_KERNEL(entropy_block_bf16)
EXPORT_KERNEL(sequence_sums)
