// gradient_cluster.cu -- w * scale * (onehot - softmax) of rows that are spread over the registers of a cluster of blocks, and
// their log-probs: each logit is read once and has one exponential, and shared memory is free for the rows to come.
//
// Accuracy: an exponential is 2^(x * c - s), by one fused operation from a shift s near max * c, with c = scale * log2 e in
// float. What s is off is a factor of all that a warp adds, and goes with its sum: as rounding of c and of the exponent leave
// 9e-8 of |x - max| and ex2 1.2e-7, a total is good to 1.2e-6 as in softmax.cuh. A thread's sum is made in float over nine
// levels of additions, thirteen in f32, 7.8e-7 at worst; all others in double.
#include "common/softmax.cuh"

#ifdef HAS_CLUSTERS
constexpr uint32_t kNoToken = ~0u;

// A pack's values, four or eight, in the type of the row that they go to.
DEV_FN uint4 packed(const float (&x)[4], float) { return Pack<float>::join(x); }
template <typename T> DEV_FN uint4 packed(const float (&x)[8], T) { return Pack<T>::join(x); }
template <typename T> DEV_FN uint2 packed(const float (&x)[4], T) {
  return make_uint2(word_of(x[0], x[1], T()), word_of(x[2], x[3], T()));
}

// The larger logits of two words, one by one; a NaN gives way.
DEV_FN uint32_t larger(uint32_t a, uint32_t b, float) {
  return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
}
DEV_FN uint32_t larger(uint32_t a, uint32_t b, __half) {
  const __half2 high = __hmax2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&high);
}
DEV_FN uint32_t larger(uint32_t a, uint32_t b, __nv_bfloat16) {
  const __nv_bfloat162 high =
      __hmax2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&high);
}
template <typename T> DEV_FN uint4 larger(uint4 a, uint4 b) {
  return make_uint4(larger(a.x, b.x, T()), larger(a.y, b.y, T()), larger(a.z, b.z, T()), larger(a.w, b.w, T()));
}

