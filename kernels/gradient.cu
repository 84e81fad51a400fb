// gradient.cu -- w * scale * (onehot - softmax) in place of the logits, and the log-prob of each row from the same pass.
//
// A row's packs are brought to shared memory as far as they fit (`room` packs per team and block) and read there for the
// sum and for the gradient; the rest is read twice, from the L2 the second time as a rule. A thread copies what it reads
// itself, so nothing waits for others. Rows of the smallest vocabularies stay in the registers of a part of a warp; long
// ones are those of gradient_cluster.cu where there are clusters of blocks.
// gradient_sequences_* work on all rows of one sequence per block, as the coefficient is a function of the log-prob of the
// whole: a baseline or an f-divergence. Their second pass reads the logits again.
#include "common/coefficient.cuh"
#include "common/parts.cuh"

// The gradient of a row with a softmax; load(pack) gives its packs. `at_token` is the value at the token, found without
// the cancellation in 1 - p; the thread that wrote the token's pack writes it afterwards.
template <typename Team, typename T, typename Load>
DEV_FN void write_gradient(const Softmax& softmax, float max, float factor, uint32_t target, float at_token, T* row,
                           Layout at, Load load) {
  constexpr uint32_t N = Pack<T>::kCount;
  uint4* packs = reinterpret_cast<uint4*>(row + at.head);
  const float c = softmax.scale * kLog2e;
  for_packs<Team>(at, load, [&](uint32_t pack, uint4 raw) {
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

// One row; its weight is not 0. Returns the log-prob.
template <typename Team, typename T>
DEV_FN float row_gradient(const Softmax& softmax, uint64_t at, uint32_t token, float weight, T* row, uint4* kept,
                          uint32_t room, unsigned long long* status) {
  const Layout in = layout<Team>(row, softmax.vocab);
  const uint4* packs = reinterpret_cast<const uint4*>(row + in.head);
  for (uint32_t i = Team::rank(); i < room && i < in.end - in.begin; i += Team::size())
    dev::cp_async16(kept + i, packs + in.begin + i);
  dev::cp_async_commit();
  const float x = token < softmax.vocab ? logit(softmax, row, token) : NAN;  // by all, before one overwrites it
  dev::cp_async_wait<0>();
  const auto load = [&](uint32_t pack) { return pack - in.begin < room ? kept[pack - in.begin] : packs[pack]; };
  const Normaliser found = normaliser<Team>(softmax, row, in, load);
  const bool first = is_first<Team>(), finite = isfinite(weight);
  if (first && !finite) note_fault(status, at, kBadWeight);
  if (!finite || !check_row(softmax, found, at, token, first, status)) {
    fill_row<Team>(row, softmax.vocab, NAN);
    return NAN;
  }
  const double log_prob = log_prob_of(softmax, found, x), scaled = double(weight) * double(softmax.scale);
  write_gradient<Team>(softmax, found.max, float(-scaled / found.total), token, float(-scaled * expm1(log_prob)), row,
                       in, load);
  return float(log_prob);
}

// logits[rows, vocab], `stride` values from row to row, become gradients, log_probs[rows]; tokens and weights are [rows]. A
// row of weight 0 is not read.
// Dynamic shared memory: `room` packs for each team; for a cluster in each of its blocks. Any grid of whole teams.
template <typename Team, typename T>
DEV_FN void gradients_of(T* logits, const uint32_t* tokens, const float* weights, uint64_t rows, uint64_t stride,
                         Softmax softmax, uint32_t room, float* log_probs, unsigned long long* status) {
  SHARED_DYN(uint4, memory);
  uint4* kept = memory + Team::index() * room;
  const uint64_t step = uint64_t(gridDim.x / Team::blocks()) * Team::teams();
  for (uint64_t at = uint64_t(blockIdx.x / Team::blocks()) * Team::teams() + Team::index(); at < rows; at += step) {
    T* row = logits + at * stride;
    const float weight = weights[at];
    float log_prob = NAN;
    if (weight == 0) {
      fill_row<Team>(row, softmax.vocab, 0.0f);
    } else {
      log_prob = row_gradient<Team>(softmax, at, tokens[at], weight, row, kept, room, status);
    }
    if (is_first<Team>()) log_probs[at] = log_prob;
  }
}

// What a row's exponentials are multiplied by, the value at its token and its log-prob; NaN where there is no softmax. The
// weight is not 0.
struct RowGradient {
  float factor, at_token, log_prob;
};
DEV_FN RowGradient gradient_of(const Softmax& softmax, const Normaliser& found, uint64_t at, uint32_t token,
                               float weight, float x, bool first, unsigned long long* status) {
  const bool finite = isfinite(weight);
  if (first && !finite) note_fault(status, at, kBadWeight);
  if (!finite || !check_row(softmax, found, at, token, first, status)) return {NAN, NAN, NAN};
  const float log_prob = log_prob_of_part(softmax, found, x), share = softmax.scale / float(found.total);
  return {-weight * share, -weight * (softmax.scale * expm1f(log_prob)), log_prob};
}

// The same for vocabularies of at most 256: a warp has several rows, and nothing in shared memory. Any grid.
template <typename Row, typename T>
DEV_FN void gradients_of_parts(Row held, T* logits, const uint32_t* tokens, const float* weights, uint64_t rows,
                               uint64_t stride, Softmax softmax, float* log_probs, unsigned long long* status) {
  const Part part = part_of<Row>(softmax.vocab);
  const uint32_t warps = blockDim.x / 32, alignment = alignment_of(logits, stride);
  const uint64_t step = uint64_t(gridDim.x) * warps * part.rows;
  uint64_t first = (uint64_t(blockIdx.x) * warps + threadIdx.x / 32) * part.rows;
  float next = first + part.row < rows ? weights[first + part.row] : 0.0f;
  for (; first < rows; first += step) {
    const uint64_t at = first + part.row, after = at + step;
    const bool exists = at < rows;
    const float weight = next;
    next = after < rows ? weights[after] : 0.0f;  // so that no row waits for its own
    T* row = logits + at * stride;
    const uint32_t token = exists && weight != 0 ? tokens[at] : ~0u;
    held.load(softmax, part, row, weight != 0, alignment);
    const float x = token < softmax.vocab ? held.at(softmax, row, token) : NAN;
    const Normaliser found = held.template normalise<false>(softmax, part);
    __syncwarp();  // mutation: as in WarpTeam::sum: all lanes have read the row
    if (!exists) continue;
    RowGradient gradient{0.0f, 0.0f, NAN};
    if (weight != 0) gradient = gradient_of(softmax, found, at, token, weight, x, part.lane == 0, status);
    held.store(softmax, part, gradient.factor, token, gradient.at_token, row, alignment);
    if (part.lane == 0) log_probs[at] = gradient.log_prob;
  }
}

// What a sequence brings: its rows, and the columns that the kind of its coefficient needs.
struct Sequences {
  const uint64_t* offsets;
  uint64_t count;
  uint32_t kind;
  double parameter;  // the baseline's factor, or alpha
  const float* weights;
  const double *log_p, *log_q;
};

// Whether the coefficient is 0 whatever the log-prob.
DEV_FN bool is_zero(const Sequences& given, uint64_t s) {
  if (given.kind == kGiven) return given.weights[s] == 0;
  return given.kind >= kForwardKl && given.log_p[s] == -INFINITY && is_bounded(given.kind, given.parameter);
}
DEV_FN double coefficient_of(const Sequences& given, uint64_t s, double log_pi) {
  if (given.kind >= kForwardKl)
    return divergence_coefficient(given.kind, given.parameter, log_pi, given.log_p[s], given.log_q[s]);
  const double weight = double(given.weights[s]);
  if (given.kind == kGiven || given.parameter == 0) return weight;
  return weight - given.parameter * exp(log_pi - given.log_q[s]);
}

// First pass over the rows of a sequence: log-probs, and {max, 1 / total} per row.
template <typename Team, typename T>
DEV_FN void score_rows(const Softmax& softmax, const T* logits, uint64_t stride, const uint32_t* tokens, uint64_t begin,
                       uint64_t end, float* log_probs, float2* normalisers, unsigned long long* status) {
  for (uint64_t at = begin + Team::index(); at < end; at += Team::teams()) {
    const T* row = logits + at * stride;
    const Normaliser found = normaliser<Team>(softmax, row);
    if (Team::rank() != 0) continue;
    const uint32_t token = tokens[at];
    const bool good = check_row(softmax, found, at, token, true, status);
    log_probs[at] = good ? float(log_prob_of(softmax, found, logit(softmax, row, token))) : NAN;
    normalisers[at] = make_float2(found.max, float(1.0 / found.total));
  }
}

// The rows of a sequence become zeros or NaN.
template <typename Team, typename T>
DEV_FN void fill_rows(T* logits, uint64_t stride, uint32_t vocab, uint64_t begin, uint64_t end, float value) {
  for (uint64_t at = begin + Team::index(); at < end; at += Team::teams())
    fill_row<Team>(logits + at * stride, vocab, value);
}

// log_pi[s] and, in place of the logits of its rows, coefficient * scale * (onehot - softmax) with the sequence's
// coefficient; a sequence whose coefficient is known to be 0 is not read. normalisers is scratch memory, [rows]. A block
// per sequence.
template <typename Team, typename T>
DEV_FN void sequence_gradients(T* logits, const uint32_t* tokens, uint64_t rows, uint64_t stride, Softmax softmax,
                               Sequences given, float* log_probs, float2* normalisers, double* log_pi,
                               unsigned long long* status) {
  for (uint64_t s = blockIdx.x; s < given.count; s += gridDim.x) {
    const uint64_t begin = given.offsets[s], end = given.offsets[s + 1];
    const bool good = begin <= end && end <= rows, zero = good && is_zero(given, s);
    if (!good || zero) {
      if (threadIdx.x == 0) log_pi[s] = zero && begin == end ? 0.0 : double(NAN);
      if (threadIdx.x == 0 && !good) note_fault(status, s, kBadRow);
      if (!zero) continue;
      for (uint64_t at = begin + threadIdx.x; at < end; at += blockDim.x) log_probs[at] = NAN;
      fill_rows<Team>(logits, stride, softmax.vocab, begin, end, 0.0f);
      continue;
    }
    score_rows<Team>(softmax, logits, stride, tokens, begin, end, log_probs, normalisers, status);
    __syncthreads();
    double total = 0;  // by every warp, in the order of sequence_sums
    for (uint64_t at = begin + threadIdx.x % 32; at < end; at += 32) total += double(log_probs[at]);
    total = warp_sum(total);
    const double coefficient = coefficient_of(given, s, total) * double(softmax.scale);
    const bool finite = fabs(coefficient) <= double(FLT_MAX) && !isnan(total);
    if (threadIdx.x == 0) {
      log_pi[s] = total;
      if (!finite && !isnan(total)) note_fault(status, s, kBadWeight);
    }
    if (!finite || coefficient == 0) {
      fill_rows<Team>(logits, stride, softmax.vocab, begin, end, finite ? 0.0f : NAN);
      continue;
    }
    for (uint64_t at = begin + Team::index(); at < end; at += Team::teams()) {
      T* row = logits + at * stride;
      const float2 found = normalisers[at];
      const float at_token = float(-coefficient * expm1(double(log_probs[at])));
      const Layout in = layout<Team>(row, softmax.vocab);
      const uint4* packs = reinterpret_cast<const uint4*>(row + in.head);
      write_gradient<Team>(softmax, found.x, float(-coefficient) * found.y, tokens[at], at_token, row, in,
                           [&](uint32_t pack) { return packs[pack]; });
    }
  }
}

#define ROWS_KERNEL(name, T, threads, resident)                                                                        \
  extern "C" __global__ void __launch_bounds__(threads, resident)                                                      \
  gradient_##name(T* logits, const uint32_t* tokens, const float* weights, uint64_t rows, uint32_t vocab,              \
                  uint64_t stride, float scale, const uint32_t* mask, [[maybe_unused]] uint32_t room,                  \
                  float* log_probs, unsigned long long* status)
#define GRADIENT(name, Team, T, threads, resident)                                                                     \
  ROWS_KERNEL(name, T, threads, resident) {                                                                            \
    gradients_of<Team>(logits, tokens, weights, rows, stride, Softmax{vocab, scale, mask}, room, log_probs, status);   \
  }
GRADIENT(warp_f32, WarpTeam, float, 256, 4)
GRADIENT(warp_f16, WarpTeam, __half, 256, 4)
GRADIENT(warp_bf16, WarpTeam, __nv_bfloat16, 256, 4)
GRADIENT(block_f32, BlockTeam, float, 512, 2)
GRADIENT(block_f16, BlockTeam, __half, 512, 2)
GRADIENT(block_bf16, BlockTeam, __nv_bfloat16, 512, 2)

// Elsewhere than on sm_80 and sm_90 ptxas finds a register too few for three.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define RESIDENT_PARTS 2
#else
#define RESIDENT_PARTS 3
#endif
#define GRADIENT_OF_PARTS(name, T)                                                                                     \
  ROWS_KERNEL(name, T, 256, RESIDENT_PARTS) {                                                                                       \
    with_part_of_row<T>(vocab, [&](auto held) {                                                                        \
      gradients_of_parts(held, logits, tokens, weights, rows, stride, Softmax{vocab, scale, mask}, log_probs, status); \
    });                                                                                                                \
  }
GRADIENT_OF_PARTS(part_f32, float)
GRADIENT_OF_PARTS(part_f16, __half)
GRADIENT_OF_PARTS(part_bf16, __nv_bfloat16)

// A fourth block of 256 threads would leave a register too few on sm_80.
#define SEQUENCES_GRADIENT(name, Team, T, threads)                                                                     \
  extern "C" __global__ void __launch_bounds__(threads, threads == 256 ? 3 : 2)                                        \
  gradient_sequences_##name(T* logits, const uint32_t* tokens, uint64_t rows, uint32_t vocab, uint64_t stride,         \
                            float scale, const uint32_t* mask, const uint64_t* offsets, uint64_t sequences,            \
                            uint32_t kind, double parameter, const float* weights, const double* log_p,                \
                            const double* log_q, float* log_probs, float2* normalisers, double* log_pi,                \
                            unsigned long long* status) {                                                              \
    const Sequences given{offsets, sequences, kind, parameter, weights, log_p, log_q};                                 \
    sequence_gradients<Team>(logits, tokens, rows, stride, Softmax{vocab, scale, mask}, given, log_probs, normalisers, \
                             log_pi, status);                                                                          \
  }
SEQUENCES_GRADIENT(warp_f32, WarpTeam, float, 256)
SEQUENCES_GRADIENT(warp_f16, WarpTeam, __half, 256)
SEQUENCES_GRADIENT(warp_bf16, WarpTeam, __nv_bfloat16, 256)
SEQUENCES_GRADIENT(block_f32, BlockTeam, float, 512)
SEQUENCES_GRADIENT(block_f16, BlockTeam, __half, 512)
SEQUENCES_GRADIENT(block_bf16, BlockTeam, __nv_bfloat16, 512)

EXPORT_KERNEL(gradient_part_f32)
EXPORT_KERNEL(gradient_part_f16)
EXPORT_KERNEL(gradient_part_bf16)
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
