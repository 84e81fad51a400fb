// sanitizers.h -- what the runtime tells the address and thread sanitizers. Their functions are weak symbols: absent in
// plain builds. The runtime itself is never compiled with -fsanitize.
#pragma once
#include <cstddef>

#define EMU_WEAK __attribute__((weak))
extern "C" {
EMU_WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t);
EMU_WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t*);
EMU_WEAK void __asan_poison_memory_region(const volatile void*, size_t);
EMU_WEAK void __asan_unpoison_memory_region(const volatile void*, size_t);
EMU_WEAK void* __tsan_get_current_fiber();
EMU_WEAK void* __tsan_create_fiber(unsigned);
EMU_WEAK void __tsan_destroy_fiber(void*);
EMU_WEAK void __tsan_switch_to_fiber(void*, unsigned);
EMU_WEAK void __tsan_set_fiber_name(void*, const char*);
EMU_WEAK void __tsan_acquire(void*);
EMU_WEAK void __tsan_release(void*);
}
#undef EMU_WEAK

namespace emu::asan {
inline void poison(const void* p, size_t bytes) {
  if (__asan_poison_memory_region) __asan_poison_memory_region(p, bytes);
}
inline void unpoison(const void* p, size_t bytes) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(p, bytes);
}
}  // namespace emu::asan

// A context is what this sanitizer takes for a thread. Only release and acquire order two contexts.
namespace emu::tsan {
inline bool on() { return __tsan_create_fiber != nullptr; }
inline void* current() { return on() ? __tsan_get_current_fiber() : nullptr; }
inline void* create() { return on() ? __tsan_create_fiber(0) : nullptr; }
inline void destroy(void* context) {
  if (on()) __tsan_destroy_fiber(context);
}
inline void enter(void* context) {
  constexpr unsigned kNoSynchronisation = 1;
  if (on()) __tsan_switch_to_fiber(context, kNoSynchronisation);
}
inline void acquire(void* object) {
  if (on()) __tsan_acquire(object);
}
inline void release(void* object) {
  if (on()) __tsan_release(object);
}
}  // namespace emu::tsan
