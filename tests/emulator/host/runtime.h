// runtime.h -- what kernels call: the threads' indices, barriers, shared memory, and the table of kernels.
//
// Every CUDA thread is a fiber on the thread that launches. A fiber runs until it meets a collective or returns, so
// between two collectives the skew between threads is as large as it can be. What CUDA leaves undefined fails here, or
// yields NaN, instead of happening to work.
#pragma once
#include <array>
#include <source_location>
#include <type_traits>
#include <utility>

#include "language.h"

// ---- The interface to Rust (tests/emulator/src/lib.rs has the same declarations)
extern "C" {
struct EmulatorKernel {
  const char* name;
  const char* signature;         // one letter per parameter, see emu::code
  void (*call)(void** arguments);  // runs one thread
};
struct EmulatorConfig {
  uint32_t grid[3], block[3];
  uint32_t cluster;       // blocks per cluster, in x
  uint32_t shared_bytes;  // dynamic
  uint32_t order;         // of threads and blocks: 0 forward, 1 backward, 2 random
  uint32_t copies;        // asynchronous copies land 0 as late as they may, 1 at once, 2 at random
  uint64_t seed;
  const char* dropped;    // "file:line" of a synchronisation to leave out, or null
};
int emulator_launch(const EmulatorKernel*, const EmulatorConfig*, void** arguments, char* error, size_t room);
}

namespace emu {
using Site = std::source_location;  // as a last argument with default `Site at = Site::current()`: the caller's line

struct BlockInfo {
  uint3 index;
  dim3 dim, grid;
  unsigned cluster_rank, cluster_size;
};
struct Thread {
  uint3 index;
  unsigned lane;
  BlockInfo* block;
};

// Ends the launch: the message, the line, the thread and the block become its error.
[[noreturn]] void fail(Site at, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The lanes of a warp that meet in one operation; it runs once, in the last of them to arrive.
struct Lanes {
  void* arguments[32];
  uint32_t mask;
  const char* name;
  Site at;
};
using WarpOperation = void (*)(const Lanes&);
void meet(uint32_t mask, WarpOperation, void* argument, const char* name, Site at, bool orders_memory = false);
// An operation reads and writes the frames of other lanes, which the thread sanitizer would take for races.
#define EMU_ACROSS_LANES __attribute__((no_sanitize("thread"), noinline))

struct Votes { int count, all, any; };
Votes block_barrier(int vote, const char* name, Site at);
void named_barrier(int id, int threads, bool wait, Site at);
void cluster_barrier(bool arrive, bool wait, Site at);
void fence();
void maybe_yield();  // a point where a random schedule may let another thread go first

void* dynamic_shared();
void* static_shared(const void* key, const char* name, size_t bytes, size_t align, Site at);
void* cluster_shared(const void* mine, unsigned rank, Site at);

void copy_async(void* to, const void* from, unsigned bytes, Site at);
void copy_async_commit();
void copy_async_wait(unsigned keep, Site at);
void mbarrier_init(uint64_t* bar, unsigned count, Site at);
void mbarrier_arrive(uint64_t* bar, unsigned bytes, Site at);
void mbarrier_wait(uint64_t* bar, unsigned parity, Site at);
void bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* bar, Site at);
void wgmma(float* d, int columns, const uint4* a, uint64_t b, bool transposed, float (*to_float)(uint16_t), const char* name,
           Site at);
void wgmma_commit(Site at);
void wgmma_wait(unsigned keep, Site at);
void wgmma_fence(Site at);
uint64_t wgmma_operand(const void* first, uint32_t depth_stride, uint32_t column_stride, Site at);
void note_unfenced(const void* to);
void fence_async(bool of_cluster);
bool is_dropped(Site);
void expect_whole_warp(const Lanes& lanes);
void store_async(void* to, const std::array<unsigned char, 16>& value, uint64_t* bar, Site at);
}  // namespace emu

extern __thread emu::Thread* emu_thread;
#define threadIdx (emu_thread->index)
#define blockIdx (emu_thread->block->index)
#define blockDim (emu_thread->block->dim)
#define gridDim (emu_thread->block->grid)

static inline void __syncthreads(emu::Site at = emu::Site::current()) { emu::block_barrier(0, "__syncthreads", at); }
static inline int __syncthreads_count(int vote, emu::Site at = emu::Site::current()) {
  return emu::block_barrier(vote, "__syncthreads_count", at).count;
}
static inline int __syncthreads_and(int vote, emu::Site at = emu::Site::current()) {
  return emu::block_barrier(vote, "__syncthreads_and", at).all;
}
static inline int __syncthreads_or(int vote, emu::Site at = emu::Site::current()) {
  return emu::block_barrier(vote, "__syncthreads_or", at).any;
}
static inline void __threadfence() { emu::fence(); }
static inline void __threadfence_block() { emu::fence(); }
static inline void __trap(emu::Site at = emu::Site::current()) { emu::fail(at, "__trap"); }

// The address of a static per expansion (and per instance of a template around it) tells the variables apart.
#define SHARED(T, name, dims)                                                             \
  auto& name = *static_cast<std::remove_reference_t<T dims>*>(emu::static_shared(         \
      []() -> const void* { static char key; return &key; }(), #name, sizeof(T dims), alignof(T), emu::Site::current()))
#define SHARED_DYN(T, name) T* name = static_cast<T*>(emu::dynamic_shared())

namespace emu {
// A parameter's type as one letter, a struct's as s and its size; `Argument::code` in src/backend/gpu/launcher.rs has the
// same.
template <class T> constexpr char* write_code(char* to) {
  if constexpr (std::is_pointer_v<T>) *to++ = 'p';
  else if constexpr (std::is_same_v<T, float>) *to++ = 'f';
  else if constexpr (std::is_same_v<T, double>) *to++ = 'd';
  else if constexpr (std::is_class_v<T>) {
    static_assert(sizeof(T) < 10000, "no such argument of a kernel");
    *to++ = 's';
    for (unsigned place = 1000; place; place /= 10)
      if (sizeof(T) >= place) *to++ = char('0' + sizeof(T) / place % 10);
  } else {
    static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "no such argument of a kernel");
    if constexpr (sizeof(T) == 8) *to++ = std::is_signed_v<T> ? 'l' : 'L';
    else *to++ = std::is_signed_v<T> ? 'i' : 'I';
  }
  return to;
}
template <class... T> constexpr std::array<char, 5 * sizeof...(T) + 1> signature_of() {
  std::array<char, 5 * sizeof...(T) + 1> text{};
  char* to = text.data();
  ((to = write_code<std::remove_cv_t<T>>(to)), ...);
  return text;
}
template <auto Function> struct Entry;
template <class... T, void (*Function)(T...)> struct Entry<Function> {
  static constexpr auto signature = signature_of<T...>();
  template <size_t... I> static void call(void** arguments, std::index_sequence<I...>) {
    Function(*static_cast<std::remove_cv_t<T>*>(arguments[I])...);
  }
  static void call(void** arguments) { call(arguments, std::index_sequence_for<T...>{}); }
};
}  // namespace emu
#define EXPORT_KERNEL(f)                                                                  \
  extern "C" const EmulatorKernel emulator_kernel_##f;                                    \
  const EmulatorKernel emulator_kernel_##f = {#f, emu::Entry<&f>::signature.data(), emu::Entry<&f>::call};
