// warpgroups.cpp -- products of warpgroups (wgmma): each warp's part runs when it is waited for, or at once, as copies land.
// A, B and D are read then, so that what is overwritten too early is found by wrong results.
#include <cstring>

#include "internal.h"

namespace emu {
// ---- What has been written to shared memory and not been made visible to products
void note_unfenced(const void* to) {
  RuntimeScope scope;
  launch->unfenced[reinterpret_cast<const void*>(uintptr_t(to) & ~uintptr_t(15))] = self();
}
void fence_async(bool of_cluster) {
  RuntimeScope scope;
  const Block* block = self()->home;
  const char *from = block->dynamic.start, *to = from + block->dynamic.bytes;
  std::erase_if(launch->unfenced, [&](const auto& entry) {
    return entry.second == self() && (of_cluster || (entry.first >= from && entry.first < to));
  });
  maybe_yield();
}

// ---- Products
// 16 bytes of B: the line-th eight values of a piece, which is one of two in depth and one for each eight columns.
static const char* eight_of(const Product& product, const Block* block, int depth, int columns, int line) {
  const uint64_t b = product.b;
  const size_t offset = (b & 0x3fff) * 16 + (b >> 16 & 0x3fff) * 16 * size_t(depth) +
                        (b >> 32 & 0x3fff) * 16 * size_t(columns) + size_t(line) * 16;
  if (offset + 16 > block->dynamic.bytes)
    fail(product.at, "%s reads %zu bytes into %zu of shared memory", product.name, offset, block->dynamic.bytes);
  const char* piece = block->dynamic.start + offset;
  const auto unfenced = launch->unfenced.find(piece);
  if (unfenced != launch->unfenced.end())
    fail(product.at, "%s reads what %s has written without a fence for it", product.name, describe(unfenced->second).c_str());
  return piece;
}

// Fragments as in the PTX manual, "Matrix fragments for wgmma.mma_async.m64nNk16": those of mma.m16n8k16.
EMU_ACROSS_LANES static void land(const Product& product, const Block* block) {
  float a[16][16];  // [depth][row]
  for (int lane = 0; lane < 32; lane++) {
    const uint4 words = *product.a[lane];
    const uint32_t mine[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 4; i++)
      for (int half = 0; half < 2; half++)
        a[lane % 4 * 2 + i / 2 * 8 + half][lane / 4 + i % 2 * 8] = product.to_float(uint16_t(mine[i] >> (16 * half)));
  }
  uint16_t b[16][256], eight[8];  // [depth][column]
  for (int depth = 0; depth < 2; depth++)
    for (int first = 0; first < product.columns; first += 8)
      for (int line = 0; line < 8; line++) {
        memcpy(eight, eight_of(product, block, depth, first / 8, line), 16);
        for (int i = 0; i < 8; i++)
          (product.transposed ? b[depth * 8 + line][first + i] : b[depth * 8 + i][first + line]) = eight[i];
      }
  for (int column = 0; column < product.columns; column++) {
    float sums[16] = {};
    for (int k = 0; k < 16; k++) {
      const float value = product.to_float(b[k][column]);
      for (int row = 0; row < 16; row++) sums[row] += a[k][row] * value;
    }
    for (int row = 0; row < 16; row++)
      product.d[row % 8 * 4 + column % 8 / 2][column / 8 * 4 + row / 8 * 2 + column % 2] += sums[row];
  }
}
// All products of groups that are `keep` behind the latest, or older.
static void land_products(Warp* warp, const Block* block, unsigned keep) {
  size_t kept = 0;
  for (size_t i = 0; i < warp->products.size(); i++) {
    if (warp->products[i].group + keep < warp->product_groups) {
      land(warp->products[i], block);
    } else {
      RuntimeScope scope;
      warp->products[kept++] = warp->products[i];
    }
  }
  RuntimeScope scope;
  warp->products.resize(kept);
}

struct Operands {
  float* d;
  const uint4* a;
  uint64_t b;
  int columns;
  bool transposed;
  float (*to_float)(uint16_t);
};
EMU_ACROSS_LANES static void begin_product(const Lanes& lanes) {
  expect_whole_warp(lanes);
  Warp* warp = self()->warp;
  if (!warp->fenced) fail(lanes.at, "%s without wgmma_fence since the last group", lanes.name);
  const auto* first = static_cast<Operands*>(lanes.arguments[0]);
  for (void* argument : lanes.arguments)
    if (static_cast<Operands*>(argument)->b != first->b) fail(lanes.at, "%s: lanes name different operands B", lanes.name);
  RuntimeScope scope;
  Product& product = warp->products.emplace_back();  // in place, as meetings are
  product.b = first->b;
  product.columns = first->columns;
  product.transposed = first->transposed;
  product.to_float = first->to_float;
  product.group = warp->product_groups;
  product.name = lanes.name;
  product.at = lanes.at;
  for (int lane = 0; lane < 32; lane++) {
    const auto* mine = static_cast<Operands*>(lanes.arguments[lane]);
    product.d[lane] = mine->d;
    product.a[lane] = mine->a;
  }
}
void wgmma(float* d, int columns, const uint4* a, uint64_t b, bool transposed, float (*to_float)(uint16_t), const char* name,
           Site at) {
  Operands argument{d, a, b, columns, transposed, to_float};
  meet(~0u, &begin_product, &argument, name, at);
}

EMU_ACROSS_LANES static void end_group(const Lanes& lanes) {
  expect_whole_warp(lanes);
  Warp* warp = self()->warp;
  warp->product_groups++;
  warp->fenced = false;
  if (launch->copies_land_at_once()) land_products(warp, self()->home, 0);
}
void wgmma_commit(Site at) { meet(~0u, &end_group, nullptr, "wgmma_commit", at); }

EMU_ACROSS_LANES static void wait_for_groups(const Lanes& lanes) {
  expect_whole_warp(lanes);
  land_products(self()->warp, self()->home, *static_cast<unsigned*>(lanes.arguments[0]));
}
void wgmma_wait(unsigned keep, Site at) {
  if (!is_dropped(at)) meet(~0u, &wait_for_groups, &keep, "wgmma_wait", at);
}

// All four warps, or a deadlock is reported.
void wgmma_fence(Site at) {
  warpgroup_barrier(at);
  self()->warp->fenced = true;
}

uint64_t wgmma_operand(const void* first, uint32_t depth_stride, uint32_t column_stride, Site at) {
  const size_t offset = size_t(static_cast<const char*>(first) - self()->home->dynamic.start);
  if (offset % 16 || depth_stride % 16 || column_stride % 16)
    fail(at, "wgmma_operand: %zu, %u and %u bytes are not multiples of 16", offset, depth_stride, column_stride);
  return offset / 16 | uint64_t(depth_stride / 16) << 16 | uint64_t(column_stride / 16) << 32;
}
}  // namespace emu
