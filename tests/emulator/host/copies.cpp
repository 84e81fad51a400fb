// copies.cpp -- asynchronous copies (cp.async, bulk copies) and the mbarriers that count them.
#include <cstring>

#include "internal.h"

namespace emu {
static void land(const Copy& copy) {
  volatile size_t bytes = copy.from_bytes;  // unknown to the compiler: it must call memcpy, which sanitizers intercept
  // A value is on some fiber's stack, which the thread sanitizer takes for that fiber's: it must not see this read.
  static thread_local std::array<unsigned char, 16> value;
  value = copy.value;
  memcpy(copy.to, copy.from ? copy.from : value.data(), bytes);
  const size_t rest = copy.bytes - copy.from_bytes;
  if (rest) memset(static_cast<char*>(copy.to) + copy.from_bytes, 0, rest);
  if (!copy.bar) note_unfenced(copy.to);
}

// ---- cp.async
void copy_async(void* to, const void* from, unsigned bytes, Site at) {
  if (bytes > 16) fail(at, "cp.async of 16 bytes takes %u from global memory", bytes);
  if (uintptr_t(to) % 16 || uintptr_t(from) % 16) fail(at, "cp.async: %p to %p is not aligned to 16 bytes", from, to);
  Fiber* fiber = self();
  const Copy copy{to, from, 16, bytes, fiber->copy_groups, nullptr, at, {}};
  if (launch->copies_land_at_once()) return land(copy);
  RuntimeScope scope;
  fiber->copies.push_back(copy);
}
void copy_async_commit() { self()->copy_groups++; }
void copy_async_wait(unsigned keep, Site at) {
  if (is_dropped(at)) return;
  Fiber* fiber = self();
  size_t kept = 0;
  for (const Copy& copy : fiber->copies) {
    if (copy.group + keep < fiber->copy_groups) land(copy);
    else fiber->copies[kept++] = copy;
  }
  RuntimeScope scope;
  fiber->copies.resize(kept);
}
void land_all_copies(Fiber* fiber) {
  for (const Copy& copy : fiber->copies) land(copy);
  fiber->copies.clear();
}

// ---- mbarriers
struct Mbarrier {  // in the 8 bytes that the kernel gives it
  uint32_t phase : 1, count : 15, pending : 15, never_initialised : 1;
  int32_t bytes;  // expected and not landed
};
static_assert(sizeof(Mbarrier) == 8);

static Mbarrier load(const uint64_t* bar) {
  Mbarrier state;
  memcpy(&state, bar, sizeof state);
  return state;
}
static void store_and_maybe_flip(uint64_t* bar, Mbarrier state) {
  const bool ended = !state.pending && !state.bytes;
  if (ended) {
    state.phase ^= 1;
    state.pending = state.count;
  }
  memcpy(bar, &state, sizeof state);
  if (!ended) return;
  RuntimeScope scope;
  auto& waiters = launch->mbarrier_waiters;
  for (size_t i = 0; i < waiters.size();) {
    if (waiters[i]->awaited_bar == bar) {
      wake(waiters[i]);
      waiters.erase(waiters.begin() + long(i));
    } else {
      i++;
    }
  }
}

void mbarrier_init(uint64_t* bar, unsigned count, Site at) {
  if (uintptr_t(bar) % 8) fail(at, "mbarrier at %p is not aligned to 8 bytes", static_cast<void*>(bar));
  if (!count || count >> 15) fail(at, "mbarrier for %u arrivals", count);
  const Mbarrier state{0, count & 0x7fff, count & 0x7fff, 0, 0};
  memcpy(bar, &state, sizeof state);
}
void mbarrier_arrive(uint64_t* bar, unsigned bytes, Site at) {
  tsan::release(bar);
  Mbarrier state = load(bar);
  if (state.never_initialised) fail(at, "mbarrier before its initialisation");
  if (!state.pending) fail(at, "mbarrier: more arrivals than its %u", unsigned(state.count));
  state.bytes += int(bytes);
  state.pending = (state.pending - 1) & 0x7fff;
  store_and_maybe_flip(bar, state);
  maybe_yield();
}
void mbarrier_wait(uint64_t* bar, unsigned parity, Site at) {
  if (is_dropped(at)) return;
  if (load(bar).never_initialised) fail(at, "mbarrier before its initialisation");
  Fiber* fiber = self();
  while (load(bar).phase == (parity & 1)) {
    fiber->awaited_bar = bar;
    {
      RuntimeScope scope;
      launch->mbarrier_waiters.push_back(fiber);
    }
    wait_here("mbarrier wait", at);
  }
  tsan::acquire(bar);
}

// ---- Bulk copies, and stores to another block
static void land_bulk(const Copy& copy, void* context_after) {
  tsan::enter(launch->copy_context);
  tsan::acquire(copy.bar);
  land(copy);
  tsan::release(copy.bar);
  tsan::enter(context_after);
  Mbarrier state = load(copy.bar);
  state.bytes -= int(copy.bytes);
  store_and_maybe_flip(copy.bar, state);
}
static void begin(const Copy& copy) {
  if (load(copy.bar).never_initialised) fail(copy.at, "mbarrier before its initialisation");
  tsan::release(copy.bar);
  if (launch->copies_land_at_once()) return land_bulk(copy, self()->tsan);
  RuntimeScope scope;
  launch->bulk_copies.push_back(copy);
}
void bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* bar, Site at) {
  if (uintptr_t(to) % 16 || uintptr_t(from) % 16 || bytes % 16)
    fail(at, "bulk copy: %u bytes from %p to %p are not aligned to 16", bytes, from, to);
  begin({to, from, bytes, bytes, 0, bar, at, {}});
}
void store_async(void* to, const std::array<unsigned char, 16>& value, uint64_t* bar, Site at) {
  if (uintptr_t(to) % 16) fail(at, "store to a block: %p is not aligned to 16", to);
  begin({to, nullptr, 16, 16, 0, bar, at, value});
}
void land_a_bulk_copy() {
  auto& copies = launch->bulk_copies;
  const size_t index = launch->is_random() ? launch->random() % copies.size() : 0;
  const Copy copy = copies[index];
  copies.erase(copies.begin() + long(index));
  land_bulk(copy, launch->main.tsan);
}
// A block that ends gives its shared memory away.
void check_copies_to(const Block* block) {
  if (launch->failed()) return;
  const char *begin = block->memory.get(), *end = begin + block->memory_bytes;
  for (const Copy& copy : launch->bulk_copies) {
    if (copy.to < begin || copy.to >= end) continue;
    const uint3 b = block->index;
    launch->error = text("a block ends before a bulk copy to it has landed, of ") + describe(copy.at) +
                    text(" [block %u,%u,%u]", b.x, b.y, b.z);
    return;
  }
}
}  // namespace emu
