// Checks of every access of a kernel to memory, for kernels compiled in the checked variant.
//
// The kernel files of this variant are compiled with -fsanitize=thread, which calls a hook before each access. The
// hooks are ours (checks.cpp); no sanitizer runs. Errors are: an access outside of the operands, the CTA's shared
// memory and the thread's own stack; a misaligned access; a write to a read-only operand; a read of an asynchronous
// copy without a wait for it; a race; and an access that comes before the end of an earlier launch (launch_order.h).
// Outside of a checked launch these functions do nothing.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct FlexdraftSimtLaunch;

namespace simt {

void checks_launch(FlexdraftSimtLaunch* launch);
void checks_end();
void checks_cta(const unsigned char* shared, uint32_t shared_bytes, uint32_t threads);
// Tells the checks that the emulator switches to another thread.
void checks_switch(uint32_t previous, uint32_t next);
// Tells the checks that all threads of the CTA have met, or the lanes of a warp in `mask`.
void checks_barrier();
void checks_warp(uint32_t mask);
// Checks a memory access of the running thread.
void checks_access(const void* at, size_t bytes, bool write);
void checks_fence();
void checks_atomic(const void* at, size_t bytes);
// Checks the source of an asynchronous copy when the copy is issued; checks_access checks it when the copy happens.
void checks_copy_issue(const void* from, size_t bytes);
// Tells the checks that an asynchronous copy to shared memory begins, or that a wait for it has ended.
void checks_copy_begin(const unsigned char* to, size_t bytes);
void checks_copy_end(const unsigned char* to, size_t bytes);

} // namespace simt
