// gradient.cu -- w * scale * (onehot - softmax) in place of the logits, and the log-prob of each row from the same pass.
//
// A row's packs are kept in shared memory between the sum and the gradient as far as they fit (`room` packs per team);
// the rest is read again, from the L2 as a rule: a thread reads back only what it wrote itself, so nothing waits.
// gradient_sequences_* work on all rows of one sequence per block, as the coefficient needs the log-prob of the whole:
// w - baseline * exp(log pi - log q). Their second pass reads the logits again.
#include "common/softmax.cuh"

// Every logit of a row becomes value.
template <typename Team, typename T> DEV_FN void fill_row(T* row, uint32_t vocab, float value) {
  constexpr uint32_t N = Pack<T>::kCount;
  const Layout at = layout(row, vocab);
  float x[N];
#pragma unroll
  for (uint32_t i = 0; i < N; i++) x[i] = value;
  const uint4 raw = Pack<T>::join(x);
  for (uint32_t pack = Team::rank(); pack < at.packs; pack += Team::size())
    reinterpret_cast<uint4*>(row + at.head)[pack] = raw;
  for_ends<Team>(at, vocab, N, [&](uint32_t token) { row[token] = T(value); });
}

// The gradient of a row with a softmax; load(pack) gives its packs. `at_token` is the value at the token, found without
// the cancellation in 1 - p; the thread that wrote the token's pack writes it afterwards.
template <typename Team, typename T, typename Load>
DEV_FN void write_gradient(const Softmax& softmax, float max, float factor, uint32_t target, float at_token, T* row,
                           Load load) {
  constexpr uint32_t N = Pack<T>::kCount;
  const Layout at = layout(row, softmax.vocab);
  uint4* packs = reinterpret_cast<uint4*>(row + at.head);
  const float c = softmax.scale * kLog2e;
  for_packs<Team>(at.packs, load, [&](uint32_t pack, uint4 raw) {
    const uint32_t first = at.head + pack * N;
    float x[N];
    Pack<T>::split(raw, x);
#pragma unroll
    for (uint32_t i = 0; i < N; i++) {
      if (softmax.mask && !allowed(softmax, first + i)) x[i] = -INFINITY;
      x[i] = factor * dev::exp2_approx((x[i] - max) * c);
    }
    packs[pack] = Pack<T>::join(x);
    if (target - first < N) row[target] = T(at_token);
  });
  for_ends<Team>(at, softmax.vocab, N, [&](uint32_t token) {
    const float value = factor * dev::exp2_approx((logit(softmax, row, token) - max) * c);
    row[token] = T(token == target ? at_token : value);
  });
}

// One row; its weight is not 0. Returns the log-prob in rank 0.
template <typename Team, typename T>
DEV_FN float row_gradient(const Softmax& softmax, uint64_t at, uint32_t token, float weight, T* row, uint4* kept,
                          uint32_t room, unsigned long long* status) {
  const Normaliser found = normaliser<Team>(softmax, row, [&](uint32_t pack, uint4 raw) {
    if (pack < room) kept[pack] = raw;
  });
  const bool first = Team::rank() == 0, finite = isfinite(weight);
  if (first && !finite) note_fault(status, at, kBadWeight);
  if (!finite || !check_row(softmax, found, at, token, first, status)) {
    fill_row<Team>(row, softmax.vocab, NAN);
    return NAN;
  }
  const double log_prob = log_prob_of(softmax, found, logit(softmax, row, token));
  const double scaled = double(weight) * double(softmax.scale);
  Team::sync();  // all have read the token's logit
  const uint4* packs = reinterpret_cast<const uint4*>(row + layout(row, softmax.vocab).head);
  write_gradient<Team>(softmax, found.max, float(-scaled / found.total), token, float(-scaled * expm1(log_prob)), row,
                       [&](uint32_t pack) { return pack < room ? kept[pack] : packs[pack]; });
  return float(log_prob);
}

// logits[rows, vocab] become gradients, log_probs[rows]; tokens and weights are [rows]. A row of weight 0 is not read.
// Dynamic shared memory: `room` packs for each team. Any grid.
template <typename Team, typename T>
DEV_FN void gradients_of(T* logits, const uint32_t* tokens, const float* weights, uint64_t rows, Softmax softmax,
                         uint32_t room, float* log_probs, unsigned long long* status) {
  SHARED_DYN(uint4, memory);
  uint4* kept = memory + Team::index() * room;
  const uint64_t step = uint64_t(gridDim.x) * Team::teams();
  for (uint64_t at = uint64_t(blockIdx.x) * Team::teams() + Team::index(); at < rows; at += step) {
    T* row = logits + at * softmax.vocab;
    const float weight = weights[at];
    float log_prob = NAN;
    if (weight == 0) {
      fill_row<Team>(row, softmax.vocab, 0.0f);
    } else {
      log_prob = row_gradient<Team>(softmax, at, tokens[at], weight, row, kept, room, status);
    }
    if (Team::rank() == 0) log_probs[at] = log_prob;
  }
}

// What a sequence brings: its rows, weight and log q.
struct Sequences {
  const uint64_t* offsets;
  const float* weights;
  const double* log_q;
  uint64_t count;
  double baseline;
};

