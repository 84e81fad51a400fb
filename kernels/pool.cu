// pool.cu -- the trainer's pool: weighted draws in a ring, their choice for each update, and the books of both.
//
// What the host would have to wait for to decide (how many draws are kept, which are chosen, whether there is an update at
// all) is decided here, so that a whole step is one fixed sequence of launches. Kernels that keep the books run in one
// block, each sum in an order that depends on the number of rows alone; those that move rows over any grid.
//
// A draw's slot of the ring is a prefix sum over the rows; the oldest leave first. An endless shuffle over all slots
// (Fisher and Yates) gives each update its rows.
#include "common/coefficient.cuh"
#include "common/philox.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"
#include "common/status.cuh"

constexpr int kThreads = 1024;
constexpr uint32_t kNone = ~0u;
constexpr double kInf = INFINITY;
constexpr double kShiftRate = 0.1;  // of src/tune/pool/mod.rs

// src/weights/log_mean.rs: the mean of weights given by their logarithms.
struct Mean {
  double shift, total, squares;
  uint64_t count;
};

// src/tune/pool/mod.rs says what each is.
struct Ledger {
  Mean log_z, log_reward;
  double log_mean, center, factor, cut, shift, log_bound, loss, loss_weight;
  uint64_t next, rows, kept, cursor, picks, chosen, updates, raises;
};
static_assert(sizeof(Ledger) == 192, "src/tune/pool/mod.rs has the same layout");

DEV_FN double value_of(const Mean& mean) {
  return mean.total == 0 ? -kInf : mean.shift + log(mean.total / double(mean.count));
}

// Adds the weights of `rows` rows to a mean, which thread 0 alone reads and writes; one that is not finite counts as 0.
template <typename LogWeight> DEV_FN void add_rows(Mean& mean, uint64_t rows, LogWeight log_w) {
  double largest = -kInf, total = 0, squares = 0;
  for (uint64_t row = threadIdx.x; row < rows; row += kThreads)
    if (isfinite(log_w(row))) largest = fmax(largest, log_w(row));
  largest = block_max(largest);
  for (uint64_t row = threadIdx.x; row < rows; row += kThreads)
    if (isfinite(log_w(row))) {
      const double weight = exp(log_w(row) - largest);
      total += weight, squares += weight * weight;
    }
  total = block_sum(total), squares = block_sum(squares);
  if (threadIdx.x != 0) return;
  mean.count += rows;
  if (largest == -kInf) return;
  const double shift = mean.total == 0 ? largest : fmax(mean.shift, largest), now = exp(largest - shift);
  const double before = mean.total == 0 ? 0.0 : exp(mean.shift - shift);
  mean.total = mean.total * before + total * now;
  mean.squares = mean.squares * before * before + squares * now * now;
  mean.shift = shift;
}

// Adds one weight, as LogMean::push does.
DEV_FN void add_weight(Mean& mean, double log_w) {
  mean.count++;
  if (!isfinite(log_w)) return;
  if (mean.total == 0 || log_w > mean.shift) {
    const double rescale = mean.total == 0 ? 0.0 : exp(mean.shift - log_w);
    mean.total *= rescale, mean.squares *= rescale * rescale, mean.shift = log_w;
  }
  const double weight = exp(log_w - mean.shift);
  mean.total += weight;
  mean.squares += dev::mul_rn(weight, weight);  // two roundings, as on the CPU
}

// log_w = log P - log q, [rows]; their mean joins `mean`. Without log_q that of P does, and log_w is not written. One
// that is NaN or +inf becomes NaN and is noted. One block.
extern "C" __global__ void __launch_bounds__(kThreads)
pool_weigh(const double* log_p, const double* log_q, uint64_t rows, double* log_w, Mean* mean, unsigned long long* status) {
  const auto log_weight = [&](uint64_t row) { return log_q ? log_p[row] - log_q[row] : log_p[row]; };
  for (uint64_t row = threadIdx.x; row < rows; row += kThreads) {
    const bool good = log_weight(row) < kInf;
    if (!good) note_fault(status, row, kBadImportance);
    if (log_q) log_w[row] = good ? log_weight(row) : double(NAN);
  }
  add_rows(*mean, rows, log_weight);
}

