// shared_memory.cpp -- each block's shared memory: 0xFF (a NaN) until written, aligned as declared and no better, with
// canaries around each variable.
#include <cstring>

#include "internal.h"

namespace emu {
constexpr size_t kStatic = 64 << 10;  // room for static variables and their canaries
constexpr size_t kCanary = 256;
constexpr char kCanaryByte = char(0xa5);
constexpr size_t kDynamicAlign = 128;

// Byte by byte through volatile: neither sanitizer sees these writes.
static void fill(char* from, size_t bytes, char value) {
  for (size_t i = 0; i < bytes; i++) static_cast<volatile char*>(from)[i] = value;
}
// The first address from `from` on that is a multiple of `align` and not of 2 `align`.
static char* align_no_better(char* from, size_t align) {
  const size_t over = uintptr_t(from) % (2 * align);
  return from + (3 * align - over) % (2 * align);
}
static void open(const SharedVariable& variable) {
  fill(variable.start - kCanary, kCanary, kCanaryByte);
  fill(variable.start + variable.bytes, kCanary, kCanaryByte);
  asan::unpoison(variable.start, variable.bytes);
  fill(variable.start, variable.bytes, char(0xff));
}

void make_shared_memory(Block* block) {
  const size_t dynamic_bytes = launch->config->shared_bytes;
  block->memory_bytes = kStatic + dynamic_bytes + 2 * kCanary + 2 * kDynamicAlign;
  block->memory.reset(new char[block->memory_bytes]);
  asan::poison(block->memory.get(), block->memory_bytes);
  char* start = align_no_better(block->memory.get() + kStatic + kCanary, kDynamicAlign);
  block->dynamic = {nullptr, "dynamic", Site::current(), start, dynamic_bytes};
  open(block->dynamic);
}

void* dynamic_shared() { return self()->home->dynamic.start; }

void* static_shared(const void* key, const char* name, size_t bytes, size_t align, Site at) {
  Block* block = self()->home;
  for (const SharedVariable& variable : block->variables)
    if (variable.key == key) return variable.start;
  char* start = align_no_better(block->memory.get() + block->static_bytes + kCanary, align);
  const size_t end = size_t(start - block->memory.get()) + bytes;
  if (end + kCanary > kStatic) fail(at, "%s: more static shared memory than the emulator's %zu bytes", name, kStatic);
  RuntimeScope scope;
  block->static_bytes = end;
  block->variables.push_back({key, name, at, start, bytes});
  open(block->variables.back());
  return start;
}

static bool contains(const SharedVariable& variable, const char* p) {
  return p >= variable.start && p < variable.start + variable.bytes;
}
void* cluster_shared(const void* mine, unsigned rank, Site at) {
  if (rank >= launch->blocks.size()) fail(at, "block %u of a cluster of %zu", rank, launch->blocks.size());
  const Block *here = self()->home, *there = launch->blocks[rank].get();
  const char* p = static_cast<const char*>(mine);
  if (contains(here->dynamic, p)) return there->dynamic.start + (p - here->dynamic.start);
  for (const SharedVariable& variable : here->variables) {
    if (!contains(variable, p)) continue;
    for (const SharedVariable& theirs : there->variables)
      if (theirs.key == variable.key) return theirs.start + (p - variable.start);
    fail(at, "block %u of the cluster has not reached the declaration of %s", rank, variable.name);
  }
  fail(at, "not shared memory of this block");
}

void poison_shared_memory(Block* block) {
  fill(block->dynamic.start, block->dynamic.bytes, char(0xff));
  for (const SharedVariable& variable : block->variables) fill(variable.start, variable.bytes, char(0xff));
}

static bool is_intact(const char* canary) {
  for (size_t i = 0; i < kCanary; i++)
    if (static_cast<const volatile char*>(canary)[i] != kCanaryByte) return false;
  return true;
}
static void check_overrun(const Block* block, const SharedVariable& variable) {
  if (launch->failed() || (is_intact(variable.start - kCanary) && is_intact(variable.start + variable.bytes))) return;
  const uint3 b = block->index;
  launch->error = text("shared memory overrun: next to the %zu bytes of %s", variable.bytes, variable.name);
  if (variable.key) launch->error += " at " + describe(variable.at);
  launch->error += text(" [block %u,%u,%u]", b.x, b.y, b.z);
}
void check_overruns(Block* block) {
  asan::unpoison(block->memory.get(), block->memory_bytes);
  check_overrun(block, block->dynamic);
  for (const SharedVariable& variable : block->variables) check_overrun(block, variable);
}
}  // namespace emu
