// conformance.cu -- what each wrapper and intrinsic means, in exact integers: run on the emulator always, and on a GPU
// where there is one. Every kernel takes 32-bit words in and out; tests/conformance.rs computes what they must be.
#include "common/reduce.cuh"
#include "common/status.cuh"

#define CONFORMANCE_KERNEL(name) extern "C" __global__ void name(const uint32_t* in, uint32_t* out)

// Appends one word per thread: row after row of blockDim.x words.
struct Rows {
  uint32_t* out;
  __device__ void put(uint32_t word) {
    out[threadIdx.x] = word;
    out += blockDim.x;
  }
};

// ---- Language
CONFORMANCE_KERNEL(conform_indices) {
  const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
  out[block * blockDim.x + threadIdx.x] = block << 16 | gridDim.y << 12 | in[0] << 8 | threadIdx.x;
}

CONFORMANCE_KERNEL(conform_vectors) {
  const int t = threadIdx.x;
  const uint4 four = reinterpret_cast<const uint4*>(in)[t];
  const uint2 two = make_uint2(four.z, four.w);
  reinterpret_cast<uint4*>(out)[t] = make_uint4(two.y, two.x, four.y, four.x);
}

// Two static arrays and the dynamic one are different memory; the dynamic one is aligned to 128 bytes.
CONFORMANCE_KERNEL(conform_shared_memory) {
  SHARED(uint32_t, first, [64]);
  SHARED(uint16_t, second, [2][64]);
  SHARED_DYN(uint32_t, dynamic);
  const int t = threadIdx.x, other = 63 - t;
  first[t] = in[t];
  second[t % 2][t] = uint16_t(in[t] * 3);
  dynamic[t] = in[t] * 5;
  __syncthreads();
  Rows rows{out};
  rows.put(first[other]);
  rows.put(second[other % 2][other]);
  rows.put(dynamic[other]);
  rows.put(uint32_t(reinterpret_cast<uintptr_t>(dynamic) % 128));
}

CONFORMANCE_KERNEL(conform_cache_hints) {
  Rows rows{out};
  rows.put(__ldg(in + threadIdx.x));
  rows.put(__ldcg(in + threadIdx.x));
  rows.put(__ldcs(in + threadIdx.x));
  __stcg(rows.out + threadIdx.x, in[threadIdx.x]);
  __stcs(rows.out + blockDim.x + threadIdx.x, in[threadIdx.x]);
}

// ---- Arithmetic
CONFORMANCE_KERNEL(conform_bits) {
  const uint32_t v = in[threadIdx.x];
  const unsigned long long wide = static_cast<unsigned long long>(v) * 0x100000001ull << 7;
  Rows rows{out};
  rows.put(uint32_t(__popc(v) | __clz(int(v)) << 8 | __ffs(int(v)) << 16));
  const long long bits = static_cast<long long>(wide);
  rows.put(uint32_t(__popcll(wide) | __clzll(bits) << 8 | __ffsll(bits) << 16));
  rows.put(__umulhi(v, 0x9E3779B9u));
  rows.put(uint32_t(__umul64hi(wide, 0x9E3779B97F4A7C15ull)));
  rows.put(__byte_perm(v, 0xaabbccdd, 0x7152));
  rows.put(__byte_perm(v, 0xaabbccdd, 0xf98c));
  rows.put(__float_as_uint(__uint_as_float(v)) ^ uint32_t(__float_as_int(__int_as_float(int(v)))));
  rows.put(uint32_t(__double_as_longlong(__longlong_as_double(bits)) >> 32));
}

CONFORMANCE_KERNEL(conform_arithmetic) {
  const int v = int(in[threadIdx.x]) - 50;
  const float f = float(v);
  Rows rows{out};
  rows.put(uint32_t(min(v, 7) * 1000 + max(v, -7)));
  rows.put(uint32_t(int(min(f, 7.0f) * 1000 + max(f, -7.0f))));
  rows.put(uint32_t(int(__fmaf_rn(f, 3.0f, __fadd_rn(f, __fmul_rn(f, 5.0f))))));
  rows.put(uint32_t(int(__expf(f * 0) + __logf(1.0f))));
  rows.put(uint32_t(int(rintf(__fdividef(f, 0.25f) + rsqrtf(0.0625f)))));
  rows.put(uint32_t(signbit(-0.0f)) * 8 + uint32_t(isfinite(f * INFINITY)) * 4 + uint32_t(isinf(INFINITY)) * 2 +
           uint32_t(isnan(NAN)));
  rows.put(__float_as_uint(dev::exp2_approx(f * 4)));
  rows.put(uint32_t(fabsf(dev::tanh_approx(f / 16) - tanhf(f / 16)) <= 0x1p-10f * fabsf(tanhf(f / 16))));
  const double a = 1.0 + 0x1p-30;  // a fused product and difference would leave 2^-60
  rows.put(uint32_t(dev::mul_rn(a, a) - (1.0 + 0x1p-29) == 0));
}

