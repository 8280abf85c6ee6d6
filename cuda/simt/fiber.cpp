// Implementation of fiber.h: the switch between the stacks of fibers. The switch follows the System V ABI (x86-64) and
// AAPCS64: it keeps only the registers that a callee must preserve, because to the compiler the switch is a function
// call.
#include "fiber.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(FLEXDRAFT_SANITIZED)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee-saved registers on the running stack, stores the stack pointer in `*from`, and continues where the
// stack `to` was left.
extern "C" void flexdraft_simt_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl flexdraft_simt_switch
.type flexdraft_simt_switch, @function
.balign 16
flexdraft_simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size flexdraft_simt_switch, . - flexdraft_simt_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl flexdraft_simt_switch
.type flexdraft_simt_switch, %function
.balign 16
flexdraft_simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size flexdraft_simt_switch, . - flexdraft_simt_switch
)");
#else
#error "the SIMT emulator has context switches for x86-64 and AArch64"
#endif

namespace simt {
namespace {

// Tells AddressSanitizer which stack is running: before a switch the bounds of the next stack, after the switch that it
// happened. In other builds these functions do nothing.
#if defined(FLEXDRAFT_SANITIZED)
// The fiber that was left last; the bounds of its stack become known after the switch.
thread_local Fiber* left = nullptr;

void leaving(Fiber& from, Fiber& to, bool for_good) {
    left = &from;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.bytes);
}

void arrived(void* fake_stack) {
    const void* stack = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
    left->stack = static_cast<unsigned char*>(const_cast<void*>(stack));
    left->bytes = bytes;
}

// A fiber that does not continue leaves the sanitizer's red zones of its frames behind, and so may an earlier mapping.
void forget_frames(const Fiber& fiber) { __asan_unpoison_memory_region(fiber.stack, fiber.bytes); }
#else
void leaving(Fiber&, Fiber&, bool) {}
void arrived(void*) {}
void forget_frames(const Fiber&) {}
#endif

} // namespace

void switch_fiber(Fiber& from, Fiber& to) {
    leaving(from, to, false);
    flexdraft_simt_switch(&from.stack_pointer, to.stack_pointer);
    arrived(from.fake_stack);
}

void leave_fiber(Fiber& from, Fiber& to) {
    leaving(from, to, true);
    // The fiber does not return to this frame, whose fake stack is gone.
    flexdraft_simt_switch(&from.stack_pointer, to.stack_pointer);
    __builtin_unreachable();
}

void fiber_begins() { arrived(nullptr); }

bool Fiber::map() {
    if (stack != nullptr) return true;
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* base =
        mmap(nullptr, guard + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return false;
    mprotect(base, guard, PROT_NONE);
    stack = static_cast<unsigned char*>(base) + guard;
    bytes = stack_bytes;
    return true;
}

void Fiber::unmap() {
    if (stack == nullptr) return;
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    munmap(stack - guard, guard + stack_bytes);
    stack = nullptr;
}

void Fiber::start(void (*entry)()) {
    forget_frames(*this);
#if defined(__x86_64__)
    // The initial stack has six registers and the return address; `entry` finds it as after a call.
    void** top = reinterpret_cast<void**>(stack + bytes) - 8;
    memset(top, 0, 8 * sizeof(void*));
    top[6] = reinterpret_cast<void*>(entry);
#else
    void** top = reinterpret_cast<void**>(stack + bytes) - 20;
    memset(top, 0, 20 * sizeof(void*));
    top[11] = reinterpret_cast<void*>(entry); // x30
#endif
    stack_pointer = top;
}

} // namespace simt
