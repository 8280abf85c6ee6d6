// Tiles in shared memory: rows of head_dim bf16 whose 16-byte chunks are permuted, so that the eight rows of
// an ldmatrix lie in different banks.
#pragma once

#include "../common/bf16.cuh"
#include "../ptx/cp_async.cuh"
#include "../ptx/ldmatrix.cuh"
#include "../ptx/mma.cuh"

// Keys of a tile; tiles begin at multiples of it.
constexpr int tile_keys = 64;

// Offset in bytes of a chunk of a row.
template <int HeadDim>
FLEXDRAFT_INLINE uint32_t swizzled(int row, int chunk) {
    return uint32_t(row * HeadDim * 2 + ((chunk ^ (row & 7)) << 4));
}

// scores[16 rows, 64 keys] = Q · Kᵀ; `q` is where the warp's 16 rows begin.
template <int HeadDim>
FLEXDRAFT_INLINE void multiply_qk(float (&scores)[8][4], uint32_t q, uint32_t k, int lane) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < HeadDim / 16; ++step) {
        uint32_t a[4];
        ldmatrix_x4(a, q + swizzled<HeadDim>(lane % 16, 2 * step + lane / 16));
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t b[4];
            const int key = 16 * pair + lane % 8 + lane / 16 * 8;
            ldmatrix_x4(b, k + swizzled<HeadDim>(key, 2 * step + lane / 8 % 2));
            mma_m16n8k16(scores[2 * pair], a, b[0], b[1]);
            mma_m16n8k16(scores[2 * pair + 1], a, b[2], b[3]);
        }
    }
}

// out[16 rows, head_dim] += P · V, with P [16 rows, 64 keys] in the layout of scores, rounded to bf16.
template <int HeadDim>
FLEXDRAFT_INLINE void multiply_pv(float (&out)[HeadDim / 8][4], const uint32_t (&p)[8][2], uint32_t v, int lane) {
#pragma unroll
    for (int step = 0; step < tile_keys / 16; ++step) {
        const uint32_t a[4] = {p[2 * step][0], p[2 * step][1], p[2 * step + 1][0], p[2 * step + 1][1]};
#pragma unroll
        for (int pair = 0; pair < HeadDim / 16; ++pair) {
            uint32_t b[4];
            const int key = 16 * step + lane % 16;
            ldmatrix_x4_trans(b, v + swizzled<HeadDim>(key, 2 * pair + lane / 16));
            mma_m16n8k16(out[2 * pair], a, b[0], b[1]);
            mma_m16n8k16(out[2 * pair + 1], a, b[2], b[3]);
        }
    }
}
