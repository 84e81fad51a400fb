// adam.cu -- Adam (Kingma & Ba 2015) with clipping by global norm, as an ascent, fused over all parameters.
//
// Two launches: the sum of squares in fixed pieces of 4096 values, then the step, whose blocks each fold the pieces in
// order. A norm that is not finite changes no parameter. The number of steps lives here, so that launches can be replayed.
#include "common/reduce.cuh"
#include "common/status.cuh"

constexpr int kPiece = 4096;

// 1 - beta^steps, also where beta^steps is near 1.
DEV_FN double correction(float beta, uint64_t steps) { return -expm1(double(steps) * log(double(beta))); }

// partials[block] = sum of squares of gradient[4096 * block ..][..4096]. The first thread also counts the step, and
// leaves both bias corrections in `scale`: rate / (1 - beta1^steps) and 1 / sqrt(1 - beta2^steps). At a factor *rate of 0
// (null: 1) there is no step, and the scale is 0. Grid: one block per piece, 256 threads.
extern "C" __global__ void __launch_bounds__(256)
adam_norm(const float* gradient, uint64_t len, double* partials, float learning_rate, float beta1, float beta2,
          const float* rate, uint64_t* steps, float2* scale) {
  const uint64_t begin = uint64_t(blockIdx.x) * kPiece, end = begin + kPiece < len ? begin + kPiece : len;
  double sum = 0;
  for (uint64_t at = begin + threadIdx.x; at < end; at += blockDim.x) sum += double(gradient[at]) * double(gradient[at]);
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  partials[blockIdx.x] = sum;
  if (blockIdx.x != 0) return;
  const float factor = rate ? *rate : 1.0f;
  *scale = make_float2(0, 0);
  if (factor == 0) return;
  const uint64_t now = *steps += 1;
  *scale = make_float2(float(double(learning_rate * factor) / correction(beta1, now)),
                       float(1 / sqrt(correction(beta2, now))));
}

// src/adam/mod.rs: of the gradients since they were last read.
struct GradientNorms {
  double sum, squares;
  uint64_t count;
};

// One step for parameters[len] along gradient[len]; first and second are the moments. Any grid.
extern "C" __global__ void __launch_bounds__(256)
adam_step(const float* gradient, float* parameters, float* first, float* second, uint64_t len, const double* partials,
          uint32_t partial_count, float clip, float beta1, float beta2, float epsilon, const float2* scale,
          GradientNorms* norms, unsigned long long* status) {
  const float rate = scale->x, inverse_root2 = scale->y;
  if (inverse_root2 == 0) return;
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
  if (blockIdx.x == 0 && threadIdx.x == 0)
    *norms = {norms->sum + norm, norms->squares + dev::mul_rn(norm, norm), norms->count + 1};
  const float shrink = norm > double(clip) ? float(double(clip) / norm) : 1.0f;
  const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < len; at += stride) {
    const float g = gradient[at] * shrink;
    const float m = beta1 * first[at] + (1.0f - beta1) * g;
    const float v = beta2 * second[at] + (1.0f - beta2) * g * g;
    first[at] = m;
    second[at] = v;
    parameters[at] += rate * m / (sqrtf(v) * inverse_root2 + epsilon);
  }
}

EXPORT_KERNEL(adam_norm)
EXPORT_KERNEL(adam_step)
