// cvt: conversion between f32 and the 16-bit types bf16 and f16 (sm_80).
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

// Returns the bits of `value` in f16, rounded to nearest, ties to even. Magnitudes of at least 65520 become infinity,
// and magnitudes below 2^-14 become subnormal numbers. NaN of any sign and payload becomes 0x7fff.
FLEXDRAFT_INLINE uint16_t cvt_rn_f16(float value) {
#if defined(__CUDACC__)
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    const uint32_t word = __float_as_uint(value), magnitude = word & 0x7fffffffu;
    const uint16_t sign = uint16_t(word >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00; // 65520
    if (magnitude < 0x38800000u) {
        // The unit in the last place of 1/2 in f32 is 2^-24, as for subnormal numbers in f16, so the addition rounds
        // correctly.
        return sign | uint16_t(__float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f));
    }
    // The exponent's bias is 127 in f32 and 15 in f16.
    return sign | uint16_t((magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
#endif
}

// Returns two values as f16 in one register, the first in the low half: the operand layout of mma.
FLEXDRAFT_INLINE uint32_t cvt_rn_f16x2(float low, float high) {
#if defined(__CUDACC__)
    uint32_t packed;
    // The first source operand of cvt.rn.f16x2 goes to the upper half of the register.
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return uint32_t(cvt_rn_f16(low)) | uint32_t(cvt_rn_f16(high)) << 16;
#endif
}

// Returns the value of an f16 with the given bits; the conversion is exact.
FLEXDRAFT_INLINE float cvt_f32_f16(uint16_t bits) {
#if defined(__CUDACC__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return simt::f16_value(bits);
#endif
}
