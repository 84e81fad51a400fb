// gradient.cu -- w * scale * (onehot - softmax) in place of the logits, and the log-prob of each row from the same pass.
//
// A row's packs are brought to shared memory as far as they fit (`room` packs per team and block) and read there for the
// sum and for the gradient; the rest is read twice, from the L2 the second time as a rule. A thread copies what it reads
// itself, so nothing waits for others. Rows of the smallest vocabularies stay in the registers of a part of a warp;
// gradient_cluster_* spread a row over the registers of a cluster of blocks: each exponential is made once, and shared
// memory is free for the rows to come.
// gradient_sequences_* work on all rows of one sequence per block, as the coefficient is a function of the log-prob of the
// whole: a baseline or an f-divergence. Their second pass reads the logits again.
#include "common/coefficient.cuh"
#include "common/parts.cuh"

// Every logit of a row becomes value.
template <typename Team, typename T> DEV_FN void fill_row(T* row, uint32_t vocab, float value) {
  constexpr uint32_t N = Pack<T>::kCount;
  const Layout at = layout<Team>(row, vocab);
  float x[N];
#pragma unroll
  for (uint32_t i = 0; i < N; i++) x[i] = value;
  const uint4 raw = Pack<T>::join(x);
  for (uint32_t pack = at.begin + Team::rank(); pack < at.end; pack += Team::size())
    reinterpret_cast<uint4*>(row + at.head)[pack] = raw;
  for_ends<Team>(at, vocab, N, [&](uint32_t token) { row[token] = T(value); });
}

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

#ifdef HAS_CLUSTERS
constexpr uint32_t kNoToken = ~0u;

// A pack's values, four or eight, in the type of the row that they go to.
DEV_FN uint4 packed(const float (&x)[4], float) { return Pack<float>::join(x); }
template <typename T> DEV_FN uint4 packed(const float (&x)[8], T) { return Pack<T>::join(x); }
template <typename T> DEV_FN uint2 packed(const float (&x)[4], T) {
  return make_uint2(word_of(x[0], x[1], T()), word_of(x[2], x[3], T()));
}

// What the warps of a cluster find, told to all of its blocks. In turns, as a warp may be one row ahead of another: it is
// never two, since it waits for all. Memory: [2][warps of the cluster].
struct Exchange {
  uint4* said;
  uint64_t* told;  // [2]

  // By all blocks, before the first row.
  __device__ __forceinline__ void begin() {
    if (threadIdx.x == 0) {
      for (uint32_t side = 0; side < 2; side++) dev::mbar_init(told + side, 1);
      dev::mbar_init_fence();
    }
    dev::cluster_sync();
  }

  // Of the turn-th row the maximum and the sum, from each thread's; the same bits in all threads.
  __device__ __forceinline__ Normaliser of(uint32_t turn, float max, double sum, float c) const {
    const uint32_t lane = threadIdx.x % 32, warps = blockDim.x / 32, all = dev::cluster_size() * warps;
    const uint32_t side = turn % 2, phase = turn / 2 % 2;
    uint4* row = said + side * all;
    __syncwarp();  // mutation: as in WarpTeam::sum: all lanes have read the row before
    const float top = warp_max(max);
    sum = warp_sum(moved(sum, max, top, c));
    if (threadIdx.x == 0) dev::mbar_arrive_expect_tx(told + side, 16 * all);
    const uint64_t bits = uint64_t(__double_as_longlong(sum));
    const uint4 value = make_uint4(__float_as_uint(top), 0, uint32_t(bits), uint32_t(bits >> 32));
    uint4* mine = row + dev::cluster_rank() * warps + threadIdx.x / 32;
    if (lane < dev::cluster_size()) dev::store_to_block(mine, value, told + side, lane);
    dev::mbar_wait(told + side, phase);
    float high = -INFINITY;
    for (uint32_t i = lane; i < all; i += 32) high = fmaxf(high, __uint_as_float(row[i].x));
    high = warp_max(high);
    double total = 0;
    for (uint32_t i = lane; i < all; i += 32) total += moved(sum_in(row[i]), __uint_as_float(row[i].x), high, c);
    return {high, warp_sum(total), 0.0};
  }

