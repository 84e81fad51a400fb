// scheduler.cpp -- which fiber runs next, and what to say when none can.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "internal.h"

namespace emu {
__thread Launch* launch;

uint64_t Launch::random() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 0x2545F4914F6CDD1Dull >> 32;
}
bool Launch::copies_land_at_once() { return config->copies == 1 || (config->copies == 2 && (random() & 1)); }

std::string text(const char* format, ...) {
  char line[600];
  va_list values;
  va_start(values, format);
  vsnprintf(line, sizeof line, format, values);
  va_end(values);
  return line;
}
std::string describe(const Fiber* fiber) {
  const uint3 t = fiber->index, b = fiber->home->index;
  return text("thread %u,%u,%u of block %u,%u,%u", t.x, t.y, t.z, b.x, b.y, b.z);
}
std::string describe(Site at) {
  const char* slash = strrchr(at.file_name(), '/');
  return text("%s:%u", slash ? slash + 1 : at.file_name(), unsigned(at.line()));
}

void fail(Site at, const char* format, ...) {
  tsan::enter(launch->main.tsan);
  char message[600];
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  launch->error = message + (" at " + describe(at)) + " [" + describe(self()) + "]";
  switch_to(&launch->main);  // the fibers are abandoned where they are
  __builtin_unreachable();
}

// `config->dropped` names this line: mutation tests leave the synchronisation out.
bool is_dropped(Site at) {
  const char* dropped = launch->config->dropped;
  const char* colon = dropped ? strrchr(dropped, ':') : nullptr;
  if (!colon || unsigned(atoi(colon + 1)) != at.line()) return false;
  const size_t length = size_t(colon - dropped), whole = strlen(at.file_name());
  return whole >= length && !strncmp(at.file_name() + whole - length, dropped, length);
}

// All fibers wait or have returned: where the waiting ones are, grouped by place.
static void report_deadlock() {
  struct Place { const Fiber* example; unsigned threads; };
  std::vector<Place> places;
  unsigned returned = 0;
  for (auto& fiber : launch->fibers) {
    if (fiber->state == State::Returned) {
      returned++;
      continue;
    }
    auto same = std::find_if(places.begin(), places.end(), [&](const Place& place) {
      const Fiber* other = place.example;
      return other->waits_in == fiber->waits_in && describe(other->waits_at) == describe(fiber->waits_at);
    });
    if (same == places.end()) places.push_back({fiber.get(), 1});
    else same->threads++;
  }
  launch->error = "deadlock:";
  for (const Place& place : places) {
    launch->error += text(" %u thread(s) wait in %s at ", place.threads, place.example->waits_in);
    launch->error += describe(place.example->waits_at) + " [e.g. " + describe(place.example) + "],";
  }
  launch->error += text(" %u have returned", returned);
}

static Fiber* take_ready() {
  Fiber* fiber = launch->ready.top().second;
  launch->ready.pop();
  return fiber;
}

static Fiber* pick() {
  RuntimeScope scope;
  while (!launch->failed()) {
    if (!launch->ready.empty()) return take_ready();
    if (!launch->bulk_copies.empty()) {  // nothing else can go on: the latest that a copy may land
      land_a_bulk_copy();
      continue;
    }
    if (launch->running) report_deadlock();
    break;
  }
  return &launch->main;
}

void run_fibers() { switch_to(pick()); }

// The first thread, or the last, of those that can run, so that warps get as far apart as barriers let them. At random:
// the lanes of the warp of highest rank, in any order; ranks change now and then.
static uint64_t priority(Fiber* fiber) {
  if (launch->config->order == 0) return ~fiber->number;
  if (launch->config->order == 1) return fiber->number;
  if (launch->random() % 16 == 0) fiber->warp->rank = uint32_t(launch->random());
  return uint64_t(fiber->warp->rank) << 32 | uint32_t(launch->random());
}
void wake(Fiber* fiber) {
  RuntimeScope scope;
  fiber->state = State::Ready;
  launch->ready.push({priority(fiber), fiber});
}
void wait_here(const char* what, Site at) {
  Fiber* fiber = self();
  if (launch->config->copies == 2 && launch->random() % 4 == 0) land_all_copies(fiber);
  fiber->state = State::Waiting;
  fiber->waits_in = what;
  fiber->waits_at = at;
  switch_to(pick());
}
void yield() {
  self()->warp->rank = uint32_t(launch->random());
  wake(self());
  switch_to(pick());
}
void maybe_yield() {
  if (launch->is_random() && !(launch->random() & 3)) yield();
}

// The end of a fiber: what waited for it goes on, and its stack is never returned to.
void return_from_thread(Fiber* fiber) {
  land_all_copies(fiber);
  tsan::release(&launch->ended);
  fiber->state = State::Returned;
  launch->running--;
  leave_barriers(fiber);
  Block* block = fiber->home;
  if (block->returned == block->threads) {
    check_copies_to(block);
    poison_shared_memory(block);  // no other block may read it any more
  }
  switch_to(pick());
}
}  // namespace emu
