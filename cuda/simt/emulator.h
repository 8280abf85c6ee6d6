// The state of the SIMT emulator: a CTA whose threads are fibers, and the tables of kernels that kernel files export.
//
// A launch belongs to the host thread that called it: everything here is thread-local, so tests may run launches in
// parallel. Kernel files include this header through device.h; nothing in it runs device code.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string_view>

namespace simt {

// An entry in the table of a family's kernels; an entry without a name ends the table.
struct Kernel {
    const char* name;
    void (*entry)(const void* params);
    uint32_t params_bytes;
    uint32_t max_threads;
};

struct Index {
    uint32_t x, y, z;
};

// The operands and the results that one lane contributes to a warp-wide operation.
struct Exchange {
    uint64_t in[10];
    uint64_t out[4];
};

// A warp-wide operation: reads `in` of the lanes in `mask` and writes their `out`. It runs once, when the last of these
// lanes has arrived.
using Collective = void (*)(Exchange* lanes, uint32_t mask, uint32_t argument);

// The coordinates of the running thread, which kernels read through CUDA's names.
struct Coordinates {
    Index thread, block, block_dim, grid_dim;
};
extern thread_local Coordinates coordinates;

// --- Called by device.h on a fiber ---------------------------------------------------------------------

// Returns the CTA's dynamic shared memory.
unsigned char* shared_memory();

// Returns the operands and results of the running lane in a warp-wide operation: the lane fills `in`, calls
// `collective`, and reads `out`.
Exchange& exchange();

// Runs a warp-wide operation: waits until every lane of `mask` has called this function with the same operation, mask
// and argument.
void collective(Collective operation, uint32_t argument, uint32_t mask, const char* name);

// Implements __syncthreads and its reductions; returns the number of threads whose predicate is true.
uint32_t barrier(bool predicate);

// The first address of shared memory in its 32-bit address space. It is not zero, which a kernel may take for null.
constexpr uint32_t shared_base = 1024;

// Returns the 32-bit address of a pointer into shared memory.
uint32_t shared_address(const void* pointer);

// Returns the pointer to a 32-bit address in shared memory, after checking its alignment and that `bytes` bytes exist
// from it on.
unsigned char* shared_range(uint32_t address, size_t bytes, size_t alignment, const char* name);

// Returns the stack of a thread of the CTA, which has Fiber::stack_bytes bytes (stack_of), and the size of the kernel's
// parameters (params_bytes).
const unsigned char* stack_of(uint32_t thread);
uint64_t params_bytes();

// Implements griddepcontrol.wait: records that the running thread waited for earlier launches (launch_order.h).
void wait_for_earlier_launches();

// Implements cp.async, whose copies happen at once, or as late as the waits for them allow.
void copy_async(uint32_t shared, const void* global, uint32_t source_bytes);
void copy_commit();
void copy_wait(int pending);

// Ends the launch with an error that names kernel, CTA and thread. Does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Returns the kernel with a name, among the kernels compiled with or without checks; null if there is none.
const Kernel* find(bool checked, std::string_view name);

} // namespace simt