// The weights of new draws join the means of their contexts: of `count` contexts each has `draws` draws in a row, by their
// numbers from first + *skip on. A thread per context, any grid.
extern "C" __global__ void __launch_bounds__(256)
pool_weigh_contexts(const double* log_w, uint64_t rows, uint64_t first, const uint64_t* skip, uint64_t count, uint64_t draws,
                    Mean* means, double* log_z) {
  const uint64_t begin = first + *skip, end = begin + rows, step = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t context = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; context < count; context += step) {
    Mean mean = means[context];
    // Its first turn that ends behind `begin`.
    uint64_t turn = begin / draws;
    turn += (context + count - turn % count) % count;
    for (; turn * draws < end; turn += count) {
      const uint64_t last = min((turn + 1) * draws, end);
      for (uint64_t draw = max(turn * draws, begin); draw < last; draw++) add_weight(mean, log_w[draw - begin]);
    }
    means[context] = mean;
    log_z[context] = value_of(mean);
  }
}

// What the returns of new draws are under control by KL(pi || r), [rows]; one that is not finite is noted. Any grid.
extern "C" __global__ void __launch_bounds__(256)
pool_returns(const double* log_p, const double* log_base, const double* log_pi, uint64_t rows, double beta, double floor,
             double* returns, unsigned long long* status) {
  const uint64_t step = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t row = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; row < rows; row += step) {
    const double reward = fmax(log_p[row] - log_base[row], floor);
    const double value = reward - dev::mul_rn(beta, log_pi[row] - log_base[row]);
    if (!isfinite(value)) note_fault(status, row, kBadWeight);
    returns[row] = value;
  }
}

// src/tune/pool/mod.rs says what each is.
enum Unit : uint32_t { kMeanWeight, kMeanReward, kPartition, kReturn };
enum Baseline : uint32_t { kNoBaseline, kMean, kLeaveOneOut };

// A weight in units, cut to `clip`; or a return.
DEV_FN double worth_of(double kept, double log_mean, uint32_t unit, double clip) {
  return unit == kReturn ? kept : fmin(exp(kept - log_mean), clip);
}

// The log-weights kept, with what divides them by the Z of their contexts: null where there are none or the unit is not
// one of p.
struct Kept {
  const double* log_w;
  const uint32_t* context;
  const double* log_z;

  // A positive weight is one of those that its context's Z is made of, which is then positive too.
  __device__ __forceinline__ double operator()(uint64_t slot) const {
    return log_z && log_w[slot] > -kInf ? log_w[slot] - log_z[context[slot]] : log_w[slot];
  }
};

// What updates divide their weights by and subtract from them, and what clipping takes away. One block.
extern "C" __global__ void __launch_bounds__(kThreads)
pool_measure(const Kept log_w, uint32_t unit, double clip, uint32_t baseline, Ledger* ledger) {
  const uint64_t rows = ledger->rows;
  Mean mean{};
  if (unit == kMeanReward) mean = ledger->log_reward;
  if (unit == kPartition) mean = ledger->log_z;
  if (unit == kMeanWeight) add_rows(mean, rows, log_w);
  SHARED(double, shared_mean, [1]);
  // Weights of contexts are p/q already.
  const bool is_one = unit == kReturn || (unit == kPartition && log_w.log_z);
  if (threadIdx.x == 0) shared_mean[0] = is_one ? 0.0 : value_of(mean);
  __syncthreads();
  const double log_mean = shared_mean[0];
  if (threadIdx.x == 0) ledger->log_mean = log_mean, ledger->center = 0, ledger->factor = 1;
  if (baseline == kMean && unit == kMeanReward && threadIdx.x == 0) ledger->center = 1;
  const bool own = (baseline == kMean && unit == kReturn) || (baseline == kLeaveOneOut && rows > 1);
  if (!own && clip == kInf) return;
  double kept = 0, all = 0;
  for (uint64_t row = threadIdx.x; row < rows; row += kThreads)
    kept += worth_of(log_w(row), log_mean, unit, clip), all += worth_of(log_w(row), log_mean, unit, kInf);
  kept = block_sum(kept), all = block_sum(all);
  if (threadIdx.x != 0) return;
  if (clip < kInf) ledger->cut = 1 - kept / all;
  if (own) ledger->center = kept / double(rows);
  if (own && baseline == kLeaveOneOut) ledger->factor = double(rows) / double(rows - 1);
}

