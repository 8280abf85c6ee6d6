// cvt: conversion from f32 to bf16 (sm_80).
// PTX ISA, "Data Movement and Conversion Instructions: cvt".
#pragma once

#include "../common/platform.cuh"

// Returns the bits of `value` in bf16, rounded to nearest, ties to even. NaN of any sign and payload becomes 0x7fff.
FLEXDRAFT_INLINE uint16_t cvt_rn_bf16(float value) {
#if defined(__CUDACC__)
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    const uint32_t word = __float_as_uint(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
#endif
}

// Returns two values as bf16 in one register, the first in the low half: the operand layout of mma.
FLEXDRAFT_INLINE uint32_t cvt_rn_bf16x2(float low, float high) {
#if defined(__CUDACC__)
    uint32_t packed;
    // The first source operand of cvt.rn.bf16x2 goes to the upper half of the register.
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return uint32_t(cvt_rn_bf16(low)) | uint32_t(cvt_rn_bf16(high)) << 16;
#endif
}