// in: bits of a float per thread. out: as half and bfloat16, alone and in pairs.
CONFORMANCE_KERNEL(conform_to_half) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float f = __uint_as_float(in[i]);
  const __half2 halves = __floats2half2_rn(f, -f);
  const __nv_bfloat162 brains = __floats2bfloat162_rn(-f, f);
  out[i * 3] = __half_as_ushort(__float2half_rn(f)) | uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(f))) << 16;
  out[i * 3 + 1] = __half_as_ushort(halves.x) | uint32_t(__half_as_ushort(halves.y)) << 16;
  out[i * 3 + 2] = __bfloat16_as_ushort(brains.x) | uint32_t(__bfloat16_as_ushort(brains.y)) << 16;
}

// in: 16 bits per thread. out: as float, from half and from bfloat16.
CONFORMANCE_KERNEL(conform_from_half) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i * 2] = __float_as_uint(__half2float(__ushort_as_half(uint16_t(in[i]))));
  out[i * 2 + 1] = __float_as_uint(__bfloat162float(__ushort_as_bfloat16(uint16_t(in[i]))));
}

// in: two values of 16 bits for each of 256 threads. out: the larger of each and those of another thread, as half and as bfloat16.
CONFORMANCE_KERNEL(conform_larger_halves) {
  const int i = threadIdx.x;
  const uint32_t a = in[i], b = in[(i * 7 + 3) % 256];
  const __half2 half = __hmax2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  const __nv_bfloat162 brain =
      __hmax2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  out[i * 2] = *reinterpret_cast<const uint32_t*>(&half);
  out[i * 2 + 1] = *reinterpret_cast<const uint32_t*>(&brain);
}

// ---- Warps and blocks
CONFORMANCE_KERNEL(conform_shuffles) {
  const uint32_t v = in[threadIdx.x];
  Rows rows{out};
  rows.put(__shfl_sync(~0u, v, 5));
  rows.put(__shfl_sync(~0u, v, 5, 8));
  rows.put(__shfl_up_sync(~0u, v, 3, 16));
  rows.put(__shfl_down_sync(~0u, v, 3, 16));
  rows.put(__shfl_xor_sync(~0u, v, 17));
  rows.put(__shfl_xor_sync(~0u, v, 9, 8));
  rows.put(uint32_t(__shfl_xor_sync(~0u, double(v), 1)));
  // Two parts of a warp at once.
  rows.put(threadIdx.x % 32 < 12 ? __shfl_sync(0xfffu, v, 11) : __shfl_sync(0xfffff000u, v, 20));
}

CONFORMANCE_KERNEL(conform_votes) {
  const uint32_t v = in[threadIdx.x];
  Rows rows{out};
  rows.put(__ballot_sync(~0u, v & 1));
  rows.put(uint32_t(__any_sync(~0u, v == 7) * 2 + __all_sync(~0u, v < 90)));
  rows.put(__match_any_sync(~0u, v % 3));
  rows.put(__reduce_add_sync(~0u, v));
  rows.put(uint32_t(__reduce_min_sync(~0u, int(v) - 50)));
  rows.put(uint32_t(__reduce_max_sync(~0u, int(v) - 90)));
  rows.put(__reduce_min_sync(~0u, v) * 256 + __reduce_max_sync(~0u, v));
  rows.put(__reduce_or_sync(~0u, v) << 16 | __reduce_and_sync(~0u, v | 3) << 8 | __reduce_xor_sync(~0u, v));
  rows.put(uint32_t(__syncthreads_count(v & 4)));
  rows.put(uint32_t(__syncthreads_and(v < 101) != 0) * 2 + uint32_t(__syncthreads_or(v == 101) != 0));
}

// in: bits of a float per thread. out: the largest of its warp.
CONFORMANCE_KERNEL(conform_highest_of_warps) { out[threadIdx.x] = __float_as_uint(warp_highest(__uint_as_float(in[threadIdx.x]))); }

