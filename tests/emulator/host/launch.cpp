// launch.cpp -- a launch from its first block to its last: clusters run one after another, the blocks of one together.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <pthread.h>
#include <sys/mman.h>

#include "internal.h"

namespace emu {
static void fiber_main() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  launch->kernel->call(launch->arguments);
  return_from_thread(self());
  __builtin_trap();
}

static dim3 dimensions(const uint32_t (&from)[3]) { return {from[0], from[1], from[2]}; }

static std::unique_ptr<Block> make_block(uint3 index, unsigned rank) {
  const EmulatorConfig* config = launch->config;
  auto block = std::make_unique<Block>();
  static_cast<BlockInfo&>(*block) = {index, dimensions(config->block), dimensions(config->grid), rank, config->cluster};
  block->threads = config->block[0] * config->block[1] * config->block[2];
  block->warps.resize((block->threads + 31) / 32);
  block->warpgroups.resize((block->threads + 127) / 128);
  for (Warp& warp : block->warps) warp.rank = uint32_t(launch->random());
  make_shared_memory(block.get());
  return block;
}

static void make_fiber(Block* block, unsigned number, size_t slot, char* stacks) {
  auto fiber = std::make_unique<Fiber>();
  const dim3 dim = block->dim;
  fiber->index = {number % dim.x, number / dim.x % dim.y, number / (dim.x * dim.y)};
  fiber->lane = number % 32;
  fiber->block = block;
  fiber->home = block;
  fiber->warp = &block->warps[number / 32];
  fiber->warp->returned &= ~(1u << fiber->lane);
  fiber->warp->lanes[fiber->lane] = fiber.get();
  fiber->state = State::Ready;
  fiber->stack_bytes = stack_bytes();
  fiber->stack = stacks ? stacks + slot * fiber->stack_bytes : stack_of(slot);
  asan::unpoison(fiber->stack, fiber->stack_bytes);  // frames of an abandoned fiber
  fiber->tsan = tsan::create();
  if (tsan::on()) __tsan_set_fiber_name(fiber->tsan, describe(fiber.get()).c_str());
  prepare(fiber.get(), &fiber_main);
  fiber->number = uint32_t(slot);
  wake(fiber.get());
  launch->fibers.push_back(std::move(fiber));
}

// Frees the blocks such that, for the thread sanitizer, the end of one cluster is not ordered before the next begins.
static void free_under_thread_sanitizer(char* stacks, size_t bytes) {
  for (auto& fiber : launch->fibers) {
    if (fiber->state == State::Returned) continue;
    tsan::enter(fiber->tsan);  // abandoned after a failure
    tsan::release(&launch->ended);
  }
  tsan::enter(launch->main.tsan);
  std::vector<void*> contexts;
  for (auto& fiber : launch->fibers) contexts.push_back(fiber->tsan);
  void* reaper = tsan::create();
  tsan::enter(reaper);
  tsan::acquire(&launch->ended);
  munmap(stacks, bytes);
  launch->blocks.clear();
  launch->fibers.clear();
  tsan::enter(launch->main.tsan);
  contexts.push_back(reaper);
  for (void* context : contexts) tsan::destroy(context);
}

static void run_cluster(uint3 first) {
  const EmulatorConfig* config = launch->config;
  const unsigned threads = config->block[0] * config->block[1] * config->block[2];
  launch->fibers.clear();
  launch->blocks.clear();
  launch->ready = {};
  launch->unfenced.clear();
  launch->running = launch->cluster.threads = config->cluster * threads;
  // Fresh stacks, as their mapping is what clears the thread sanitizer's memory of them.
  const size_t bytes = launch->running * stack_bytes();
  void* stacks = nullptr;
  if (tsan::on())
    stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (unsigned rank = 0; rank < config->cluster; rank++) {
    launch->blocks.push_back(make_block({first.x + rank, first.y, first.z}, rank));
    for (unsigned number = 0; number < threads; number++)
      make_fiber(launch->blocks[rank].get(), number, rank * threads + number, static_cast<char*>(stacks));
  }
  run_fibers();
  for (auto& block : launch->blocks) check_overruns(block.get());
  if (tsan::on()) free_under_thread_sanitizer(static_cast<char*>(stacks), bytes);
}

static std::vector<uint3> clusters(const EmulatorConfig* config) {
  std::vector<uint3> all;
  for (unsigned z = 0; z < config->grid[2]; z++)
    for (unsigned y = 0; y < config->grid[1]; y++)
      for (unsigned x = 0; x < config->grid[0]; x += config->cluster) all.push_back({x, y, z});
  if (config->order == 1) std::reverse(all.begin(), all.end());
  if (config->order == 2)
    for (size_t i = all.size(); i > 1; i--) std::swap(all[i - 1], all[launch->random() % i]);
  return all;
}

static std::string refuse(const EmulatorConfig* config) {
  const auto [grid, block] = std::pair(dimensions(config->grid), dimensions(config->block));
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (!threads || threads > 1024 || block.z > 64)
    return text("a block of %u x %u x %u threads", block.x, block.y, block.z);
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return text("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  if (config->shared_bytes > 227 << 10) return text("%u bytes of dynamic shared memory", config->shared_bytes);
  if (!config->cluster || config->cluster > 16 || grid.x % config->cluster)
    return text("clusters of %u blocks in a grid of %u", config->cluster, grid.x);
  return launch ? "a launch inside a launch" : "";
}

// The stack of the thread that launches, which the address sanitizer wants to hear about.
static void describe_own_stack(Fiber* main) {
  pthread_attr_t attributes;
  void* bottom;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &main->stack_bytes);
  pthread_attr_destroy(&attributes);
  main->stack = static_cast<char*>(bottom);
}

static void run(Launch* state) {
  launch = state;
  emu_thread = &state->main;
  describe_own_stack(&state->main);
  void* caller = tsan::current();
  state->main.tsan = tsan::create();
  state->copy_context = tsan::create();
  tsan::enter(state->main.tsan);
  for (uint3 first : clusters(state->config)) {
    run_cluster(first);
    if (state->failed()) break;
  }
  tsan::acquire(&state->ended);
  state->blocks.clear();
  state->fibers.clear();
  tsan::release(&state->ended);
  tsan::enter(caller);
  tsan::acquire(&state->ended);
  tsan::destroy(state->copy_context);
  tsan::destroy(state->main.tsan);
  launch = nullptr;
  emu_thread = nullptr;
}
}  // namespace emu

// 0, or 1 with `error` filled.
extern "C" int emulator_launch(const EmulatorKernel* kernel, const EmulatorConfig* config, void** arguments, char* error,
                               size_t room) {
  std::string message = emu::refuse(config);
  if (message.empty()) {
    emu::Launch state{kernel, config, arguments};
    state.random_state = config->seed * 0x9E3779B97F4A7C15ull + 0x1234567;
    emu::run(&state);
    message = state.error;
  }
  snprintf(error, room, "%s", message.c_str());
  return !message.empty();
}
