// atomics.h -- relaxed atomics, as CUDA's are. Integers only: a sum of floats would depend on the order of threads.
#pragma once
#include <type_traits>

#include "runtime.h"

namespace emu {
template <class T> using Same = std::type_identity_t<T>;  // keeps a parameter out of the deduction of T
template <class T, class Update> T atomic_update(T* at, Update update) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "an integer that CUDA updates atomically");
  maybe_yield();
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &old, T(update(old)), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
}  // namespace emu

#define EMU_ATOMIC(NAME, EXPRESSION)                                                 \
  template <class T> T atomic##NAME(T* at, emu::Same<T> value) {                     \
    return emu::atomic_update(at, [=](T old) { return static_cast<T>(EXPRESSION); }); \
  }
EMU_ATOMIC(Add, std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(value))
EMU_ATOMIC(Sub, std::make_unsigned_t<T>(old) - std::make_unsigned_t<T>(value))
EMU_ATOMIC(Min, value < old ? value : old)
EMU_ATOMIC(Max, value > old ? value : old)
EMU_ATOMIC(And, old & value)
EMU_ATOMIC(Or, old | value)
EMU_ATOMIC(Xor, old ^ value)
EMU_ATOMIC(Exch, ((void)old, value))
#undef EMU_ATOMIC
template <class T> T atomicCAS(T* at, emu::Same<T> expected, emu::Same<T> value) {
  return emu::atomic_update(at, [=](T old) { return old == expected ? value : old; });
}