// 53 bits in [0, 1); the lane separates what one purpose draws.
DEV_FN double uniform(uint64_t seed, uint64_t index, uint32_t position, uint32_t purpose, uint32_t lane) {
  const uint4 words = philox(seed, index, position, purpose | lane << 8);
  return double((uint64_t(words.x) << 32 | words.y) >> 11) * 0x1p-53;
}

// Rejection: log_w[rows] becomes 0 where a draw is accepted, else -inf. Where the bound is not known and rises, the ring
// is thinned first, but for its `pinned` first slots. One block.
extern "C" __global__ void __launch_bounds__(kThreads)
pool_accept(double* log_w, uint64_t rows, uint64_t seed, uint64_t first, const uint64_t* skip, uint64_t thin_seed,
            uint32_t purpose, uint32_t exact, double* kept, uint64_t pinned, Ledger* ledger) {
  double largest = -kInf, bound = ledger->log_bound;
  const uint64_t slots = ledger->rows, raises = ledger->raises + 1;
  for (uint64_t row = threadIdx.x; row < rows; row += kThreads) largest = fmax(largest, log_w[row]);
  largest = block_max(largest);  // and all have read the ledger
  if (!exact && largest > bound) {
    const double share = exp(bound - largest);
    for (uint64_t slot = pinned + threadIdx.x; slot < slots; slot += kThreads)
      if (uniform(thin_seed, slot, uint32_t(raises), purpose, 2) >= share) kept[slot] = -kInf;
    bound = largest;
    if (threadIdx.x == 0) ledger->log_bound = bound, ledger->raises = raises;
  }
  for (uint64_t row = threadIdx.x; row < rows; row += kThreads)
    log_w[row] = uniform(seed, first + *skip + row, 0, purpose, 1) < exp(log_w[row] - bound) ? 0.0 : -kInf;
}

// slots[rows]: where in the ring of `capacity` slots each new draw goes; none for one of weight 0, unless `all` are kept.
// `fresh`: the ring is emptied first. One block.
extern "C" __global__ void __launch_bounds__(kThreads)
pool_keep(const double* log_w, uint64_t rows, uint32_t all, uint32_t fresh, uint64_t capacity, uint64_t pinned,
          uint32_t* slots, uint32_t* order, Ledger* ledger) {
  const uint64_t next = fresh ? pinned : ledger->next, held = fresh ? pinned : ledger->rows;
  const uint64_t ring = capacity - pinned, begin = next - pinned;
  uint64_t count = 0;
  for (uint64_t first = 0; first < rows; first += kThreads) {
    const uint64_t row = first + threadIdx.x;
    const bool wanted = row < rows && (all || log_w[row] > -kInf);
    const Rank rank = block_rank(wanted);
    const uint64_t slot = pinned + (begin + count + rank.before) % ring;
    if (row < rows) slots[row] = wanted ? uint32_t(slot) : kNone;
    if (wanted && slot >= held) order[slot] = uint32_t(slot);
    count += rank.all;
  }
  if (threadIdx.x != 0) return;
  ledger->next = count ? pinned + (begin + count - 1) % ring + 1 : next;
  ledger->rows = min(held + count, capacity);
  ledger->kept += count;
  if (fresh) ledger->cursor = 0;
}

// The draws that have a slot go there, with log w and log q. A warp per draw, any grid.
extern "C" __global__ void __launch_bounds__(256)
pool_scatter(const Rows draws, const double* log_w, const double* log_q, const uint32_t* slots, uint64_t rows,
             uint32_t longest, uint32_t pad, const Rows ring, double* to_log_w, double* to_log_q) {
  const uint64_t warps = uint64_t(gridDim.x) * (blockDim.x / 32);
  for (uint64_t row = uint64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; row < rows; row += warps) {
    const uint32_t slot = slots[row];
    if (slot == kNone) continue;
    copy_row(draws, row, ring, slot, longest, pad);
    if (threadIdx.x % 32 == 0) to_log_w[slot] = log_w[row], to_log_q[slot] = log_q[row];
  }
}

