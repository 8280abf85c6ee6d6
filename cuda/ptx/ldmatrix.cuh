// ldmatrix: a warp loads 8x8 matrices of 16-bit elements from shared memory in the layout of mma.
// PTX ISA, "Warp Level Matrix Load Instruction: ldmatrix".
#pragma once

#include "../common/platform.cuh"

// Loads four 8x8 matrices of 16-bit elements into the registers of a warp. Lane l passes the address of row l % 8 of
// matrix l / 8 (16 bytes, aligned to 16); afterwards register i of lane l has elements 2 (l % 4) and 2 (l % 4) + 1 of
// row l / 4 of matrix i.
FLEXDRAFT_INLINE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row_address) {
#if defined(__CUDACC__)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address)
                 : "memory");
#else
    simt::ldmatrix_x4(r, row_address, false);
#endif
}

// Loads four 8x8 matrices as ldmatrix_x4 does, each of them transposed: lane l gets elements of column l / 4.
FLEXDRAFT_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row_address) {
#if defined(__CUDACC__)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address)
                 : "memory");
#else
    simt::ldmatrix_x4(r, row_address, true);
#endif
}
