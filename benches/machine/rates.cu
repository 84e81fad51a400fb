// rates.cu -- what bounds the LSTM's kernels on this GPU: tensor cores by mma.sync and wgmma, the second-level cache when all
// multiprocessors read the same, barriers of a cluster, stores to another block of it, and how many clusters fit.
//
//     nvcc -gencode=arch=compute_90a,code=sm_90a -O3 -std=c++17 -Ikernels -o rates benches/machine/rates.cu && ./rates
#include <cstdint>
#include <cstdio>
#include <cuda_runtime.h>

#include "common/device.cuh"

constexpr size_t kShared = 200 << 10;
constexpr int kMost = 1024;  // blocks of a launch

__device__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__global__ void __launch_bounds__(512, 1) barrier(long long* cycles, int rounds) {
  cluster_sync();
  const long long began = clock64();
  for (int i = 0; i < rounds; i++) cluster_sync();
  if (threadIdx.x == 0) cycles[blockIdx.x] = (clock64() - began) / rounds;
}

// Each thread writes 16 bytes to all blocks of its cluster, then all meet.
__global__ void __launch_bounds__(512, 1) exchange(long long* cycles, int rounds, uint32_t size) {
  extern __shared__ uint4 memory[];
  uint32_t rank;
  asm volatile("mov.u32 %0,%%cluster_ctarank;" : "=r"(rank));
  cluster_sync();
  const long long began = clock64();
  for (int i = 0; i < rounds; i++) {
    for (uint32_t next = 0; next < size; next++) {
      uint64_t to;
      asm volatile("mapa.u64 %0,%1,%2;" : "=l"(to) : "l"(memory + threadIdx.x), "r"((rank + next) % size));
      *reinterpret_cast<uint4*>(to) = make_uint4(i, next, rank, 0);
    }
    cluster_sync();
  }
  if (threadIdx.x == 0) cycles[blockIdx.x] = (clock64() - began) / rounds;
}

