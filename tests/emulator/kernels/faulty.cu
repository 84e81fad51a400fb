// faulty.cu -- one mistake per kernel: tests/faults.rs demands that the emulator finds it and says where.
#include "common/device.cuh"

#define FAULTY_KERNEL(name) extern "C" __global__ void name(float* out)

FAULTY_KERNEL(faulty_divergent_barriers) {
  if (threadIdx.x < 16) {
    __syncthreads();  // FAULT divergent
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

FAULTY_KERNEL(faulty_return_before_barrier) {
  if (threadIdx.x >= 40) return;
  __syncthreads();  // FAULT return
  out[threadIdx.x] = 1;
}

// The first warp waits at a barrier that the second never reaches, as that waits for the first.
FAULTY_KERNEL(faulty_deadlock) {
  if (threadIdx.x < 32) {
    dev::named_barrier_sync(1, 64);  // FAULT deadlock
  } else {
    dev::named_barrier_sync(2, 64);
  }
  out[threadIdx.x] = 1;
}

FAULTY_KERNEL(faulty_absent_lane) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffff, 1.0f, 16);  // FAULT absent
}

FAULTY_KERNEL(faulty_mask) {
  out[threadIdx.x] = __shfl_xor_sync(0xffff, 1.0f, 1);  // FAULT mask
}

FAULTY_KERNEL(faulty_mixed_operations) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
  } else {
    __syncwarp();
  }
}

// Half a warp is not enough for a matrix product's load.
FAULTY_KERNEL(faulty_part_of_a_warp) {
  SHARED_DYN(uint32_t, tile);
  uint32_t r[4];
  tile[threadIdx.x] = 0;
  if (threadIdx.x >= 16) return;
  dev::ldmatrix_x4(r, tile);  // FAULT part
  out[threadIdx.x] = float(r[0]);
}

FAULTY_KERNEL(faulty_uninitialised) {
  SHARED(float, cell, [32]);
  SHARED_DYN(float, dynamic);
  out[threadIdx.x] = threadIdx.x % 2 ? cell[threadIdx.x] : dynamic[threadIdx.x];
}

FAULTY_KERNEL(faulty_overrun_of_a_variable) {
  SHARED(float, cell, [32]);  // FAULT overrun
  cell[threadIdx.x + 1] = 1;
  out[threadIdx.x] = 1;
}

FAULTY_KERNEL(faulty_overrun_of_dynamic_memory) {
  SHARED_DYN(float, cell);
  cell[int(threadIdx.x) - 1] = 1;
  out[threadIdx.x] = 1;
}

FAULTY_KERNEL(faulty_misaligned_row) {
  SHARED_DYN(uint16_t, tile);
  for (int i = threadIdx.x; i < 512; i += 32) tile[i] = 0;
  __syncwarp();
  uint32_t r[4];
  dev::ldmatrix_x4(r, tile + threadIdx.x * 12);  // FAULT misaligned
  out[threadIdx.x] = float(r[0]);
}

FAULTY_KERNEL(faulty_misaligned_copy) {
  SHARED_DYN(float, tile);
  dev::cp_async16(tile + threadIdx.x, out);  // FAULT copy
}

// Without the wait a copy lands late: what is read is what was there before, a NaN.
FAULTY_KERNEL(faulty_copy_without_wait) {
  SHARED_DYN(float, tile);
  dev::cp_async16(tile + threadIdx.x * 4, out + threadIdx.x * 4);
  dev::cp_async_commit();
  dev::cp_async_wait<1>();
  out[threadIdx.x] = tile[threadIdx.x * 4];
}

// The copy lands when nothing else can go on: by then nobody is there.
FAULTY_KERNEL(faulty_bulk_copy_without_wait) {
  SHARED_DYN(float, tile);
  SHARED(uint64_t, bar, [1]);
  if (threadIdx.x == 0) {
    dev::mbar_init(bar, 1);
    dev::mbar_arrive_expect_tx(bar, 64);
    dev::bulk_load(tile, out, 64, bar);  // FAULT bulk
  }
  out[threadIdx.x] = 1;
}

