// Fibers: threads with their own stacks, and a switch between them that saves the registers that a C++ function call
// must preserve.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace simt {

// A stack with a guard page below it, and the stack pointer at which the fiber was left. The host thread's own stack is
// a fiber too, but is not mapped here.
struct Fiber {
    unsigned char* stack = nullptr; // lowest usable byte
    size_t bytes = 0;               // usable bytes
    void* stack_pointer = nullptr;
    void* fake_stack = nullptr; // AddressSanitizer's, while the fiber is not running

    static constexpr size_t stack_bytes = 128 << 10;

    // Maps the fiber's stack unless it is mapped; returns false if there is no memory.
    bool map();
    void unmap();
    // Makes the next switch to this fiber call `entry`, which calls fiber_begins first and never returns.
    void start(void (*entry)());
};

// Switches from the running fiber `from` to `to`; returns when another switch goes to `from`.
void switch_fiber(Fiber& from, Fiber& to);

// Switches from the running fiber `from`, which does not continue, to `to`.
[[noreturn]] void leave_fiber(Fiber& from, Fiber& to);

// Notes that a new fiber runs; the first call of every `entry`.
void fiber_begins();

} // namespace simt
