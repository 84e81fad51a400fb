// potential.cu -- log P = log r + sum of lambda * phi where every required value is met, else -inf; and log r from the
// scores of several models.
//
// One thread per row, features in order, each product and sum rounded by itself: the bits are those of the CPU.
#include "common/device.cuh"

// What one feature does to a row's sum; true where the row is decided, and `total` then holds the answer.
DEV_FN bool add_feature(double& total, double lambda, float required, float value) {
  if (!isnan(required)) {
    if (value == required) return false;
    total = isnan(value) ? double(NAN) : -double(INFINITY);
    return true;
  }
  // -0 says that the feature does not tilt: a NaN there is nobody's business.
  if (lambda != 0 || !signbit(lambda)) total += dev::mul_rn(lambda, double(value));
  return false;
}

// log_p[row] from log_base[row] and phi[row, 0..features]; coefficients[features] and required[features] (NaN: nothing
// is). Any grid.
extern "C" __global__ void __launch_bounds__(256)
log_potential(const double* log_base, const float* phi, const double* coefficients, const float* required, uint64_t rows,
              uint32_t features, double* log_p) {
  const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
  const bool wide = features % 4 == 0 && reinterpret_cast<uintptr_t>(phi) % 16 == 0;
  for (uint64_t row = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; row < rows; row += stride) {
    const float* values = phi + row * features;
    double total = 0;
    bool decided = false;
    for (uint32_t at = 0; at < features && !decided; at += 4) {
      float four[4];
      if (wide) {
        const float4 loaded = *reinterpret_cast<const float4*>(values + at);
        four[0] = loaded.x, four[1] = loaded.y, four[2] = loaded.z, four[3] = loaded.w;
      } else {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) four[i] = at + i < features ? values[at + i] : 0.0f;
      }
#pragma unroll
      for (uint32_t i = 0; i < 4; i++)
        if (at + i < features && !decided) decided = add_feature(total, coefficients[at + i], required[at + i], four[i]);
    }
    log_p[row] = log_base[row] + total;
  }
}

// to[row] = before[row] + factor * scores[row]; `before` may be null, for zeros. Any grid.
extern "C" __global__ void __launch_bounds__(256)
add_scaled(const double* before, double factor, const double* scores, uint64_t rows, double* to) {
  const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t row = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; row < rows; row += stride)
    to[row] = (before ? before[row] : 0.0) + dev::mul_rn(factor, scores[row]);
}

EXPORT_KERNEL(log_potential)
EXPORT_KERNEL(add_scaled)
