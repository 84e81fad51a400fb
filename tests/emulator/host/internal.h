// internal.h -- the state of a launch, and what the files of the runtime call of each other.
#pragma once
#include <memory>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime.h"
#include "sanitizers.h"

namespace emu {
struct Block;
struct Fiber;

// An asynchronous copy that has not landed: of cp.async (group), or a bulk copy or a store to a block (bar).
struct Copy {
  void* to;
  const void* from;
  unsigned bytes, from_bytes;  // the rest becomes zeros
  unsigned group;
  uint64_t* bar;
  Site at;
  std::array<unsigned char, 16> value{};  // of a store, where `from` is null
};

// Lanes that wait for the others of their mask.
struct Meeting : Lanes {
  WarpOperation operation;
  uint32_t arrived = 0;
};
// One warp's part of a product that has not run.
struct Product {
  float* d[32];
  const uint4* a[32];
  uint64_t b;
  int columns;
  bool transposed;
  float (*to_float)(uint16_t);
  unsigned group;
  const char* name;
  Site at;
};
struct Warp {
  uint32_t rank = 0;  // see wake
  uint32_t returned = ~0u;  // or never there
  Fiber* lanes[32] = {};
  std::vector<Meeting> meetings;
  std::vector<Product> products;
  unsigned product_groups = 0;  // committed
  bool fenced = false;          // for the next group
};

struct Barrier {
  unsigned arrived = 0;
  Votes votes{};
  Site at;  // of the first to arrive
  std::vector<Fiber*> waiters;
};
struct ClusterBarrier {
  unsigned threads = 0, arrived = 0, phase = 0;
  std::vector<Fiber*> waiters;
};

enum class State : uint8_t { Ready, Waiting, Returned };
struct Fiber : Thread {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  size_t stack_bytes = 0;
  void *asan_stack = nullptr, *tsan = nullptr;
  Block* home = nullptr;
  Warp* warp = nullptr;
  State state = State::Returned;
  uint32_t number = 0;  // among the threads of its cluster
  const char* waits_in = "";
  Site waits_at;
  Votes votes{};                    // the result of its last block barrier
  unsigned cluster_phase = 0;       // in which it arrived at the cluster's barrier
  std::vector<Copy> copies;         // of cp.async
  unsigned copy_groups = 0;         // committed
  uint64_t* awaited_bar = nullptr;  // the mbarrier that it waits for
};

// A variable in shared memory, and where in the source it is declared.
struct SharedVariable {
  const void* key;
  const char* name;
  Site at;
  char* start;
  size_t bytes;
};
struct Block : BlockInfo {
  unsigned threads = 0, returned = 0;
  std::vector<Warp> warps;
  Barrier barriers[16];
  std::vector<Barrier> warpgroups;
  std::unique_ptr<char[]> memory;
  size_t memory_bytes = 0, static_bytes = 0;
  SharedVariable dynamic{};
  std::vector<SharedVariable> variables;
};

struct Launch {
  const EmulatorKernel* kernel;
  const EmulatorConfig* config;
  void** arguments;
  std::string error{};
  Fiber main{};
  std::vector<std::unique_ptr<Fiber>> fibers{};  // of the cluster that runs, thread by thread, block by block
  std::vector<std::unique_ptr<Block>> blocks{};
  ClusterBarrier cluster{};
  std::priority_queue<std::pair<uint64_t, Fiber*>> ready{};
  std::vector<Fiber*> mbarrier_waiters{};
  std::vector<Copy> bulk_copies{};
  std::unordered_map<const void*, Fiber*> unfenced{};  // 16 bytes of shared memory, and who has written them
  unsigned running = 0;  // fibers that have not returned
  uint64_t random_state = 0;
  void* copy_context = nullptr;  // the thread sanitizer's context of asynchronous copies
  char ended{}, fenced{};        // its objects: threads that returned, fences

  uint64_t random();
  bool is_random() const { return config->order == 2; }
  bool copies_land_at_once();
  bool failed() const { return !error.empty(); }
};
extern __thread Launch* launch;

inline Fiber* self() { return static_cast<Fiber*>(emu_thread); }

// While it lives, the runtime's own memory is not taken for the kernel thread's.
struct RuntimeScope {
  void* before = tsan::current();
  RuntimeScope() { tsan::enter(launch->main.tsan); }
  ~RuntimeScope() { tsan::enter(before); }
};

// scheduler.cpp
void run_fibers();
void wait_here(const char* what, Site at);
void wake(Fiber*);
void yield();
std::string describe(const Fiber*);
std::string describe(Site);
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
void return_from_thread(Fiber*);

// fiber.cpp
void switch_to(Fiber*);
char* stack_of(size_t index);
size_t stack_bytes();
void prepare(Fiber*, void (*entry)());

// barriers.cpp
void leave_barriers(Fiber*);
void warpgroup_barrier(Site);

// copies.cpp
void land_all_copies(Fiber*);
void land_a_bulk_copy();
void check_copies_to(const Block*);

// shared_memory.cpp
void make_shared_memory(Block*);
void poison_shared_memory(Block*);
void check_overruns(Block*);
}  // namespace emu
