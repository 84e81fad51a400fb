// weights.cu -- importance weights, log-probs under a mixture, and the step's statistics as sums over fixed chunks of rows
// folded in order: the same bits whatever the grid.
#include "common/reduce.cuh"
#include "common/status.cuh"

constexpr int kThreads = 256, kRowsPerThread = 4, kChunk = kThreads * kRowsPerThread;
constexpr double kInf = INFINITY;

// log_w = log P - log q, weights = exp(log_w - log_scale), both [rows]. A row whose log-weight is NaN or +inf, or whose
// weight is beyond float, becomes NaN. Any grid.
extern "C" __global__ void __launch_bounds__(256)
importance_weights(const double* log_p, const double* log_q, double log_scale, uint64_t rows, double* log_w,
                   float* weights, unsigned long long* status) {
  const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t row = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; row < rows; row += stride) {
    const double q = log_q[row], log_weight = log_p[row] - q;
    const float weight = float(exp(log_weight - log_scale));
    const bool good = isfinite(weight) && q > -kInf;
    if (!good) note_fault(status, row, kBadImportance);
    log_w[row] = good ? log_weight : double(NAN);
    weights[row] = good ? weight : NAN;
  }
}

// log_q = log(s q + s' q') in place, both [rows], from the logs of the shares. A row that one component cannot draw has the
// other's share alone; NaN stays NaN. Any grid.
extern "C" __global__ void __launch_bounds__(256)
mix_log_probs(double* log_q, const double* log_other, double log_share, double log_other_share, uint64_t rows) {
  const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t row = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; row < rows; row += stride) {
    const double a = log_share + log_q[row], b = log_other_share + log_other[row];
    const bool less = a < b;
    const double low = less ? a : b, high = less ? b : a;
    // Neither -inf - -inf nor a NaN that a maximum would drop.
    const double log_prob = low == -kInf ? high : high + log1p(exp(low - high));
    log_q[row] = log_prob > 0 ? 0.0 : log_prob;
  }
}

// What one row adds, with v = exp(log_w - log_z) and u = pi / q; every term is at least 0.
struct Terms {
  double v, kl, tv;
};
DEV_FN Terms terms_of(double log_v, double log_u) {
  const double v = exp(log_v), u = exp(log_u);
  // v log v -> 0, and u = 0 gives +inf, as it must.
  const double kl = v == 0 ? u : fmax(v * (log_v - log_u) - v + u, 0.0);
  return {v, kl, 0.5 * fabs(u - v)};
}

// sums[chunk * (5 + features) ..] = max log_w, then the sums of v, v^2, v log(v/u) - v + u, |u - v| / 2 and v * phi[f]
// over the 1024 rows of a chunk. log_pi may be null: u is 1 then. Grid: blocks stride over the chunks, 256 threads.
extern "C" __global__ void __launch_bounds__(256, 3)
weight_sums(const double* log_w, const double* log_q, const double* log_pi, const float* phi, uint64_t rows,
            uint32_t features, double log_z, double* sums, unsigned long long* status) {
  const uint64_t chunks = (rows + kChunk - 1) / kChunk;
  for (uint64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    double* out = sums + chunk * (5 + features);
    double v[kRowsPerThread], largest = -kInf, total = 0, squares = 0, kl = 0, tv = 0;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; i++) {
      const uint64_t row = chunk * kChunk + i * kThreads + threadIdx.x;
      v[i] = 0;
      if (row >= rows) continue;
      const double weight = log_w[row], policy = log_pi ? log_pi[row] : 0, log_u = log_pi ? policy - log_q[row] : 0;
      if (!(weight < kInf)) note_fault(status, row, kBadImportance);
      if (!(policy < kInf)) note_fault(status, row, kBadPolicy);
      const Terms terms = terms_of(weight - log_z, log_u);
      v[i] = terms.v;
      largest = fmax(largest, weight);
      total += terms.v, squares += terms.v * terms.v, kl += terms.kl, tv += terms.tv;
    }
    largest = block_max(largest);
    total = block_sum(total), squares = block_sum(squares), kl = block_sum(kl), tv = block_sum(tv);
    if (threadIdx.x == 0) out[0] = largest, out[1] = total, out[2] = squares, out[3] = kl, out[4] = tv;
    for (uint32_t f = 0; f < features; f++) {
      double sum = 0;
#pragma unroll
      for (int i = 0; i < kRowsPerThread; i++) {
        const uint64_t row = chunk * kChunk + i * kThreads + threadIdx.x;
        if (row < rows) sum += v[i] * double(phi[row * features + f]);
      }
      sum = block_sum(sum);
      if (threadIdx.x == 0) out[5 + f] = sum;
    }
  }
}

// total[column] = the sum of sums[chunk, column] over chunks, column 0 the maximum instead. One warp per column, lanes
// stride over the chunks, so the order depends on their number alone. Any grid, 256 threads.
extern "C" __global__ void __launch_bounds__(256)
fold_sums(const double* sums, uint64_t chunks, uint32_t columns, double* total) {
  const uint32_t lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
  for (uint32_t column = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; column < columns; column += warps) {
    double sum = 0, largest = -kInf;
    for (uint64_t chunk = lane; chunk < chunks; chunk += 32) {
      const double value = sums[chunk * columns + column];
      sum += value;
      largest = fmax(largest, value);
    }
    sum = warp_sum(sum), largest = warp_max(largest);
    if (lane == 0) total[column] = column == 0 ? largest : sum;
  }
}

EXPORT_KERNEL(importance_weights)
EXPORT_KERNEL(mix_log_probs)
EXPORT_KERNEL(weight_sums)
EXPORT_KERNEL(fold_sums)