// What a warp finds in its piece of a row: the largest logit, the same in all lanes, and each thread's sum of 2^(x * c - s).
struct Found {
  float max, sum;
};
// From here on a product with c is good to 2^-5 no more, and differences are taken first: s is 0, and x stands for x - max.
// Where logits have 16 bits, all others are then so far below the largest that their exponentials are 0, which rounding
// such a difference does not change.
constexpr float kLarge = 1048576.0f;
DEV_FN bool is_exact(float max, float c) { return fabsf(max * c) < kLarge; }
DEV_FN float shift_of(float max, float c) { return is_exact(max, c) ? max * c : 0.0f; }
// A warp's sum times this is one of 2^((x - high) * c), where `high` is the row's largest logit. Not of a warp without any
// logit, whose sum is 0 or NaN.
DEV_FN float share_of(float max, float high, float c) {
  const float off = is_exact(max, c) ? fmaf(max, c, -shift_of(max, c)) : 0.0f;
  return dev::exp2_approx((max - high) * c - off);
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

  __device__ __forceinline__ uint32_t warps() const { return dev::cluster_size() * (blockDim.x / 32); }
  __device__ __forceinline__ uint4* said_of(uint32_t turn) const { return said + turn % 2 * warps(); }

  // Tells what the warp has found in the turn-th row.
  __device__ __forceinline__ void tell(uint32_t turn, const Found& found) const {
    __syncwarp();  // mutation: as in WarpTeam::sum: all lanes have read the row, and its piece in shared memory, before
    const uint64_t sum = uint64_t(__double_as_longlong(warp_sum(double(found.sum))));
    uint64_t* bar = told + turn % 2;
    if (threadIdx.x == 0) dev::mbar_arrive_expect_tx(bar, 16 * warps());
    const uint4 value = make_uint4(__float_as_uint(found.max), 0, uint32_t(sum), uint32_t(sum >> 32));
    uint4* mine = said_of(turn) + (dev::cluster_rank() * blockDim.x + threadIdx.x) / 32;
    const uint32_t block = threadIdx.x % 32;
    if (block < dev::cluster_size()) dev::store_to_block(mine, value, bar, block);
  }
  // The turn-th row's maximum and sum; the same bits in all threads.
  __device__ __forceinline__ Normaliser hear(uint32_t turn, float c) const {
    dev::mbar_wait(told + turn % 2, turn / 2 % 2);
    const uint4* row = said_of(turn) + threadIdx.x % 32;
    const uint32_t all = warps(), lane = threadIdx.x % 32;
    float high = -INFINITY;
#pragma unroll
    for (uint32_t i = 0; i < kTold; i++)
      if (lane + 32 * i < all) high = fmaxf(high, __uint_as_float(row[32 * i].x));
    high = warp_highest(high);
    double total = 0;
#pragma unroll
    for (uint32_t i = 0; i < kTold; i++)
      if (lane + 32 * i < all) total += sum_of(row[32 * i], high, c);
    return {high, warp_sum(total), 0.0};
  }

  // Warps of a cluster that a lane looks after: there are 16 in each of 8 blocks at most.
  static constexpr uint32_t kTold = 4;
  static __device__ __forceinline__ double sum_of(uint4 value, float high, float c) {
    const double sum = __longlong_as_double(static_cast<long long>(uint64_t(value.w) << 32 | value.z));
    const float max = __uint_as_float(value.x);
    return max > -INFINITY ? sum * double(share_of(max, high, c)) : sum;
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
  // Exponentials, pack by pack, of one row.
  using Kept = float[kPacks][N];
  float single;
  uint32_t single_at;  // kNoToken: there is none
  uint32_t mine;       // packs that the row at hand has for this thread: `per`, or fewer at its end

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

  // Which token before or behind the packs is the thread's; there are fewer than 2N, all of the cluster's first warp.
  static __device__ __forceinline__ bool has_singles() { return dev::cluster_rank() == 0 && threadIdx.x < 32; }
  __device__ __forceinline__ uint32_t single_token(Layout at) const {
    if (!has_singles()) return kNoToken;
    const uint32_t rank = threadIdx.x, ends = softmax.vocab - at.packs * N;
    if (rank >= ends) return kNoToken;
    return rank < at.head ? rank : rank + at.packs * N;
  }
  __device__ __forceinline__ float single_of(const T* row) const {
    if (!has_singles()) return -INFINITY;
    const uint32_t token = single_token(layout_of(row));
    return token == kNoToken ? -INFINITY : logit(softmax, row, token);
  }

  // Begins to copy the warp's piece of a row; all lanes are done with what was there, as they have told since.
  __device__ __forceinline__ void ask(const T* row, uint32_t turn) const {
    if (threadIdx.x % 32 != 0) return;
    const Layout at = layout_of(row);
    const uint32_t left = at.packs > piece ? at.packs - piece : 0, bytes = 16 * min(left, 32 * per);
    uint64_t* bar = landed + turn % kStages;
    dev::mbar_arrive_expect_tx(bar, bytes);
    if (bytes > 0) dev::bulk_load(slots(turn), row + at.head + piece * N, bytes, bar);
  }

  // Waits for the share's logits.
  __device__ __forceinline__ void take(const T* row, uint32_t turn) {
    const Layout at = layout_of(row);
    single_at = single_token(at);
    dev::mbar_wait(landed + turn % kStages, turn / kStages % 2);
    mine = at.packs > pack(0) ? min(per, (at.packs - pack(0) + 31) / 32) : 0;
    if (!softmax.mask) return;
    change(turn, [&](uint32_t j, float (&x)[N]) {
      const uint32_t bits = allowed_bits<N>(softmax, at.head + pack(j) * N);
#pragma unroll
      for (uint32_t i = 0; i < N; i++) x[i] = bits >> i & 1 ? x[i] : -INFINITY;
    });
  }
  // Rare: changes the share's logits in shared memory; of the same thread, as are all who read them.
  template <typename Change> __device__ __forceinline__ void change(uint32_t turn, Change change) const {
    uint4* packs = slots(turn) + threadIdx.x % 32;
#pragma unroll 2
    for (uint32_t j = 0; j < mine; j++) {
      float x[N];
      Pack<T>::split(packs[32 * j], x);
      change(j, x);
      packs[32 * j] = Pack<T>::join(x);
    }
    dev::fence_async();  // mutation: before the copy that comes here next, which the emulator takes for ordered
  }

  // Packs that are read together, from one that there is on; the last one again, to no end, where there are fewer.
  static constexpr uint32_t kAbreast = sizeof(T) == 4 ? 1 : 2;
  __device__ __forceinline__ void read(uint32_t turn, uint32_t first, uint4 (&raw)[kAbreast]) const {
    const uint4* packs = slots(turn) + threadIdx.x % 32;
#pragma unroll
    for (uint32_t i = 0; i < kAbreast; i++) raw[i] = packs[32 * (i == 0 ? first : min(first + i, mine - 1))];
  }
  // The largest logit of the warp's piece; a NaN may be left out.
  __device__ __forceinline__ float highest(uint32_t turn) const {
    float x[N], high = single;
#pragma unroll
    for (uint32_t i = 0; i < N; i++) x[i] = -INFINITY;
    uint4 words = Pack<T>::join(x);
#pragma unroll
    for (uint32_t first = 0; first < kPacks; first += kAbreast) {
      if (first >= mine) break;
      uint4 raw[kAbreast];
      read(turn, first, raw);
#pragma unroll
      for (uint32_t i = 0; i < kAbreast; i++) words = larger<T>(words, raw[i]);
    }
    Pack<T>::split(words, x);
#pragma unroll
    for (uint32_t i = 0; i < N; i++) high = fmaxf(high, x[i]);
    return warp_highest(high);
  }

  // The share's exponentials, given the largest logit of the piece.
  __device__ __forceinline__ Found exponentiate(float max, uint32_t turn, float c, Kept& e) {
    const float shift = shift_of(max, c);
    if (max > -INFINITY && !is_exact(max, c)) {
      change(turn, [&](uint32_t, float (&x)[N]) {
#pragma unroll
        for (uint32_t i = 0; i < N; i++) x[i] -= max;
      });
      single -= max;
    }
    single = dev::exp2_approx(fmaf(single, c, -shift));
    float sums[2] = {single, 0.0f};
#pragma unroll
    for (uint32_t first = 0; first < kPacks; first += kAbreast) {
      if (first >= mine) break;
      uint4 raw[kAbreast];
      read(turn, first, raw);
#pragma unroll
      for (uint32_t i = 0; i < kAbreast && first + i < kPacks; i++) {
        float(&x)[N] = e[first + i], part[N];
        Pack<T>::split(raw[i], x);
#pragma unroll
        for (uint32_t k = 0; k < N; k++) part[k] = x[k] = dev::exp2_approx(fmaf(x[k], c, -shift));
        add_in_pairs(part);
        sums[(first + i) % 2] += i == 0 || first + i < mine ? part[0] : 0.0f;
      }
    }
    add_in_pairs(sums);
    return {max, sums[0]};
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

  template <typename U> __device__ __forceinline__ void write(const T* row, U* to, float factor, Kept& e) {
    const Layout at = layout_of(row);
    using Packed = decltype(packed(e[0], U()));
    Packed* packs = reinterpret_cast<Packed*>(to + at.head) + pack(0);
#pragma unroll
    for (uint32_t j = 0; j < kPacks; j++) {
      if (j >= mine) break;
#pragma unroll
      for (uint32_t i = 0; i < N; i++) e[j][i] *= factor;
      packs[32 * j] = packed(e[j], U());
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
  float single = 0;  // these are loaded a row ahead too
  uint32_t next_token = 0;
  const auto load = [&](uint64_t at) {
    if (at >= rows) return;
    single = share.single_of(logits + at * stride);
    next_token = tokens[at];
  };
  load(at);
  for (; at < rows; at += step()) {
    const T* row = logits + at * stride;
    const auto to = [&] { return gradients + at * stride; };
    const uint32_t token = next_token;
    share.single = single;
    if (!is_read(weights[at])) {
      ask(at + kStages * step());
      load(at + step());
      const bool zero = weights[at] == 0;
      if (first() && !zero) note_fault(status, at, kBadWeight);
      if (first()) log_probs[at] = NAN;
      fill_row<ClusterTeam>(to(), softmax.vocab, zero ? 0.0f : NAN);
      continue;
    }
    share.take(row, taken);
    typename Share<T>::Kept e;
    const float max = share.highest(taken);
    const float chosen = share.find(row, token, taken);
    exchange.tell(taken, share.exponentiate(max, taken, c, e));
    ask(at + kStages * step());  // while the others are still telling
    const Normaliser whole = exchange.hear(taken++, c);
    load(at + step());
    if (!check_row(softmax, whole, at, token, first(), status)) {
      if (first()) log_probs[at] = NAN;
      fill_row<ClusterTeam>(to(), softmax.vocab, NAN);
      continue;
    }
    const double scaled = double(weights[at]) * double(softmax.scale);
    share.write(row, to(), float(-scaled) / float(whole.total) * share_of(max, whole.max, c), e);
    if (isnan(chosen)) continue;
    // Found without the cancellation in 1 - p.
    const double log_prob = log_prob_of(softmax, whole, chosen);
    to()[token] = U(float(-scaled * expm1(log_prob)));
    log_probs[at] = float(log_prob);
  }
}
#endif

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

EXPORT_KERNEL(gradient_cluster_f32)
EXPORT_KERNEL(gradient_cluster_f16)
EXPORT_KERNEL(gradient_cluster_bf16)
EXPORT_KERNEL(gradient_cluster_f32_f16)
EXPORT_KERNEL(gradient_cluster_f32_bf16)
