// Sine and cosine of multiples of pi, which CUDA's math library has and C++ does not.
#pragma once

#include "platform.cuh"

#if !defined(__CUDACC__)
// The product pi · x is rounded before the sine or cosine is taken, so results are only within an ulp.
constexpr double pi = 3.14159265358979323846;
#endif

// Returns cos(pi x).
FLEXDRAFT_INLINE float cos_pi(float x) {
#if defined(__CUDACC__)
    return cospif(x);
#else
    return float(cos(pi * double(x)));
#endif
}

// Returns sin(pi x).
FLEXDRAFT_INLINE float sin_pi(float x) {
#if defined(__CUDACC__)
    return sinpif(x);
#else
    return float(sin(pi * double(x)));
#endif
}
