// griddepcontrol: programmatic dependent launch (sm_90), with which a launch may begin before the previous launch on
// the stream has ended. PTX ISA, "Parallel Synchronization and Communication Instructions: griddepcontrol".
#pragma once

#include "../common/platform.cuh"

// Waits until all earlier launches on the stream have ended and their writes are visible, and then lets the next launch
// begin. Code before the call, the prologue, may run while earlier launches run: it may read parameters and memory that
// no kernel writes, such as weights, and must not write global memory. A launch that follows a copy does not begin
// early, so memory that only copies write may change between launches. Every thread of every kernel makes the call,
// because the next launch waits only for this launch, which therefore must not end before earlier launches have ended.
//
// Kernels never load by __ldg: nvcc may move such a load across the call, but not an ordinary load.
FLEXDRAFT_INLINE void wait_for_earlier_launches() {
#if !defined(__CUDACC__)
    simt::wait_for_earlier_launches();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
