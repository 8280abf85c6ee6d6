// cp.async: copies from global to shared memory that run while the thread continues (sm_80).
// PTX ISA, "Data Movement and Conversion Instructions: cp.async".
#pragma once

#include "../common/platform.cuh"

// Converts a generic pointer into shared memory to the 32-bit address that PTX instructions take.
FLEXDRAFT_INLINE uint32_t shared_address(const void* pointer) {
#if defined(__CUDACC__)
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#else
    return simt::shared_address(pointer);
#endif
}

// Copies 16 bytes from global to shared memory asynchronously, bypassing L1. Only the first `source_bytes` (0 to 16)
// are read; the rest is written as zero. Both addresses are multiples of 16. With 0 the source is not accessed.
FLEXDRAFT_INLINE void cp_async_16(uint32_t shared, const void* global, uint32_t source_bytes = 16) {
#if defined(__CUDACC__)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(source_bytes)
                 : "memory");
#else
    simt::cp_async_16(shared, global, source_bytes);
#endif
}

// Closes the group of asynchronous copies that this thread started since it closed the last group.
FLEXDRAFT_INLINE void cp_async_commit() {
#if defined(__CUDACC__)
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    simt::cp_async_commit();
#endif
}

// Waits until at most `Pending` of this thread's groups of asynchronous copies are unfinished. Other threads see the
// data only after a barrier as well.
template <int32_t Pending>
FLEXDRAFT_INLINE void cp_async_wait() {
    static_assert(Pending >= 0, "a count of groups");
#if defined(__CUDACC__)
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
    simt::cp_async_wait(Pending);
#endif
}
