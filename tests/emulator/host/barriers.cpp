// barriers.cpp -- where threads wait for each other: warps, blocks, clusters; and fences.
#include <cstring>

#include "internal.h"

namespace emu {
static bool same(Site a, Site b) { return a.line() == b.line() && !strcmp(a.file_name(), b.file_name()); }

// After completing a collective: go on, or under a random schedule let another go first.
static void maybe_let_another_go() {
  if (launch->is_random() && (launch->random() & 1)) yield();
}

// ---- Warps
static void complete(Warp* warp, size_t index, const Fiber* last) {
  Meeting& meeting = warp->meetings[index];
  meeting.mask = meeting.arrived;  // less the lanes that have returned
  if (meeting.operation) meeting.operation(meeting);
  for (uint32_t rest = meeting.arrived; rest; rest &= rest - 1) {
    Fiber* fiber = warp->lanes[__builtin_ctz(rest)];
    if (fiber != last) wake(fiber);
  }
  RuntimeScope scope;
  warp->meetings.erase(warp->meetings.begin() + long(index));
}

void meet(uint32_t mask, WarpOperation operation, void* argument, const char* name, Site at, bool orders_memory) {
  if (!operation && is_dropped(at)) return;
  Fiber* fiber = self();
  Warp* warp = fiber->warp;
  if (!(mask >> fiber->lane & 1)) fail(at, "%s: lane %u is not in its own mask %08x", name, fiber->lane, mask);
  if (orders_memory) tsan::release(warp);
  size_t index = 0;
  while (index < warp->meetings.size() && warp->meetings[index].mask != mask) index++;
  if (index == warp->meetings.size()) {
    RuntimeScope scope;
    // In place: the sanitizer would see a copy from this fiber's stack, which the kernel uses again, as the runtime's.
    Meeting& meeting = warp->meetings.emplace_back();
    meeting.mask = mask;
    meeting.name = name;
    meeting.at = at;
    meeting.operation = operation;
  }
  Meeting& meeting = warp->meetings[index];
  if (meeting.operation != operation || strcmp(meeting.name, name))
    fail(at, "lanes of one warp meet in different operations: %s at %s, and %s", meeting.name,
         describe(meeting.at).c_str(), name);
  meeting.arguments[fiber->lane] = argument;
  meeting.arrived |= 1u << fiber->lane;
  if (meeting.arrived == (mask & ~warp->returned)) {
    complete(warp, index, fiber);
    maybe_let_another_go();
  } else {
    wait_here(name, at);
  }
  if (orders_memory) tsan::acquire(warp);
}

void expect_whole_warp(const Lanes& lanes) {
  if (lanes.mask != ~0u) fail(lanes.at, "%s needs the whole warp, but lanes %08x meet", lanes.name, lanes.mask);
}

// ---- Blocks
static Votes arrive(Barrier* barrier, unsigned threads, int vote, bool wait, const char* name, Site at,
                    bool orders_memory = true) {
  Fiber* fiber = self();
  if (!barrier->arrived) {
    barrier->votes = {0, 1, 0};
    barrier->at = at;
  }
  if (orders_memory) tsan::release(barrier);
  barrier->arrived++;
  barrier->votes.count += vote != 0;
  barrier->votes.all &= vote != 0;
  barrier->votes.any |= vote != 0;
  if (barrier->arrived == threads) {
    barrier->arrived = 0;
    fiber->votes = barrier->votes;
    for (Fiber* waiter : barrier->waiters) {
      waiter->votes = barrier->votes;
      wake(waiter);
    }
    barrier->waiters.clear();
    maybe_let_another_go();
  } else if (wait) {
    {
      RuntimeScope scope;
      barrier->waiters.push_back(fiber);
    }
    wait_here(name, at);
  }
  if (wait && orders_memory) tsan::acquire(barrier);
  return fiber->votes;
}

Votes block_barrier(int vote, const char* name, Site at) {
  if (is_dropped(at)) return {0, 0, 0};
  Block* block = self()->home;
  Barrier* barrier = &block->barriers[0];
  if (block->returned)
    fail(at, "divergent barrier: %s, but %u thread(s) of the block have returned", name, block->returned);
  if (barrier->arrived && !same(barrier->at, at))
    fail(at, "divergent barrier: threads of the block wait at %s, others meet", describe(barrier->at).c_str());
  return arrive(barrier, block->threads, vote, true, name, at);
}
void named_barrier(int id, int threads, bool wait, Site at) {
  if (is_dropped(at)) return;
  if (id < 1 || id > 15) fail(at, "named barrier %d: there are 1 to 15", id);
  if (threads <= 0 || threads % 32) fail(at, "named barrier %d: %d threads are no whole warps", id, threads);
  arrive(&self()->home->barriers[id], unsigned(threads), 0, wait, wait ? "bar.sync" : "bar.arrive", at);
}

// Where the four warps of a warpgroup wait for each other; it orders nothing that they write.
void warpgroup_barrier(Site at) {
  Block* block = self()->home;
  const unsigned warp = unsigned(self()->warp - block->warps.data());
  if (block->threads % 128) fail(at, "a block of %u threads is no whole warpgroups", block->threads);
  arrive(&block->warpgroups[warp / 4], 128, 0, true, "wgmma_fence", at, false);
}

// ---- Clusters
static void check_cluster() {
  ClusterBarrier* barrier = &launch->cluster;
  if (!barrier->threads || barrier->arrived != barrier->threads) return;
  barrier->arrived = 0;
  barrier->phase++;
  for (Fiber* fiber : barrier->waiters) wake(fiber);
  barrier->waiters.clear();
}
void cluster_barrier(bool arrives, bool waits, Site at) {
  if (is_dropped(at)) return;
  ClusterBarrier* barrier = &launch->cluster;
  Fiber* fiber = self();
  if (arrives) {
    tsan::release(barrier);
    fiber->cluster_phase = barrier->phase;
    barrier->arrived++;
    check_cluster();
  }
  if (!waits) return;
  if (barrier->phase == fiber->cluster_phase) {
    {
      RuntimeScope scope;
      barrier->waiters.push_back(fiber);
    }
    wait_here("cluster barrier", at);
  } else {
    maybe_let_another_go();
  }
  tsan::acquire(barrier);
}

// A thread that has returned is no longer waited for, but by a block's barrier, which must not be left out.
void leave_barriers(Fiber* fiber) {
  Block* block = fiber->home;
  Warp* warp = fiber->warp;
  block->returned++;
  warp->returned |= 1u << fiber->lane;
  if (!warp->products.empty() && !launch->failed()) {
    RuntimeScope scope;
    launch->error = text("a thread ends before its warp has waited for products, [%s]", describe(fiber).c_str());
  }
  for (size_t i = 0; i < warp->meetings.size();) {
    const Meeting& meeting = warp->meetings[i];
    if (meeting.arrived == (meeting.mask & ~warp->returned)) complete(warp, i, nullptr);
    else i++;
  }
  const Barrier& barrier = block->barriers[0];
  if (barrier.arrived && !launch->failed()) {
    RuntimeScope scope;
    launch->error = text("divergent barrier: %u thread(s) wait at ", barrier.arrived) + describe(barrier.at) +
                    ", another returned [" + describe(fiber) + "]";
  }
  launch->cluster.threads--;
  check_cluster();
}

void fence() {
  tsan::release(&launch->fenced);
  tsan::acquire(&launch->fenced);
  maybe_yield();
}
}  // namespace emu
