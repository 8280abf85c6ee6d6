// The types of activations, of the KV cache and of weights: bf16 and f16, structs of two bytes with the same operations,
// because the SIMT emulator does not have the headers of CUDA's types. A kernel of either type is a template over the
// type.
//
// f32 is rounded to nearest, ties to even. A value that rounds above the largest finite number of the type becomes
// infinity: in f16, values of at least 65520. NaN stays NaN.
#pragma once

#include "../ptx/cvt.cuh"
#include "../ptx/mma.cuh"
#include "platform.cuh"

struct bf16 {
    uint16_t bits;

    static FLEXDRAFT_METHOD bf16 of(float value) { return bf16{cvt_rn_bf16(value)}; }
    FLEXDRAFT_METHOD float value() const { return __uint_as_float(uint32_t(bits) << 16); }

    // Returns two values in one register, the first in the low half.
    static FLEXDRAFT_METHOD uint32_t pack(float low, float high) { return cvt_rn_bf16x2(low, high); }
    static FLEXDRAFT_METHOD float low(uint32_t packed) { return __uint_as_float(packed << 16); }
    static FLEXDRAFT_METHOD float high(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

    // Computes d += a · b by a warp (ptx/mma.cuh).
    static FLEXDRAFT_METHOD void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        mma_m16n8k16_bf16(d, a, b0, b1);
    }
};

struct f16 {
    uint16_t bits;

    static FLEXDRAFT_METHOD f16 of(float value) { return f16{cvt_rn_f16(value)}; }
    FLEXDRAFT_METHOD float value() const { return cvt_f32_f16(bits); }

    // Returns two values in one register, the first in the low half.
    static FLEXDRAFT_METHOD uint32_t pack(float low, float high) { return cvt_rn_f16x2(low, high); }
    static FLEXDRAFT_METHOD float low(uint32_t packed) { return cvt_f32_f16(uint16_t(packed)); }
    static FLEXDRAFT_METHOD float high(uint32_t packed) { return cvt_f32_f16(uint16_t(packed >> 16)); }

    // Computes d += a · b by a warp (ptx/mma.cuh).
    static FLEXDRAFT_METHOD void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        mma_m16n8k16_f16(d, a, b0, b1);
    }
};
