// Approximate arithmetic of the GPU's special-function unit. PTX ISA, "Floating Point Instructions: ex2, lg2".
#pragma once

#include "../common/platform.cuh"

// Returns 2^x with a relative error below 2^-22; exactly 0 for −∞ and exactly 1 for 0.
FLEXDRAFT_INLINE float exp2_approx(float x) {
#if defined(__CUDACC__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return simt::exp2_approx(x);
#endif
}
