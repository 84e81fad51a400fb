// linear.cu -- what surrounds the products of a linear layer: rows gathered for a chunk and scattered back, and gradients
// narrowed to the type that the products take. Each value is read and written once.
#include "common/device.cuh"

// One unit of a row per thread and step: row i of the packed side is row rows[i] of the other.
template <typename Unit>
DEV_FN void move_units(const void* from, void* to, const uint64_t* rows, uint64_t count, uint64_t units, bool scatter) {
  const uint32_t lane = threadIdx.x % 32;
  const uint64_t warps = uint64_t(gridDim.x) * (blockDim.x / 32);
  for (uint64_t i = uint64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; i < count; i += warps) {
    const Unit* source = static_cast<const Unit*>(from) + (scatter ? i : rows[i]) * units;
    Unit* target = static_cast<Unit*>(to) + (scatter ? rows[i] : i) * units;
    for (uint64_t unit = lane; unit < units; unit += 32) target[unit] = source[unit];
  }
}

// Row i of `to` becomes row rows[i] of `from`, i < count, or the other way round where scatter is not 0; rows of `bytes`
// bytes, an even number. A warp per row, any grid, 256 threads.
extern "C" __global__ void __launch_bounds__(256, 4)
move_rows(const void* from, void* to, const uint64_t* rows, uint64_t count, uint64_t bytes, uint32_t scatter) {
  const uint64_t all = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) | bytes;
  if (all % 16 == 0) {
    move_units<uint4>(from, to, rows, count, bytes / 16, scatter);
  } else if (all % 4 == 0) {
    move_units<uint32_t>(from, to, rows, count, bytes / 4, scatter);
  } else {
    move_units<uint16_t>(from, to, rows, count, bytes / 2, scatter);
  }
}

// to[i] = the nearest of from[i], i < count. Any grid, 256 threads.
template <typename T> DEV_FN void narrow(const float* from, T* to, uint64_t count) {
  const uint64_t step = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) to[i] = T(from[i]);
}
extern "C" __global__ void __launch_bounds__(256) narrow_f16(const float* from, __half* to, uint64_t count) {
  narrow(from, to, count);
}
extern "C" __global__ void __launch_bounds__(256) narrow_bf16(const float* from, __nv_bfloat16* to, uint64_t count) {
  narrow(from, to, count);
}

EXPORT_KERNEL(move_rows)
EXPORT_KERNEL(narrow_f16)
EXPORT_KERNEL(narrow_bf16)