  static __device__ __forceinline__ double sum_in(uint4 value) {
    return __longlong_as_double(static_cast<long long>(uint64_t(value.w) << 32 | value.z));
  }
  // A sum of exponentials less `from`, made one less `to`; 0 or NaN where there is no maximum.
  static __device__ __forceinline__ double moved(double sum, float from, float to, float c) {
    return from > -INFINITY ? sum * double(dev::exp2_approx((from - to) * c)) : sum;
  }
};

// A thread's share of a row: `per` packs at most, 32 apart, so that those of its warp are in one piece; and one at most of
// the few tokens before and behind all packs. Each warp brings its own piece, for which others need not wait.
template <typename T> struct Share {
  static constexpr uint32_t N = Pack<T>::kCount, kPacks = sizeof(T) == 4 ? 19 : 10;  // as registers allow
  static constexpr uint32_t kStages = 4 / sizeof(T);
  const Softmax softmax;
  const uint32_t per, piece;  // the piece's first pack
  uint4* const pieces;        // [kStages][packs of the block], from this warp's on
  uint64_t* const landed;     // [kStages]
  float x[kPacks][N], single;
  uint32_t single_at;  // kNoToken: there is none

  // `memory` holds kStages * per packs a thread, `barriers` kStages for each warp.
  __device__ __forceinline__ Share(const Softmax& softmax, uint32_t per, uint4* memory, uint64_t* barriers)
      : softmax(softmax),
        per(per),
        piece((dev::cluster_rank() * blockDim.x + threadIdx.x / 32 * 32) * per),
        pieces(memory + threadIdx.x / 32 * 32 * per),
        landed(barriers + threadIdx.x / 32 * kStages) {
    if (threadIdx.x % 32 != 0) return;
    for (uint32_t stage = 0; stage < kStages; stage++) dev::mbar_init(landed + stage, 1);
    dev::mbar_init_fence();
  }

  __device__ __forceinline__ Layout layout_of(const T* row) const { return layout<BlockTeam>(row, softmax.vocab); }
  // Of the share's pack j, among all packs of a row.
  __device__ __forceinline__ uint32_t pack(uint32_t j) const { return piece + 32 * j + threadIdx.x % 32; }
  // Rows that are read take the stages in turns.
  __device__ __forceinline__ uint4* slots(uint32_t turn) const { return pieces + turn % kStages * blockDim.x * per; }

  // Which token before or behind the packs is the thread's.
  __device__ __forceinline__ uint32_t single_token(Layout at) const {
    const uint32_t rank = threadIdx.x, ends = softmax.vocab - at.packs * N;
    if (dev::cluster_rank() != 0 || rank >= ends) return kNoToken;
    return rank < at.head ? rank : rank + at.packs * N;
  }
  __device__ __forceinline__ float single_of(const T* row) const {
    const uint32_t token = single_token(layout_of(row));
    return token == kNoToken ? -INFINITY : logit(softmax, row, token);
  }

  // Begins to copy the warp's piece of a row, once all lanes are done with what was there.
  __device__ __forceinline__ void ask(const T* row, uint32_t turn) const {
    const Layout at = layout_of(row);
    const uint32_t left = at.packs > piece ? at.packs - piece : 0, bytes = 16 * min(left, 32 * per);
    __syncwarp();
    if (threadIdx.x % 32 != 0) return;
    uint64_t* bar = landed + turn % kStages;
    dev::mbar_arrive_expect_tx(bar, bytes);
    if (bytes > 0) dev::bulk_load(slots(turn), row + at.head + piece * N, bytes, bar);
  }

  __device__ __forceinline__ void take(const T* row, uint32_t turn) {
    const Layout at = layout_of(row);
    const uint4* from = slots(turn) + threadIdx.x % 32;
    single_at = single_token(at);
    dev::mbar_wait(landed + turn % kStages, turn / kStages % 2);
#pragma unroll
    for (uint32_t j = 0; j < kPacks; j++)
      if (j < per) Pack<T>::split(from[32 * j], x[j]);
    if (!softmax.mask && piece + 32 * per <= at.packs) return;
#pragma unroll
    for (uint32_t j = 0; j < kPacks; j++) {
      if (j >= per) break;
      const uint32_t bits = pack(j) < at.packs ? allowed_bits<N>(softmax, at.head + pack(j) * N) : 0;
#pragma unroll
      for (uint32_t i = 0; i < N; i++) x[j][i] = bits >> i & 1 ? x[j][i] : -INFINITY;
    }
  }

  // Each logit becomes 2^((logit - max) * c); returns their sum.
  __device__ __forceinline__ double exponentiate(float& max, float c) {
    max = single;
#pragma unroll
    for (uint32_t j = 0; j < kPacks; j++)
      if (j < per)
#pragma unroll
        for (uint32_t i = 0; i < N; i++) max = fmaxf(max, x[j][i]);
    const float shift = max == -INFINITY ? 0.0f : max;  // not NaN for -inf
    single = dev::exp2_approx((single - shift) * c);
    double sum = double(single);
#pragma unroll
    for (uint32_t j = 0; j < kPacks; j++) {
      if (j >= per) break;
      float part[N];
#pragma unroll
      for (uint32_t i = 0; i < N; i++) part[i] = x[j][i] = dev::exp2_approx((x[j][i] - shift) * c);
      add_in_pairs(part);
      sum += double(part[0]);
    }
    return sum;
  }

  // The token's logit, if it is in the share; NaN elsewhere.
  __device__ __forceinline__ float find(const T* row, uint32_t token, uint32_t turn) const {
    const Layout at = layout_of(row);
    if (token == single_at) return token < softmax.vocab ? logit(softmax, row, token) : NAN;
    const uint32_t behind = token - at.head - piece * N, of = behind / N;  // in the warp's piece
    if (token < at.head || token >= at.head + at.packs * N) return NAN;
    if (of >= 32 * per || of % 32 != threadIdx.x % 32) return NAN;
    return allowed(softmax, token) ? float(reinterpret_cast<const T*>(slots(turn))[behind]) : -INFINITY;
  }

  template <typename U> __device__ __forceinline__ void write(const T* row, U* to, float factor) {
    const Layout at = layout_of(row);
    using Packed = decltype(packed(x[0], U()));
    Packed* packs = reinterpret_cast<Packed*>(to + at.head) + pack(0);
#pragma unroll
    for (uint32_t j = 0; j < kPacks; j++) {
      if (j >= per || pack(j) >= at.packs) break;
#pragma unroll
      for (uint32_t i = 0; i < N; i++) x[j][i] *= factor;
      packs[32 * j] = packed(x[j], U());
    }
    if (single_at != kNoToken) to[single_at] = U(single * factor);
  }
};

