// adam.cu -- Adam (Kingma & Ba 2015) with clipping by global norm, as an ascent, fused over all parameters.
//
// Two launches: the sum of squares in fixed pieces of 4096 values, then the step, whose blocks each fold the pieces in
// order. A norm that is not finite changes nothing.
#include "common/reduce.cuh"
#include "common/status.cuh"

constexpr int kPiece = 4096;

// partials[block] = sum of squares of gradient[4096 * block ..][..4096]. Grid: one block per piece, 256 threads.
extern "C" __global__ void __launch_bounds__(256) adam_norm(const float* gradient, uint64_t len, double* partials) {
  const uint64_t begin = uint64_t(blockIdx.x) * kPiece, end = begin + kPiece < len ? begin + kPiece : len;
  double sum = 0;
  for (uint64_t at = begin + threadIdx.x; at < end; at += blockDim.x) sum += double(gradient[at]) * double(gradient[at]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One step for parameters[len] along gradient[len]; first and second are the moments. Any grid.
extern "C" __global__ void __launch_bounds__(256)
adam_step(const float* gradient, float* parameters, float* first, float* second, uint64_t len, const double* partials,
          uint32_t partial_count, float clip, float rate, float inverse_root2, float beta1, float beta2, float epsilon,
          unsigned long long* status) {
  SHARED(double, total, [1]);
  if (threadIdx.x < 32) {
    double sum = 0;
    for (uint32_t at = threadIdx.x; at < partial_count; at += 32) sum += partials[at];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) total[0] = sqrt(sum);
  }
  __syncthreads();
  const double norm = total[0];
  if (!isfinite(norm)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) note_fault(status, 0, kBadGradient);
    return;
  }
  const float scale = norm > double(clip) ? float(double(clip) / norm) : 1.0f;
  const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < len; at += stride) {
    const float g = gradient[at] * scale;
    const float m = beta1 * first[at] + (1.0f - beta1) * g;
    const float v = beta2 * second[at] + (1.0f - beta2) * g * g;
    first[at] = m;
    second[at] = v;
    parameters[at] += rate * m / (sqrtf(v) * inverse_root2 + epsilon);
  }
}

EXPORT_KERNEL(adam_norm)
EXPORT_KERNEL(adam_step)
