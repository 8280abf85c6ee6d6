// Sine and cosine of multiples of pi: functions of CUDA's math library that C++ does not have.
#pragma once

#include "platform.cuh"

#if !defined(__CUDACC__)
// Rounded once more than a function of its own would: within an ulp.
constexpr double kPi = 3.14159265358979323846;
#endif

// cos(pi x).
FLEXDRAFT_INLINE float cos_pi(float x) {
#if defined(__CUDACC__)
    return cospif(x);
#else
    return float(cos(kPi * double(x)));
#endif
}

// sin(pi x).
FLEXDRAFT_INLINE float sin_pi(float x) {
#if defined(__CUDACC__)
    return sinpif(x);
#else
    return float(sin(kPi * double(x)));
#endif
}