// logits[rows, vocab], `stride` values from row to row, become gradients there or in memory of their own with the same
// stride and, but for the size of a value, the same alignment; log_probs[rows]. As gradients_of, by clusters of blocks, each
// thread with `per` packs of a row at most: Share::kPacks or fewer.
// Dynamic shared memory: `per` packs a thread for each of Share::kStages rows, and 32 bytes for each warp of the cluster.
template <typename T, typename U>
DEV_FN void cluster_gradients(const T* logits, U* gradients, const uint32_t* tokens, const float* weights, uint64_t rows,
                              uint64_t stride, const Softmax& softmax, uint32_t per, float* log_probs,
                              unsigned long long* status) {
  constexpr uint32_t kStages = Share<T>::kStages;
  SHARED_DYN(uint4, memory);
  SHARED(uint64_t, told, [2]);
  SHARED(uint64_t, landed, [kStages * 16]);
  const auto step = [] { return uint64_t(dev::clusters()); };
  const auto first = [] { return is_first<ClusterTeam>(); };
  const float c = softmax.scale * kLog2e;
  Share<T> share(softmax, per, memory, landed);
  Exchange exchange{memory + kStages * blockDim.x * per, told};
  const auto is_read = [](float weight) { return weight != 0 && isfinite(weight); };
  float ahead = 0;  // the weight of the row to be asked for next
  const auto look_ahead = [&](uint64_t at) { ahead = at < rows ? weights[at] : 0.0f; };
  uint32_t asked = 0, taken = 0;  // rows that are read
  const auto ask = [&](uint64_t at) {
    if (is_read(ahead)) share.ask(logits + at * stride, asked++);
    look_ahead(at + step());
  };

  uint64_t at = blockIdx.x / dev::cluster_size();
  exchange.begin();
  look_ahead(at);
#pragma unroll
  for (uint32_t stage = 0; stage < kStages; stage++) ask(at + stage * step());
  float single = 0;  // loaded a row ahead too
  const auto load_single = [&](uint64_t at) {
    if (at < rows) single = share.single_of(logits + at * stride);
  };
  load_single(at);
  for (; at < rows; at += step()) {
    const T* row = logits + at * stride;
    U* to = gradients + at * stride;
    share.single = single;
    if (!is_read(weights[at])) {
      ask(at + kStages * step());
      load_single(at + step());
      const bool zero = weights[at] == 0;
      if (first() && !zero) note_fault(status, at, kBadWeight);
      if (first()) log_probs[at] = NAN;
      fill_row<ClusterTeam>(to, softmax.vocab, zero ? 0.0f : NAN);
      continue;
    }
    const uint32_t token = tokens[at];
    share.take(row, taken);
    float max;
    const double sum = share.exponentiate(max, c);
    const float chosen = share.find(row, token, taken);
    ask(at + kStages * step());
    const Normaliser found = exchange.of(taken++, max, sum, c);
    load_single(at + step());
    if (!check_row(softmax, found, at, tokens[at], first(), status)) {  // read again: no register is left
      if (first()) log_probs[at] = NAN;
      fill_row<ClusterTeam>(to, softmax.vocab, NAN);
      continue;
    }
    const double scaled = double(weights[at]) * double(softmax.scale);
    share.write(row, to, float(-scaled / found.total) * dev::exp2_approx((max - found.max) * c));
    if (isnan(chosen)) continue;
    // Found without the cancellation in 1 - p.
    const double log_prob = log_prob_of(softmax, found, chosen);
    to[tokens[at]] = U(float(-scaled * expm1(log_prob)));
    log_probs[at] = float(log_prob);
  }
}
#endif

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

// Of 256 threads two to a multiprocessor, of 512 one.
#define CLUSTER_KERNEL(name, T, U)                                                                                     \
  extern "C" __global__ void __launch_bounds__(512, 1)                                                                 \
  gradient_cluster_##name(const T* logits, U* gradients, const uint32_t* tokens, const float* weights, uint64_t rows,  \
                          uint32_t vocab, uint64_t stride, float scale, const uint32_t* mask, uint32_t per,            \
                          float* log_probs, unsigned long long* status)
#ifdef HAS_CLUSTERS
#define CLUSTER_GRADIENT(name, T, U)                                                                                   \
  CLUSTER_KERNEL(name, T, U) {                                                                                         \
    cluster_gradients(logits, gradients, tokens, weights, rows, stride, Softmax{vocab, scale, mask}, per, log_probs,   \
                      status);                                                                                         \
  }
#else  // there are no clusters
#define CLUSTER_GRADIENT(name, T, U) CLUSTER_KERNEL(name, T, U) { __trap(); }
#endif
CLUSTER_GRADIENT(f32, float, float)
CLUSTER_GRADIENT(f16, __half, __half)
CLUSTER_GRADIENT(bf16, __nv_bfloat16, __nv_bfloat16)
CLUSTER_GRADIENT(f32_f16, float, __half)
CLUSTER_GRADIENT(f32_bf16, float, __nv_bfloat16)

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
EXPORT_KERNEL(gradient_cluster_f32)
EXPORT_KERNEL(gradient_cluster_f16)
EXPORT_KERNEL(gradient_cluster_bf16)
EXPORT_KERNEL(gradient_cluster_f32_f16)
EXPORT_KERNEL(gradient_cluster_f32_bf16)
EXPORT_KERNEL(gradient_sequences_warp_f32)
EXPORT_KERNEL(gradient_sequences_warp_f16)
EXPORT_KERNEL(gradient_sequences_warp_bf16)
EXPORT_KERNEL(gradient_sequences_block_f32)
EXPORT_KERNEL(gradient_sequences_block_f16)
EXPORT_KERNEL(gradient_sequences_block_bf16)
