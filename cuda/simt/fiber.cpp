// See fiber.h. The switch follows the System V ABI (x86-64) and AAPCS64: only the registers that a callee
// must preserve are kept, because to the compiler the switch is a function call.
#include "fiber.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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
#error "the SIMT host has context switches for x86-64 and AArch64"
#endif

namespace simt {

bool Fiber::map() {
    if (stack != nullptr) return true;
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* base = mmap(nullptr, guard + stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return false;
    mprotect(base, guard, PROT_NONE);
    stack = static_cast<unsigned char*>(base) + guard;
    return true;
}

void Fiber::unmap() {
    if (stack == nullptr) return;
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    munmap(stack - guard, guard + stack_bytes);
    stack = nullptr;
}

void Fiber::start(void (*entry)()) {
#if defined(__x86_64__)
    // Six registers and the return address; `entry` finds the stack as after a call.
    void** top = reinterpret_cast<void**>(stack + stack_bytes) - 8;
    memset(top, 0, 8 * sizeof(void*));
    top[6] = reinterpret_cast<void*>(entry);
#else
    void** top = reinterpret_cast<void**>(stack + stack_bytes) - 20;
    memset(top, 0, 20 * sizeof(void*));
    top[11] = reinterpret_cast<void*>(entry); // x30
#endif
    stack_pointer = top;
}

}  // namespace simt
