// What the checked variant watches: every access of a kernel to memory.
//
// Its kernel files are compiled with -fsanitize=thread, which calls a hook before each access, and the
// hooks are ours (checks.cpp): no sanitizer runs. An access outside of the operands, the CTA's shared
// memory and the thread's own stack is an error, so is one that is not aligned, a write to what is only
// read, a read of an asynchronous copy that has not been waited for, and a race. Without a checked launch
// all of this does nothing.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct FlexdraftSimtLaunch;

namespace simt {

void checks_launch(FlexdraftSimtLaunch* launch);
void checks_end();
void checks_cta(const unsigned char* shared, uint32_t shared_bytes, uint32_t threads);
// Another thread runs.
void checks_switch(uint32_t previous, uint32_t next);
// All threads of the CTA, or lanes of a warp, have met.
void checks_barrier();
void checks_warp(uint32_t mask);
// Access by the running thread.
void checks_access(const void* at, size_t bytes, bool write);
void checks_fence();
void checks_atomic(const void* at, size_t bytes);
// An asynchronous copy to shared memory begins, and has been waited for.
void checks_copy_begin(const unsigned char* to, size_t bytes);
void checks_copy_end(const unsigned char* to, size_t bytes);

}  // namespace simt