// Lanes hand a value round through shared memory.
CONFORMANCE_KERNEL(conform_syncwarp) {
  SHARED(uint32_t, cell, [64]);
  const int t = threadIdx.x, warp = t / 32 * 32;
  cell[t] = in[t];
  __syncwarp();
  const uint32_t next = cell[warp + (t + 1) % 32];
  __syncwarp();
  cell[t] = next * 2;
  __syncwarp();
  out[t] = cell[warp + (t + 5) % 32];
}

// The first half of the block hands its values to the second.
CONFORMANCE_KERNEL(conform_named_barriers) {
  SHARED(uint32_t, buffer, [64]);
  const int t = threadIdx.x;
  if (t < 64) {
    buffer[t] = in[t] * 3;
    dev::named_barrier_arrive(1, 128);
  } else {
    dev::named_barrier_sync(1, 128);
    out[t - 64] = buffer[127 - t];
  }
}

// Each sum twice, as the second call uses the first one's shared memory again.
CONFORMANCE_KERNEL(conform_block_sum) {
  const uint32_t v = in[threadIdx.x];
  const uint32_t whole = block_sum(v), again = block_sum(v * 2);
  const double real = block_sum(double(v)), other = block_sum(double(v) * 2);
  const uint32_t most = block_max(v + 101 * threadIdx.x), rest = block_max(100 - v);
  if (threadIdx.x != 0) return;
  out[0] = whole;
  out[1] = again;
  out[2] = uint32_t(real);
  out[3] = uint32_t(other);
  out[4] = most;
  out[5] = rest;
}

// ---- Memory
CONFORMANCE_KERNEL(conform_atomics) {
  const uint32_t v = in[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&out[0], v);
  atomicSub(&out[1], v);
  atomicMax(&out[2], v);
  atomicMin(reinterpret_cast<int*>(&out[3]), -int(v));
  atomicOr(&out[4], v);
  atomicAnd(&out[5], ~v);  // 0 at first: stays so
  atomicXor(&out[6], v);
  for (uint32_t seen = 0, old; (old = atomicCAS(&out[7], seen, seen + v)) != seen; seen = old) {
  }
  atomicAdd(&out[8], atomicExch(&out[9], v));  // all but the last to come
  atomicAdd(reinterpret_cast<unsigned long long*>(&out[10]), static_cast<unsigned long long>(v) << 30);
}

CONFORMANCE_KERNEL(conform_first_fault) {
  auto* status = reinterpret_cast<unsigned long long*>(out);
  const unsigned row = threadIdx.x;
  if (row == 0) *status = ~0ull;
  __syncthreads();
  if (in[row] == 7) note_fault(status, row, kBadWeight);
}

// The last block to finish adds up what all have stored; out[1..] are the blocks' sums and out[64] counts the blocks.
CONFORMANCE_KERNEL(conform_last_block) {
  SHARED(bool, last, [1]);
  const uint32_t sum = __reduce_add_sync(~0u, in[blockIdx.x * 32 + threadIdx.x]);
  if (threadIdx.x == 0) {
    out[1 + blockIdx.x] = sum;
    __threadfence();
    last[0] = atomicAdd(&out[64], 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last[0]) return;
  __threadfence();
  uint32_t total = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += 32) total += __ldcg(&out[1 + i]);
  total = __reduce_add_sync(~0u, total);
  if (threadIdx.x == 0) out[0] = total;
}

// Copy i of a thread's two groups takes (5 i) % 17 bytes from global memory, the rest is zeros.
CONFORMANCE_KERNEL(conform_cp_async) {
  SHARED_DYN(uint32_t, tile);  // [2][32][4]
  const int t = threadIdx.x;
  for (int group = 0; group < 2; group++) {
    const int i = group * 32 + t;
    dev::cp_async16(tile + i * 4, in + i * 4, unsigned(5 * i % 17));
    dev::cp_async_commit();
  }
  const int other = 31 - t;
  dev::cp_async_wait<1>();
  __syncwarp();
  for (int k = 0; k < 4; k++) out[other * 4 + k] = tile[other * 4 + k];
  dev::cp_async_wait<0>();
  __syncwarp();
  for (int k = 0; k < 4; k++) out[128 + other * 4 + k] = tile[128 + other * 4 + k];
}

