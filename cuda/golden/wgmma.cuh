// wgmma: matrix products of a warpgroup on the tensor cores of sm_90a, with operands in shared memory. No kernel uses
// it yet; golden.cu records its results for the same operands as mma.sync.
// PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
#pragma once

#include "../common/platform.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLEXDRAFT_HAS_WGMMA

// The layout of wgmma's operands: by rows of K ("K-major"), without swizzle, in core matrices of 8 rows (of M or N) by
// 16 bytes (8 elements of K), each stored as 128 contiguous bytes. The two core matrices that an instruction reads
// along K are adjacent.
constexpr uint32_t core_matrix_bytes = 128;

// Returns the index of the first 32-bit word of a core matrix: the matrix of the 8 rows from 8 · `rows` and the 8
// columns from 8 · `cols`. A row of it has 4 words of two elements, so that a lane's word of an mma.sync fragment (row
// lane / 4, columns from 2 (lane % 4)) is word `lane`.
FLEXDRAFT_INLINE uint32_t core_matrix_word(uint32_t rows, uint32_t cols) {
    return (2 * rows + cols) * (core_matrix_bytes / 4);
}

// Returns wgmma's descriptor of an operand in shared memory ("Matrix Descriptor Format"): bits 0 to 13 are the address,
// bits 16 to 29 the leading dimension's byte offset (to the next core matrix along K), bits 32 to 45 the stride
// dimension's byte offset (to the next core matrix along M or N), each in units of 16 bytes. Bits 62 and 63 are 0
// without swizzle.
FLEXDRAFT_INLINE uint64_t core_matrix_descriptor(uint32_t shared) {
    constexpr uint64_t leading = core_matrix_bytes, stride = 2 * core_matrix_bytes;
    return uint64_t((shared & 0x3ffff) >> 4) | leading >> 4 << 16 | stride >> 4 << 32;
}

// Makes this thread's writes to shared memory visible to wgmma after the next barrier.
FLEXDRAFT_INLINE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Computes d[64, 8] += a[64, 16] · b[16, 8] by wgmma, with bf16 products summed in f32. Warp w has 16 rows of d (and of
// a in registers) from row 16 w, in the fragments of mma_m16n8k16_bf16. Returns when the sums are complete.
FLEXDRAFT_INLINE void wgmma_m64n8k16_shared(float (&d)[4], uint64_t a, uint64_t b) {
    asm volatile(
        "{\n"
        "wgmma.fence.sync.aligned;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;\n"
        "wgmma.commit_group.sync.aligned;\n"
        "wgmma.wait_group.sync.aligned 0;\n"
        "}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a), "l"(b)
        : "memory");
}

FLEXDRAFT_INLINE void wgmma_m64n8k16_registers(float (&d)[4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{\n"
        "wgmma.fence.sync.aligned;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, 1, 1, 1, 0;\n"
        "wgmma.commit_group.sync.aligned;\n"
        "wgmma.wait_group.sync.aligned 0;\n"
        "}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
        : "memory");
}

#endif
