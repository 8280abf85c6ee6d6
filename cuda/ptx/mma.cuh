// mma.sync: matrix products on the tensor cores (sm_80).
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
#pragma once

#include "../common/platform.cuh"

// Computes d[16, 8] += a[16, 16] · b[16, 8] by a warp, a by rows and b by columns, with bf16 products summed in f32.
// With g = lane / 4 and t = lane % 4 (two elements per register, the lower column or row in the low half):
//   a[0], a[1]: rows g, g + 8, columns 2t and 2t + 1;  a[2], a[3]: the same rows, columns 2t + 8 and 2t + 9
//   b[0], b[1]: column g, rows 2t and 2t + 1, then 2t + 8 and 2t + 9
//   d[0..2]: row g, columns 2t and 2t + 1;  d[2..4]: row g + 8
FLEXDRAFT_INLINE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDACC__)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    simt::mma_m16n8k16_bf16(d, a, b0, b1);
#endif
}

// Computes d[16, 8] += a[16, 16] · b[16, 8] as mma_m16n8k16_bf16 does, with f16 in place of bf16.
FLEXDRAFT_INLINE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDACC__)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    simt::mma_m16n8k16_f16(d, a, b0, b1);
#endif
}
