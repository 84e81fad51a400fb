// warp.h -- shuffles, votes and reductions over the lanes of a warp.
#pragma once
#include <cstring>

#include "runtime.h"

namespace emu {
template <class T> struct Shuffle {
  T in, out;
  int source;
};
template <class T> EMU_ACROSS_LANES void shuffle_lanes(const Lanes& lanes) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(lanes.mask >> lane & 1)) continue;
    auto* mine = static_cast<Shuffle<T>*>(lanes.arguments[lane]);
    if (!(lanes.mask >> mine->source & 1))
      fail(lanes.at, "%s: lane %d reads lane %d, which takes no part (mask %08x)", lanes.name, lane, mine->source,
           lanes.mask);
    mine->out = static_cast<Shuffle<T>*>(lanes.arguments[mine->source])->in;
  }
}
template <class T> T shuffle(uint32_t mask, T value, int source, const char* name, Site at) {
  static_assert(sizeof(T) <= 8 && std::is_arithmetic_v<T>, "a type that CUDA shuffles");
  Shuffle<T> argument{value, value, source};
  meet(mask, &shuffle_lanes<T>, &argument, name, at);
  return argument.out;
}

template <class T> struct Value { T in, out; };
template <class T> EMU_ACROSS_LANES T value_of(const Lanes& lanes, int lane) {
  return static_cast<Value<T>*>(lanes.arguments[lane])->in;
}
template <class T, class Fold> EMU_ACROSS_LANES void fold_lanes(const Lanes& lanes) {
  const int first = __builtin_ctz(lanes.mask);
  T sum = value_of<T>(lanes, first);
  for (int lane = first + 1; lane < 32; lane++)
    if (lanes.mask >> lane & 1) sum = Fold{}(sum, value_of<T>(lanes, lane));
  for (int lane = 0; lane < 32; lane++)
    if (lanes.mask >> lane & 1) static_cast<Value<T>*>(lanes.arguments[lane])->out = sum;
}
template <class T, class Fold> T reduce(uint32_t mask, T value, Fold, const char* name, Site at) {
  Value<T> argument{value, value};
  meet(mask, &fold_lanes<T, Fold>, &argument, name, at);
  return argument.out;
}

EMU_ACROSS_LANES inline void match_lanes(const Lanes& lanes) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(lanes.mask >> lane & 1)) continue;
    uint64_t same = 0;
    for (int other = 0; other < 32; other++)
      if (lanes.mask >> other & 1 && value_of<uint64_t>(lanes, other) == value_of<uint64_t>(lanes, lane))
        same |= 1u << other;
    static_cast<Value<uint64_t>*>(lanes.arguments[lane])->out = same;
  }
}
inline constexpr auto fold_or = [](uint32_t a, uint32_t b) { return a | b; };
inline constexpr auto fold_and = [](uint32_t a, uint32_t b) { return a & b; };
}  // namespace emu

static inline void __syncwarp(unsigned mask = ~0u, emu::Site at = emu::Site::current()) {
  emu::meet(mask, nullptr, nullptr, "__syncwarp", at, true);
}

template <class T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, emu::Site at = emu::Site::current()) {
  const int first = int(emu_thread->lane) & ~(width - 1);
  return emu::shuffle(mask, value, first | (from & (width - 1)), "__shfl_sync", at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, emu::Site at = emu::Site::current()) {
  const int lane = int(emu_thread->lane), from = lane - int(by);
  return emu::shuffle(mask, value, from < (lane & ~(width - 1)) ? lane : from, "__shfl_up_sync", at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, emu::Site at = emu::Site::current()) {
  const int lane = int(emu_thread->lane), from = lane + int(by);
  return emu::shuffle(mask, value, from > (lane | (width - 1)) ? lane : from, "__shfl_down_sync", at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, emu::Site at = emu::Site::current()) {
  const int lane = int(emu_thread->lane), from = lane ^ with;
  return emu::shuffle(mask, value, from > (lane | (width - 1)) ? lane : from, "__shfl_xor_sync", at);
}

static inline unsigned __ballot_sync(unsigned mask, int vote, emu::Site at = emu::Site::current()) {
  return emu::reduce(mask, uint32_t(vote != 0) << emu_thread->lane, emu::fold_or, "__ballot_sync", at);
}
static inline int __any_sync(unsigned mask, int vote, emu::Site at = emu::Site::current()) {
  return int(emu::reduce(mask, uint32_t(vote != 0), emu::fold_or, "__any_sync", at));
}
static inline int __all_sync(unsigned mask, int vote, emu::Site at = emu::Site::current()) {
  return int(emu::reduce(mask, uint32_t(vote != 0), emu::fold_and, "__all_sync", at));
}
template <class T> unsigned __match_any_sync(unsigned mask, T value, emu::Site at = emu::Site::current()) {
  emu::Value<uint64_t> argument{0, 0};
  std::memcpy(&argument.in, &value, sizeof value);
  emu::meet(mask, &emu::match_lanes, &argument, "__match_any_sync", at);
  return unsigned(argument.out);
}

#define EMU_REDUCE(NAME, T, EXPRESSION)                                                                  \
  static inline T __reduce_##NAME##_sync(unsigned mask, T value, emu::Site at = emu::Site::current()) {  \
    return emu::reduce(mask, value, [](T a, T b) { return T(EXPRESSION); }, "__reduce_" #NAME "_sync", at); \
  }
EMU_REDUCE(add, unsigned, a + b)
EMU_REDUCE(add, int, unsigned(a) + unsigned(b))
EMU_REDUCE(min, unsigned, b < a ? b : a)
EMU_REDUCE(min, int, b < a ? b : a)
EMU_REDUCE(max, unsigned, a < b ? b : a)
EMU_REDUCE(max, int, a < b ? b : a)
EMU_REDUCE(and, unsigned, a & b)
EMU_REDUCE(or, unsigned, a | b)
EMU_REDUCE(xor, unsigned, a ^ b)
#undef EMU_REDUCE