// First pass over the rows of a sequence: log-probs, and {max, 1 / total} per row.
template <typename Team, typename T>
DEV_FN void score_rows(const Softmax& softmax, const T* logits, const uint32_t* tokens, uint64_t begin, uint64_t end,
                       float* log_probs, float2* normalisers, unsigned long long* status) {
  for (uint64_t at = begin + Team::index(); at < end; at += Team::teams()) {
    const T* row = logits + at * softmax.vocab;
    const Normaliser found = normaliser<Team>(softmax, row, [](uint32_t, uint4) {});
    if (Team::rank() != 0) continue;
    const uint32_t token = tokens[at];
    const bool good = check_row(softmax, found, at, token, true, status);
    log_probs[at] = good ? float(log_prob_of(softmax, found, logit(softmax, row, token))) : NAN;
    normalisers[at] = make_float2(found.max, float(1.0 / found.total));
  }
}

// log_pi[s] and, in place of the logits of its rows, coefficient * scale * (onehot - softmax), where the coefficient is
// weights[s] - baseline * exp(log_pi[s] - log_q[s]). normalisers is scratch memory, [rows]. A block per sequence.
template <typename Team, typename T>
DEV_FN void sequence_gradients(T* logits, const uint32_t* tokens, uint64_t rows, Softmax softmax, Sequences given,
                               float* log_probs, float2* normalisers, double* log_pi, unsigned long long* status) {
  for (uint64_t s = blockIdx.x; s < given.count; s += gridDim.x) {
    const uint64_t begin = given.offsets[s], end = given.offsets[s + 1];
    if (begin > end || end > rows) {
      if (threadIdx.x == 0) note_fault(status, s, kBadRow), log_pi[s] = NAN;
      continue;
    }
    score_rows<Team>(softmax, logits, tokens, begin, end, log_probs, normalisers, status);
    __syncthreads();
    double total = 0;  // by every warp, in the order of sequence_sums
    for (uint64_t at = begin + threadIdx.x % 32; at < end; at += 32) total += double(log_probs[at]);
    total = warp_sum(total);
    const double pull = given.baseline == 0 ? 0 : given.baseline * exp(total - given.log_q[s]);
    const double coefficient = (double(given.weights[s]) - pull) * double(softmax.scale);
    if (threadIdx.x == 0) {
      log_pi[s] = total;
      if (!isfinite(coefficient) && !isnan(total)) note_fault(status, s, kBadWeight);
    }
    for (uint64_t at = begin + Team::index(); at < end; at += Team::teams()) {
      T* row = logits + at * softmax.vocab;
      const float2 found = normalisers[at];
      if (!isfinite(coefficient) || isnan(total) || coefficient == 0) {
        fill_row<Team>(row, softmax.vocab, coefficient == 0 && !isnan(total) ? 0.0f : NAN);
        continue;
      }
      const float at_token = float(-coefficient * expm1(double(log_probs[at])));
      const uint4* packs = reinterpret_cast<const uint4*>(row + layout(row, softmax.vocab).head);
      write_gradient<Team>(softmax, found.x, float(-coefficient) * found.y, tokens[at], at_token, row,
                           [&](uint32_t pack) { return packs[pack]; });
    }
  }
}

#define GRADIENT(name, Team, T, threads)                                                                              \
  extern "C" __global__ void __launch_bounds__(threads, 1024 / threads)                                               \
  gradient_##name(T* logits, const uint32_t* tokens, const float* weights, uint64_t rows, uint32_t vocab, float scale, \
                  const uint32_t* mask, uint32_t room, float* log_probs, unsigned long long* status) {                \
    gradients_of<Team>(logits, tokens, weights, rows, Softmax{vocab, scale, mask}, room, log_probs, status);          \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(threads, 1024 / threads)                                               \
  gradient_sequences_##name(T* logits, const uint32_t* tokens, uint64_t rows, uint32_t vocab, float scale,            \
                            const uint32_t* mask, const uint64_t* offsets, const float* weights, const double* log_q, \
                            uint64_t sequences, double baseline, float* log_probs, float2* normalisers,               \
                            double* log_pi, unsigned long long* status) {                                             \
    sequence_gradients<Team>(logits, tokens, rows, Softmax{vocab, scale, mask},                                       \
                             Sequences{offsets, weights, log_q, sequences, baseline}, log_probs, normalisers, log_pi, \
                             status);                                                                                 \
  }
GRADIENT(warp_f32, WarpTeam, float, 256)
GRADIENT(warp_f16, WarpTeam, __half, 256)
GRADIENT(warp_bf16, WarpTeam, __nv_bfloat16, 256)
GRADIENT(block_f32, BlockTeam, float, 512)
GRADIENT(block_f16, BlockTeam, __half, 512)
GRADIENT(block_bf16, BlockTeam, __nv_bfloat16, 512)

EXPORT_KERNEL(gradient_warp_f32)
EXPORT_KERNEL(gradient_warp_f16)
EXPORT_KERNEL(gradient_warp_bf16)
EXPORT_KERNEL(gradient_block_f32)
EXPORT_KERNEL(gradient_block_f16)
EXPORT_KERNEL(gradient_block_bf16)
EXPORT_KERNEL(gradient_sequences_warp_f32)
EXPORT_KERNEL(gradient_sequences_warp_f16)
EXPORT_KERNEL(gradient_sequences_warp_bf16)
EXPORT_KERNEL(gradient_sequences_block_f32)
EXPORT_KERNEL(gradient_sequences_block_f16)
EXPORT_KERNEL(gradient_sequences_block_bf16)
