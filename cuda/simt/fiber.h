// Fibers: stacks, and a switch from one to another that saves what a C++ function call must keep.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace simt {

// A stack with a guard page below it, and where a fiber that is not running was left. The host thread's own
// stack, which is not mapped here, is one too.
struct Fiber {
    unsigned char* stack = nullptr; // lowest usable byte
    size_t bytes = 0;               // usable bytes
    void* stack_pointer = nullptr;
    void* fake_stack = nullptr; // AddressSanitizer's, while the fiber is not running

    static constexpr size_t stack_bytes = 128 << 10;

    // Maps the stack if there is none; false if there is no memory.
    bool map();
    void unmap();
    // Makes the next switch to this fiber call `entry`, which calls fiber_begins first and never returns.
    void start(void (*entry)());
};

// Leaves `from`, which is running, for `to`, and returns when something switches to `from`.
void switch_fiber(Fiber& from, Fiber& to);

// Leaves `from`, which is running and will not be gone on with, for `to`.
[[noreturn]] void leave_fiber(Fiber& from, Fiber& to);

// Where every entry begins.
void fiber_begins();

}  // namespace simt
