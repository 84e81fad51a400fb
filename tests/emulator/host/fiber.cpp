// fiber.cpp -- stacks and the switch between them.
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#include "internal.h"

__thread emu::Thread* emu_thread;

// Saves the registers that a call preserves on the present stack, stores that stack's pointer, and goes on where the
// other stack was left.
extern "C" void emu_switch_stack(void** save, void* load);

#if defined(__x86_64__)
asm(R"(.text
.globl emu_switch_stack
.type emu_switch_stack,@function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stack,.-emu_switch_stack
.section .note.GNU-stack,"",@progbits
.text)");
constexpr int kSaved = 8, kReturn = 6;  // words on a new stack, and which of them is the return address
#elif defined(__aarch64__)
asm(R"(.text
.globl emu_switch_stack
.type emu_switch_stack,%function
emu_switch_stack:
  sub sp,sp,#160
  stp x19,x20,[sp]
  stp x21,x22,[sp,#16]
  stp x23,x24,[sp,#32]
  stp x25,x26,[sp,#48]
  stp x27,x28,[sp,#64]
  stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]
  stp d10,d11,[sp,#112]
  stp d12,d13,[sp,#128]
  stp d14,d15,[sp,#144]
  mov x9,sp
  str x9,[x0]
  mov sp,x1
  ldp x19,x20,[sp]
  ldp x21,x22,[sp,#16]
  ldp x23,x24,[sp,#32]
  ldp x25,x26,[sp,#48]
  ldp x27,x28,[sp,#64]
  ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]
  ldp d10,d11,[sp,#112]
  ldp d12,d13,[sp,#128]
  ldp d14,d15,[sp,#144]
  add sp,sp,#160
  ret
.size emu_switch_stack,.-emu_switch_stack
.section .note.GNU-stack,"",%progbits
.text)");
constexpr int kSaved = 20, kReturn = 11;
#else
#error "the emulator switches stacks on x86_64 and aarch64: add this machine to fiber.cpp"
#endif

namespace emu {
void prepare(Fiber* fiber, void (*entry)()) {
  void** words = reinterpret_cast<void**>(uintptr_t(fiber->stack + fiber->stack_bytes) & ~uintptr_t(15)) - kSaved;
  for (int i = 0; i < kSaved; i++) words[i] = nullptr;
  words[kReturn] = reinterpret_cast<void*>(entry);
  fiber->stack_pointer = words;
}

void switch_to(Fiber* next) {
  Fiber* before = self();
  if (before == next) return;
  const bool leaves_for_good = before->state == State::Returned && before != &launch->main;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(leaves_for_good ? nullptr : &before->asan_stack, next->stack, next->stack_bytes);
  tsan::enter(next->tsan);
  emu_thread = next;
  emu_switch_stack(&before->stack_pointer, next->stack_pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(self()->asan_stack, nullptr, nullptr);
}

// The thread sanitizer keeps a shadow of each page touched: smaller stacks keep it quick.
size_t stack_bytes() { return tsan::on() ? 64 << 10 : 256 << 10; }

// Mapped once per thread of the host, with a guard page below, and used again by every launch.
char* stack_of(size_t index) {
  static thread_local std::vector<char*> stacks;
  constexpr size_t kGuard = 64 << 10;  // a multiple of every page size
  while (stacks.size() <= index) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* start = mmap(nullptr, kGuard + stack_bytes(), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (start == MAP_FAILED || mprotect(start, kGuard, PROT_NONE)) {
      perror("emulator: no memory for stacks");
      abort();
    }
    stacks.push_back(static_cast<char*>(start) + kGuard);
  }
  return stacks[index];
}
}  // namespace emu