// What one tile of a shuffle does, one swap per thread: swap i exchanges positions begin + i and pick[i] >= begin + i.
//
// The value at begin + i before swap i was put there by the latest swap k < i that picked begin + i, and was then the
// value at begin + k: link[i] = k, or none. The value at pick[i] was put there by the latest swap j < i of the same pick,
// and was then the value at begin + j. So chains of links lead to values that no swap has moved yet.
struct Swaps {
  uint32_t* pick;  // [kThreads]
  uint32_t* link;  // [kThreads]
};

// The value that swap i moves away from begin + i.
DEV_FN uint32_t moved(const Swaps& swaps, const uint32_t* order, uint64_t begin, uint32_t i) {
  while (swaps.link[i] != kNone) i = swaps.link[i];
  return order[begin + i];
}

// Does the swaps of order[begin ..][.. count] with the picks, and writes what comes to begin + i to chosen[i]. All threads
// of the block, count at most their number.
DEV_FN void shuffle_tile(const Swaps& swaps, uint32_t* order, uint64_t begin, uint32_t count, uint32_t* chosen) {
  const uint32_t i = threadIdx.x, mine = i < count ? swaps.pick[i] : 0, own = uint32_t(begin + i);
  uint32_t same = kNone, link = kNone;
  bool last = true;
  for (uint32_t j = 0; j < count; j++) {
    const uint32_t other = swaps.pick[j];
    if (j < i && other == mine) same = j;
    if (j < i && other == own) link = j;
    if (j > i && other == mine) last = false;
  }
  swaps.link[i] = link;
  __syncthreads();
  uint32_t comes = 0, goes = 0;
  if (i < count) {
    comes = same == kNone ? order[mine] : moved(swaps, order, begin, same);
    goes = moved(swaps, order, begin, i);
  }
  __syncthreads();
  if (i >= count) return;
  chosen[i] = order[own] = comes;
  if (last && mine >= begin + count) order[mine] = goes;
}

// chosen[0 .. ledger->chosen): up to `count` slots without repetition; every slot comes up once before any comes up twice.
// None, and a rate of 0, where no draw has a weight or each has been used `uses` times on average. One block.
extern "C" __global__ void __launch_bounds__(kThreads)
pool_choose(uint32_t* order, uint32_t* chosen, uint64_t count, uint64_t uses, uint64_t seed, uint32_t purpose,
            const float* wanted_rate, float* rate, Ledger* ledger) {
  SHARED(uint32_t, pick, [kThreads]);
  SHARED(uint32_t, link, [kThreads]);
  const uint64_t held = ledger->rows, picks = ledger->picks, most = min(count, held);
  const bool used_up = double(picks + most) / double(ledger->kept) > double(uses);
  const bool goes_on = ledger->log_mean > -kInf && !used_up;
  const uint64_t wanted = goes_on ? most : 0;
  uint64_t cursor = ledger->cursor, done = 0, taken = 0;  // `taken`: slots at the end of `order`, from the pass before
  __syncthreads();  // mutation: without an update the ledger gets what was read from it; only the thread sanitizer sees that
  while (done < wanted) {
    if (cursor == held) cursor = 0, taken = done;
    const uint64_t tile = min(min(wanted - done, held - cursor), uint64_t(kThreads));
    const uint64_t at = cursor + threadIdx.x;
    if (threadIdx.x < tile) {
      const uint32_t word = philox(seed, picks + done + threadIdx.x, 0, purpose).x;
      pick[threadIdx.x] = uint32_t(at + (uint64_t(word) * (held - taken - at) >> 32));
    }
    __syncthreads();
    shuffle_tile({pick, link}, order, cursor, uint32_t(tile), chosen + done);
    __syncthreads();  // mutation: the barriers of the next tile order the same
    cursor += tile, done += tile;
  }
  if (threadIdx.x != 0) return;
  ledger->cursor = cursor;
  ledger->picks = picks + wanted;
  ledger->chosen = wanted;
  ledger->updates += goes_on;
  *rate = goes_on ? *wanted_rate : 0.0f;
}