FAULTY_KERNEL(faulty_mbarrier) {
  SHARED(uint64_t, bar, [1]);
  dev::mbar_arrive(bar);  // FAULT mbarrier
  out[0] = 1;
}

FAULTY_KERNEL(faulty_rank) {
  SHARED(float, cell, [1]);
  cell[0] = 1;
  dev::cluster_sync();
  out[0] = *dev::cluster_map(cell, dev::cluster_size());  // FAULT rank
}

// States of a product that others may not see yet; a product that nothing waits for; and one without the fence before it.
DEV_FN void multiply_stored(float* out, bool fenced, bool waited) {
  SHARED_DYN(uint16_t, tile);
  dev::stmatrix_x2_trans(tile + threadIdx.x / 32 % 4 * 128 + threadIdx.x % 16 * 8, 0, 0);
  if (fenced) dev::fence_async();
  __syncthreads();
  const uint4 a = {};
  float d[8] = {};
  dev::wgmma_fence();
  dev::wgmma_f16(d, a, dev::wgmma_operand(tile, 128, 128));  // FAULT product
  dev::wgmma_commit();
  if (waited) dev::wgmma_wait<0>();
  out[threadIdx.x] = d[0];
}
FAULTY_KERNEL(faulty_operand_without_fence) { multiply_stored(out, false, true); }
FAULTY_KERNEL(faulty_product_without_wait) { multiply_stored(out, true, false); }

// What the other block of a pair reads is not fenced by what fences this block's own.
FAULTY_KERNEL(faulty_operand_of_another_block) {
  SHARED_DYN(uint4, tile);
  dev::store_operand(dev::cluster_map(tile + threadIdx.x % 8, dev::cluster_rank() ^ 1), uint4{});
  dev::fence_async();
  dev::cluster_sync();
  const uint4 a = {};
  float d[8] = {};
  dev::wgmma_fence();
  dev::wgmma_f16(d, a, dev::wgmma_operand(tile, 128, 128));  // FAULT operand
  dev::wgmma_commit();
  dev::wgmma_wait<0>();
  out[threadIdx.x] = d[0];
}

FAULTY_KERNEL(faulty_product_without_fence) {
  SHARED_DYN(uint16_t, tile);
  const uint4 a = {};
  float d[8] = {};
  dev::wgmma_f16(d, a, dev::wgmma_operand(tile, 128, 128));  // FAULT unordered
  out[threadIdx.x] = d[0];
}

EXPORT_KERNEL(faulty_divergent_barriers)
EXPORT_KERNEL(faulty_return_before_barrier)
EXPORT_KERNEL(faulty_deadlock)
EXPORT_KERNEL(faulty_absent_lane)
EXPORT_KERNEL(faulty_mask)
EXPORT_KERNEL(faulty_mixed_operations)
EXPORT_KERNEL(faulty_part_of_a_warp)
EXPORT_KERNEL(faulty_uninitialised)
EXPORT_KERNEL(faulty_overrun_of_a_variable)
EXPORT_KERNEL(faulty_overrun_of_dynamic_memory)
EXPORT_KERNEL(faulty_misaligned_row)
EXPORT_KERNEL(faulty_misaligned_copy)
EXPORT_KERNEL(faulty_copy_without_wait)
EXPORT_KERNEL(faulty_bulk_copy_without_wait)
EXPORT_KERNEL(faulty_mbarrier)
EXPORT_KERNEL(faulty_rank)
EXPORT_KERNEL(faulty_operand_without_fence)
EXPORT_KERNEL(faulty_operand_of_another_block)
EXPORT_KERNEL(faulty_product_without_wait)
EXPORT_KERNEL(faulty_product_without_fence)
