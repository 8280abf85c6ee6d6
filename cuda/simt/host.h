// The SIMT host's state: a CTA whose threads are fibers, and what a kernel file exports.
//
// A launch belongs to the host thread that called it: everything here is thread-local, so tests may run
// launches side by side. Kernel files see this header through device.h; nothing in it runs device code.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string_view>

namespace simt {

// A kernel of a family's table; the table ends with an entry without a name.
struct Kernel {
    const char* name;
    void (*entry)(const void* params);
    uint32_t params_bytes;
    uint32_t max_threads;
};

struct Index {
    uint32_t x, y, z;
};

// What a lane brings to a warp-wide operation, and takes away.
struct Exchange {
    uint64_t in[10];
    uint64_t out[4];
};

// A warp-wide operation: reads `in` of the lanes in `mask` and writes their `out`. It runs once, when the
// last of them has arrived.
using Collective = void (*)(Exchange* lanes, uint32_t mask, uint32_t argument);

// The running thread's coordinates, which kernels read by CUDA's names.
struct Coordinates {
    Index thread, block, block_dim, grid_dim;
};
extern thread_local Coordinates coordinates;

// --- Called by device.h on a fiber ---------------------------------------------------------------------

// The CTA's dynamic shared memory.
unsigned char* shared_memory();

// This lane's exchange: fill `in`, call `collective`, read `out`.
Exchange& exchange();

// Waits until every lane of `mask` has come here with the same operation, mask and argument.
void collective(Collective operation, uint32_t argument, uint32_t mask, const char* name);

// __syncthreads and its reductions: the number of threads whose predicate is true.
uint32_t barrier(bool predicate);

// Where shared memory begins in its 32-bit address space: not at zero, which a kernel may take for null.
constexpr uint32_t shared_base = 1024;

// The 32-bit address of a pointer into shared memory.
uint32_t shared_address(const void* pointer);

// The generic address of a 32-bit shared one; `bytes` from it on exist, and it is aligned to `alignment`.
unsigned char* shared_range(uint32_t address, size_t bytes, size_t alignment, const char* name);

// The stack of a thread of the CTA, of Fiber::stack_bytes bytes; the size of the kernel's parameters.
const unsigned char* stack_of(uint32_t thread);
uint64_t params_bytes();

// What cp.async does: at once, or as late as a wait allows.
void copy_async(uint32_t shared, const void* global, uint32_t source_bytes);
void copy_commit();
void copy_wait(int pending);

// Ends the launch with an error that names kernel, CTA and thread. Does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The kernel of a name, among the kernels compiled with checks or without; null if there is none.
const Kernel* find(bool checked, std::string_view name);

}  // namespace simt