// All warps of all blocks read the same `packs` of 16 bytes, a warp AHEAD lines of 512 at a time.
template <int AHEAD>
__global__ void __launch_bounds__(512, 1) read(const uint4* from, long long* cycles, uint32_t packs, int rounds, uint4* sink) {
  const uint32_t lane = threadIdx.x % 32, first = threadIdx.x / 32 * 32 * AHEAD;
  uint32_t sum = 0;
  const long long began = clock64();
  for (int i = 0; i < rounds; i++) {
    for (uint32_t at = first; at + 32 * AHEAD <= packs; at += blockDim.x * AHEAD) {
      uint4 line[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; k++) line[k] = __ldg(from + at + k * 32 + lane);
#pragma unroll
      for (int k = 0; k < AHEAD; k++) sum ^= line[k].x ^ line[k].y ^ line[k].z ^ line[k].w;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) cycles[blockIdx.x] = (clock64() - began) / rounds;
  if (sum == 12345) sink->x = sum;
}

__global__ void __launch_bounds__(512, 1) multiply(long long* cycles, int rounds, float* sink) {
  float sums[16][4] = {};
  const uint32_t a[4] = {threadIdx.x, 2, 3, 4}, b[2] = {threadIdx.x * 7, 5};
  const long long began = clock64();
  for (int i = 0; i < rounds; i++)
#pragma unroll
    for (int k = 0; k < 16; k++)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                   : "+f"(sums[k][0]), "+f"(sums[k][1]), "+f"(sums[k][2]), "+f"(sums[k][3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - began;
  float all = 0;
  for (int k = 0; k < 16; k++) all += sums[k][0];
  if (all == 1.25f) *sink = all;
}

// Products of warpgroups, 64 x N x 16 each: A in registers, B in shared memory, eight begun before they are waited for.
template <int N> __global__ void __launch_bounds__(512, 1) multiply_together(long long* cycles, int rounds, float* sink) {
#ifdef HAS_WARPGROUPS
  __shared__ __align__(128) uint4 columns[2 * N];
  for (uint32_t i = threadIdx.x; i < 2 * N; i += blockDim.x) columns[i] = make_uint4(i * 77, i * 5, i, 3);
  dev::fence_async();
  __syncthreads();
  float sums[2][N / 2] = {};
  const uint4 a = make_uint4(threadIdx.x, 2, 3, 4);
  const uint64_t b = dev::wgmma_operand(columns, N * 16, 128);
  const long long began = clock64();
  for (int i = 0; i < rounds; i++) {
    dev::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; k++) dev::wgmma_f16(sums[k % 2], a, b);
    dev::wgmma_commit();
    dev::wgmma_wait<0>();
  }
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - began;
  dev::wgmma_done(sums[0]);
  dev::wgmma_done(sums[1]);
  float all = 0;
  for (int k = 0; k < N / 2; k++) all += sums[0][k] + sums[1][k];
  if (all == 1.25f) *sink = all;
#endif
}

static void expect(cudaError_t result) {
  if (result == cudaSuccess) return;
  fprintf(stderr, "%s\n", cudaGetErrorString(result));
  exit(1);
}

// Launches in clusters of `size` blocks; returns the mean of the blocks' cycles.
template <typename Kernel, typename... Arguments>
static double run(Kernel kernel, long long* cycles, int blocks, int size, int threads, Arguments... arguments) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(size), 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = blocks, launch.blockDim = threads, launch.attrs = &cluster, launch.numAttrs = 1;
  launch.dynamicSmemBytes = size > 1 ? kShared : 0;
  expect(cudaLaunchKernelEx(&launch, kernel, arguments...));
  expect(cudaDeviceSynchronize());
  static long long host[kMost];
  expect(cudaMemcpy(host, cycles, blocks * sizeof(long long), cudaMemcpyDeviceToHost));
  double sum = 0;
  for (int block = 0; block < blocks; block++) sum += double(host[block]);
  return sum / blocks;
}

template <typename Kernel> static int fitting(Kernel kernel, int size) {
  expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(size), 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = kMost, launch.blockDim = 512, launch.dynamicSmemBytes = kShared, launch.attrs = &cluster, launch.numAttrs = 1;
  int count = 0;
  expect(cudaOccupancyMaxActiveClusters(&count, kernel, &launch));
  return count;
}

int main() {
  cudaDeviceProp device;
  expect(cudaGetDeviceProperties(&device, 0));
  const int blocks = device.multiProcessorCount;
  printf("%s\n", device.name);
  long long* cycles;
  uint4* memory;
  constexpr uint32_t kBytes = 2 << 20;
  expect(cudaMalloc(&cycles, kMost * sizeof(long long)));
  expect(cudaMalloc(&memory, kBytes));
  expect(cudaMemset(memory, 1, kBytes));
  for (int size : {2, 4, 8, 16}) {
    fitting(barrier, size);
    const int fit = fitting(exchange, size);
    const double meet = run(barrier, cycles, fit * size, size, 512, cycles, 1000);
    const double told = run(exchange, cycles, fit * size, size, 512, cycles, 200, uint32_t(size));
    printf("clusters of %d: %d fit; barrier %.0f cycles; 8 KiB to each block: %.1f bytes a cycle\n", size, fit, meet,
           8192.0 * (size - 1) / (told - meet));
  }
  for (int threads : {256, 512})
    printf("L2, %d threads: %.0f bytes a cycle and multiprocessor, 4 lines ahead; %.0f, 12 ahead\n", threads,
           kBytes / run(read<4>, cycles, blocks, 1, threads, memory, cycles, kBytes / 16, 20, memory),
           kBytes / run(read<12>, cycles, blocks, 1, threads, memory, cycles, kBytes / 16, 20, memory));
  for (int threads : {128, 256, 512})
    printf("mma.sync m16n8k16, %d threads: %.2f cycles each a partition\n", threads,
           run(multiply, cycles, blocks, 1, threads, cycles, 1000, reinterpret_cast<float*>(memory)) / 16000 / (threads / 128));
  const auto together = [&](auto kernel, int columns) {
    for (int threads : {128, 256, 384, 512})
      printf("wgmma m64n%dk16, %d threads: %.1f cycles each a multiprocessor\n", columns, threads,
             run(kernel, cycles, blocks, 1, threads, cycles, 1000, reinterpret_cast<float*>(memory)) / 8000 / (threads / 128));
  };
  together(multiply_together<16>, 16);
  together(multiply_together<32>, 32);
  together(multiply_together<64>, 64);
}