// ---- Matrices
// in: 32 rows of 8 16-bit values. out: what each lane gets, plainly and transposed, of rows named in another order.
CONFORMANCE_KERNEL(conform_ldmatrix) {
  SHARED_DYN(uint32_t, rows);
  const int lane = threadIdx.x;
  for (int k = 0; k < 4; k++) rows[lane * 4 + k] = in[lane * 4 + k];
  __syncwarp();
  uint32_t plain[4], transposed[4];
  dev::ldmatrix_x4(plain, rows + (lane * 5 % 32) * 4);
  dev::ldmatrix_x4_trans(transposed, rows + (lane * 5 % 32) * 4);
  for (int i = 0; i < 4; i++) out[lane * 4 + i] = plain[i];
  for (int i = 0; i < 4; i++) out[128 + lane * 4 + i] = transposed[i];
}

// in: fragments of A (4 words per lane), of B (2) and of C (4 floats). out: fragments of A B + C.
template <typename Mma> DEV_FN void mma_of_fragments(const uint32_t* in, uint32_t* out, Mma mma) {
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; i++) a[i] = in[lane * 4 + i];
  for (int i = 0; i < 2; i++) b[i] = in[128 + lane * 2 + i];
  for (int i = 0; i < 4; i++) d[i] = __uint_as_float(in[192 + lane * 4 + i]);
  mma(d, a, b);
  for (int i = 0; i < 4; i++) out[lane * 4 + i] = __float_as_uint(d[i]);
}
CONFORMANCE_KERNEL(conform_mma_f16) {
  mma_of_fragments(in, out, [](float(&d)[4], uint32_t(&a)[4], uint32_t(&b)[2]) { dev::mma_m16n8k16_f16(d, a, b); });
}
CONFORMANCE_KERNEL(conform_mma_bf16) {
  mma_of_fragments(in, out, [](float(&d)[4], uint32_t(&a)[4], uint32_t(&b)[2]) { dev::mma_m16n8k16_bf16(d, a, b); });
}

