// Fibers: stacks, and a switch from one to another that saves what a C++ function call must keep.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace simt {

// A stack with a guard page below it, and the stack pointer of a fiber that is not running.
struct Fiber {
    unsigned char* stack = nullptr; // lowest usable byte
    void* stack_pointer = nullptr;

    static constexpr size_t stack_bytes = 128 << 10;

    // Maps the stack if there is none; false if there is no memory.
    bool map();
    void unmap();
    // Makes the next switch to this fiber call `entry`, which never returns.
    void start(void (*entry)());
};

}  // namespace simt

// Saves the callee-saved registers on the running stack, stores its pointer in `*from`, and goes on where
// the stack `to` was left.
extern "C" void flexdraft_simt_switch(void** from, void* to);
