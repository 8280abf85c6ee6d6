// griddepcontrol: programmatic dependent launch (sm_90), with which a launch may begin before the launch in front of it
// has ended. PTX ISA, "Parallel Synchronization and Communication Instructions: griddepcontrol".
#pragma once

#include "../common/platform.cuh"

// Waits until the launches in front on the stream have ended and their writes are visible, and then lets the launch
// behind begin. Code before the call, the prologue, may run while earlier launches run: it reads parameters and memory
// that no kernel writes, such as weights, and writes no global memory. A launch behind a copy does not begin early, so
// memory that copies alone write may change between launches. Every thread of every kernel makes the call,
// because the launch behind waits for this launch alone, which must not end before the launches in front.
//
// All loads of kernels are plain: nvcc moves a load by __ldg from one side of the call to the other, and leaves plain loads
// where they are.
FLEXDRAFT_INLINE void wait_for_earlier_launches() {
#if !defined(__CUDACC__)
    simt::wait_for_earlier_launches();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