// The rows of an update with their weights (worth - center) * factor / (rows * longest), log q and log p. A row beyond
// those chosen is an EOS of weight 0 that no coefficient takes in. A warp per row, any grid.
extern "C" __global__ void __launch_bounds__(256)
pool_gather(const Rows ring, const Kept log_w, const double* log_q, const uint32_t* chosen, uint64_t rows, uint32_t longest,
            uint32_t eos, uint32_t pad, uint32_t unit, double clip, const Ledger* ledger, const Rows to, float* weights,
            double* to_log_q, double* to_log_p, double* shift) {
  const uint64_t warps = uint64_t(gridDim.x) * (blockDim.x / 32), used = ledger->chosen;
  const uint32_t lane = threadIdx.x % 32;
  const float scale = 1.0f / (float(used) * float(longest));
  if (blockIdx.x == 0 && threadIdx.x == 0) *shift = ledger->shift;
  for (uint64_t row = uint64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; row < rows; row += warps) {
    if (row < used) {
      const uint32_t slot = chosen[row];
      copy_row(ring, slot, to, row, longest, pad);
      if (lane != 0) continue;
      const double own = log_w(slot);
      const float worth = float(worth_of(own, ledger->log_mean, unit, clip));
      weights[row] = (worth - float(ledger->center)) * float(ledger->factor) * scale;
      to_log_q[row] = log_q[slot], to_log_p[row] = own + log_q[slot] - ledger->log_mean;
    } else {
      for (uint32_t t = lane; t < longest; t += 32) to.tokens[row * longest + t] = t == 0 ? eos : pad;
      if (lane != 0) continue;
      to.lengths[row] = 1, to.given[row] = to.context[row] = 0;
      weights[row] = 0, to_log_q[row] = to_log_p[row] = kInf;
    }
  }
}

// The shift that makes the coefficients of these rows 0 in the mean. All threads of the block; the value is thread 0's.
DEV_FN double balanced(uint32_t kind, double alpha, const double* log_p, const double* log_q, const double* log_pi,
                       uint64_t rows) {
  double total = 0, count = 0;
  for (uint64_t row = threadIdx.x; row < rows; row += blockDim.x) {
    total += shifted_coefficient(kind, alpha, log_pi[row], log_p[row], log_q[row], 0.0);
    count += kind == kBalance ? 1.0 : exp(log_pi[row] - log_q[row]);
  }
  total = block_sum(total), count = block_sum(count);
  return -total / count;
}

// The loss of an update joins the books: weights without the baseline, which are never negative. `kind` is that of
// coefficients whose shift is learnt, 0 where there is none. One block, of half the threads: coefficients take registers.
extern "C" __global__ void __launch_bounds__(kThreads / 2, 1)
pool_note(const float* weights, const double* log_pi, const double* log_p, const double* log_q, uint32_t longest,
          uint32_t unit, uint32_t kind, double alpha, Ledger* ledger) {
  const uint64_t rows = ledger->chosen;
  const float factor = float(ledger->factor), missing = float(ledger->center) * (1.0f / (float(rows) * float(longest)));
  double loss = 0, total = 0;
  for (uint64_t row = threadIdx.x; row < rows; row += blockDim.x) {
    const double weight = unit == kReturn ? 1.0 : double(weights[row] / factor + missing);
    // A row of weight 0 may have been skipped, and has no log pi then.
    if (weight > 0) loss -= weight * log_pi[row], total += weight * double(longest);
  }
  loss = block_sum(loss), total = block_sum(total);
  if (threadIdx.x == 0) ledger->loss += loss, ledger->loss_weight += total;
  if (kind == kGiven || rows == 0) return;
  const double target = balanced(kind, alpha, log_p, log_q, log_pi, rows);
  if (threadIdx.x != 0 || !isfinite(target)) return;
  ledger->shift += (ledger->updates == 1 ? 1.0 : kShiftRate) * (target - ledger->shift);
}

EXPORT_KERNEL(pool_weigh)
EXPORT_KERNEL(pool_weigh_contexts)
EXPORT_KERNEL(pool_returns)
EXPORT_KERNEL(pool_measure)
EXPORT_KERNEL(pool_accept)
EXPORT_KERNEL(pool_keep)
EXPORT_KERNEL(pool_scatter)
EXPORT_KERNEL(pool_choose)
EXPORT_KERNEL(pool_gather)
EXPORT_KERNEL(pool_note)