// in: A [16][16] and B [16][16], both row-major halves. out: A B as floats, [16][16]. As a kernel would do it: both tiles
// through shared memory, A by ldmatrix, B (to be read by columns) by its transposed form.
CONFORMANCE_KERNEL(conform_tile_product) {
  SHARED_DYN(__half, tiles);
  __half *a = tiles, *b = tiles + 256;
  const int lane = threadIdx.x;
  for (int i = lane; i < 512; i += 32) tiles[i] = __ushort_as_half(uint16_t(in[i / 2] >> (i % 2 * 16)));
  __syncwarp();
  uint32_t of_a[4], of_b[4];
  dev::ldmatrix_x4(of_a, a + lane % 16 * 16 + lane / 16 * 8);
  dev::ldmatrix_x4_trans(of_b, b + lane % 16 * 16 + lane / 16 * 8);
  for (int half = 0; half < 2; half++) {
    float d[4] = {};
    const uint32_t columns[2] = {of_b[2 * half], of_b[2 * half + 1]};
    dev::mma_m16n8k16_f16(d, of_a, columns);
    for (int i = 0; i < 4; i++)
      out[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = __float_as_uint(d[i]);
  }
}

// in: 16-bit values of two matrices in pairs, as accumulators hold them (2 words per lane). out: their columns, which lanes name
// in another order.
CONFORMANCE_KERNEL(conform_stmatrix) {
#ifdef HAS_WARPGROUPS
  SHARED_DYN(uint32_t, columns);  // [16][4]
  const int lane = threadIdx.x;
  dev::stmatrix_x2_trans(columns + lane * 5 % 16 * 4, in[lane * 2], in[lane * 2 + 1]);
  __syncwarp();
  out[lane * 2] = columns[lane * 2];
  out[lane * 2 + 1] = columns[lane * 2 + 1];
#endif
}

// in: A as fragments (4 words per thread of four warps), and B: N + 8 columns of 16 values. out: each thread's 2 * N / 4 sums of
// A B + A B', where B' is B from its second column on (its ninth where columns lie side by side), and what they started from.
template <int N, bool TRANSPOSED = false, typename Product>
DEV_FN void product_of_warpgroup(const uint32_t* in, uint32_t* out, uint32_t* b, Product product) {
#ifdef HAS_WARPGROUPS
  constexpr uint32_t kDepth = (N + 8) * 16 + 48;  // bytes of shared memory: pieces of 8 columns by 8 values
  const int t = threadIdx.x;
  for (int i = t; i < (N + 8) * 8; i += 128) {
    const int column = i / 8, pair = i % 8;
    if (TRANSPOSED) {
      auto* values = reinterpret_cast<uint16_t*>(b) + pair / 4 * (kDepth / 2) + column / 8 * 64 + column % 8;
      values[pair % 4 * 16] = uint16_t(in[512 + i]);
      values[pair % 4 * 16 + 8] = uint16_t(in[512 + i] >> 16);
    } else b[pair / 4 * (kDepth / 4) + column / 8 * 32 + column % 8 * 4 + pair % 4] = in[512 + i];
  }
  dev::fence_async();
  __syncthreads();
  const uint4 a = reinterpret_cast<const uint4*>(in)[t];
  float d[N / 2];
  for (int i = 0; i < N / 2; i++) d[i] = float(t % 7 + i);
  const uint64_t operand = dev::wgmma_operand(b, kDepth, 128);
  dev::wgmma_fence();
  product(d, a, operand);
  dev::wgmma_commit();
  dev::wgmma_fence();
  product(d, a, operand + (TRANSPOSED ? 8 : 1));
  dev::wgmma_commit();
  dev::wgmma_wait<1>();
  dev::wgmma_wait<0>();
  dev::wgmma_done(d);
  for (int i = 0; i < N / 2; i++) out[t * (N / 2) + i] = uint32_t(int(d[i]));
#endif
}
#ifdef HAS_WARPGROUPS
#define OF_WARPGROUP(TYPE) [](auto& d, const uint4& a, uint64_t b) { dev::wgmma_##TYPE(d, a, b); }
#else
#define OF_WARPGROUP(TYPE) 0
#endif
#define CONFORMANCE_OF_WARPGROUPS(name, TYPE, ...)                      \
  CONFORMANCE_KERNEL(name) {                                            \
    SHARED_DYN(uint32_t, b);                                            \
    product_of_warpgroup<__VA_ARGS__>(in, out, b, OF_WARPGROUP(TYPE));  \
  }
CONFORMANCE_OF_WARPGROUPS(conform_wgmma_16, f16, 16)
CONFORMANCE_OF_WARPGROUPS(conform_wgmma_32, f16, 32)
CONFORMANCE_OF_WARPGROUPS(conform_wgmma_64, f16, 64)
CONFORMANCE_OF_WARPGROUPS(conform_wgmma_bf16, bf16, 32)
CONFORMANCE_OF_WARPGROUPS(conform_wgmma_trans_32, bf16_trans, 32, true)
CONFORMANCE_OF_WARPGROUPS(conform_wgmma_trans_64, bf16_trans, 64, true)
CONFORMANCE_OF_WARPGROUPS(conform_wgmma_trans_128, bf16_trans, 128, true)
CONFORMANCE_OF_WARPGROUPS(conform_wgmma_trans_208, bf16_trans, 208, true)

// ---- Clusters, mbarriers and bulk copies: compute capability 9.0
// Each block reads the static and the dynamic shared memory of the next block of its cluster.
CONFORMANCE_KERNEL(conform_cluster) {
#ifdef HAS_CLUSTERS
  SHARED(uint32_t, fixed, [32]);
  SHARED_DYN(uint32_t, dynamic);
  const unsigned i = blockIdx.x * 32 + threadIdx.x, size = dev::cluster_size();
  const unsigned next = (dev::cluster_rank() + 1) % size;
  fixed[threadIdx.x] = in[i];
  dynamic[threadIdx.x] = in[i] * 3;
  dev::cluster_sync();
  out[i] = dev::cluster_map(fixed, next)[31 - threadIdx.x];
  out[gridDim.x * 32 + i] = dev::cluster_map(dynamic, next)[31 - threadIdx.x] + size + 16 * dev::clusters();
  dev::cluster_arrive();  // no block may end while another reads its memory
  dev::cluster_wait();
#endif
}

// Stages of 64 words through two buffers: one thread fetches, all add, and an mbarrier each way says when.
CONFORMANCE_KERNEL(conform_bulk_copy) {
#ifdef HAS_CLUSTERS
  constexpr int kStages = 5, kWords = 64;
  SHARED_DYN(uint32_t, buffer);  // [2][kWords]
  SHARED(uint64_t, full, [2]);
  SHARED(uint64_t, empty, [2]);
  const int t = threadIdx.x;
  if (t == 0) {
    for (int side = 0; side < 2; side++) {
      dev::mbar_init(&full[side], 1);
      dev::mbar_init(&empty[side], kWords);
    }
    dev::mbar_init_fence();
  }
  __syncthreads();
  uint32_t sum = 0;
  for (int stage = 0; stage < kStages; stage++) {
    const int side = stage % 2, round = stage / 2;
    if (t == 0) {
      if (round > 0) dev::mbar_wait(&empty[side], unsigned(round - 1) & 1);
      dev::mbar_arrive_expect_tx(&full[side], kWords * 4);
      dev::bulk_load(buffer + side * kWords, in + stage * kWords, kWords * 4, &full[side]);
    }
    dev::mbar_wait(&full[side], unsigned(round) & 1);
    sum += buffer[side * kWords + (t + stage) % kWords] * uint32_t(stage + 1);
    dev::mbar_arrive(&empty[side]);
  }
  out[t] = sum;
#endif
}

// Each thread of a block tells one value to the same thread of all blocks, in every round another; two places in turns.
CONFORMANCE_KERNEL(conform_store_to_block) {
#ifdef HAS_CLUSTERS
  constexpr unsigned kRounds = 5, kThreads = 32;
  SHARED(uint4, told, [2][4 * kThreads]);  // [place][block, thread]
  SHARED(uint64_t, all, [2]);
  const unsigned t = threadIdx.x, size = dev::cluster_size(), rank = dev::cluster_rank();
  if (t == 0) {
    for (int place = 0; place < 2; place++) dev::mbar_init(&all[place], 1);
    dev::mbar_init_fence();
  }
  dev::cluster_sync();
  uint32_t sum = 0;
  for (unsigned round = 0; round < kRounds; round++) {
    const unsigned place = round % 2;
    if (t == 0) dev::mbar_arrive_expect_tx(&all[place], size * kThreads * 16);
    const uint32_t word = in[blockIdx.x * kThreads + t] * (round + 1);
    for (unsigned to = 0; to < size; to++)
      dev::store_to_block(&told[place][rank * kThreads + t], make_uint4(word, to, round, ~word), &all[place], to);
    dev::mbar_wait(&all[place], round / 2 % 2);
    for (unsigned from = 0; from < size; from++) {
      const uint4 got = told[place][from * kThreads + (t + round) % kThreads];
      sum = sum * 31 + (got.y == rank && got.z == round && got.w == ~got.x ? got.x : 0);
    }
  }
  out[blockIdx.x * kThreads + t] = sum;
#endif
}

EXPORT_KERNEL(conform_indices)
EXPORT_KERNEL(conform_vectors)
EXPORT_KERNEL(conform_shared_memory)
EXPORT_KERNEL(conform_cache_hints)
EXPORT_KERNEL(conform_bits)
EXPORT_KERNEL(conform_arithmetic)
EXPORT_KERNEL(conform_to_half)
EXPORT_KERNEL(conform_from_half)
EXPORT_KERNEL(conform_larger_halves)
EXPORT_KERNEL(conform_shuffles)
EXPORT_KERNEL(conform_votes)
EXPORT_KERNEL(conform_highest_of_warps)
EXPORT_KERNEL(conform_syncwarp)
EXPORT_KERNEL(conform_named_barriers)
EXPORT_KERNEL(conform_block_sum)
EXPORT_KERNEL(conform_atomics)
EXPORT_KERNEL(conform_first_fault)
EXPORT_KERNEL(conform_last_block)
EXPORT_KERNEL(conform_cp_async)
EXPORT_KERNEL(conform_ldmatrix)
EXPORT_KERNEL(conform_mma_f16)
EXPORT_KERNEL(conform_mma_bf16)
EXPORT_KERNEL(conform_tile_product)
EXPORT_KERNEL(conform_stmatrix)
EXPORT_KERNEL(conform_wgmma_16)
EXPORT_KERNEL(conform_wgmma_32)
EXPORT_KERNEL(conform_wgmma_64)
EXPORT_KERNEL(conform_wgmma_bf16)
EXPORT_KERNEL(conform_wgmma_trans_32)
EXPORT_KERNEL(conform_wgmma_trans_64)
EXPORT_KERNEL(conform_wgmma_trans_128)
EXPORT_KERNEL(conform_wgmma_trans_208)
EXPORT_KERNEL(conform_cluster)
EXPORT_KERNEL(conform_store_to_block)
EXPORT_KERNEL(conform_bulk_copy)
