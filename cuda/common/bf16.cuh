// A bfloat16 type of two bytes, because the SIMT emulator does not have the header of CUDA's type.
#pragma once

#include "../ptx/cvt.cuh"
#include "platform.cuh"

struct bf16 {
    uint16_t bits;
};

FLEXDRAFT_INLINE float bf16_to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

// Converts f32 to bf16, rounded to nearest, ties to even; NaN stays NaN.
FLEXDRAFT_INLINE bf16 float_to_bf16(float value) { return bf16{cvt_rn_bf16(value)}; }

// Returns two values as bf16 in one register, the first in the low half.
FLEXDRAFT_INLINE uint32_t pack_bf16(float low, float high) { return cvt_rn_bf16x2(low, high); }

FLEXDRAFT_INLINE float bf16_low(uint32_t packed) { return __uint_as_float(packed << 16); }
FLEXDRAFT_INLINE float bf16_high(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }
