// bfloat16 as two bytes: the CUDA type's header does not exist on the SIMT host.
#pragma once

#include "platform.cuh"

struct bf16 {
    uint16_t bits;
};

FLEXDRAFT_INLINE float bf16_to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

// To nearest, ties to even; NaN stays NaN.
FLEXDRAFT_INLINE bf16 float_to_bf16(float value) {
#if defined(__CUDACC__)
    bf16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(value));
    return rounded;
#else
    const uint32_t word = __float_as_uint(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fff};
    return bf16{uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16)};
#endif
}

// Two values in one register, the first in the low half: the operand layout of mma.
FLEXDRAFT_INLINE uint32_t pack_bf16(float low, float high) {
#if defined(__CUDACC__)
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return uint32_t(float_to_bf16(low).bits) | uint32_t(float_to_bf16(high).bits) << 16;
#endif
}

FLEXDRAFT_INLINE float bf16_low(uint32_t packed) { return __uint_as_float(packed << 16); }
FLEXDRAFT_INLINE float bf16_high(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }
