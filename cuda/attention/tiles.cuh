// Tiles of Q, K and V in shared memory, and the two matrix products of attention. A tile is rows of head_dim bf16 or
// f16 whose chunks of 16 bytes are permuted, so that the eight rows of an ldmatrix lie in different banks.
#pragma once

#include "../common/element.cuh"
#include "../common/shapes.h"
#include "../ptx/cp_async.cuh"
#include "../ptx/ldmatrix.cuh"

// The number of keys per tile. Tiles of cached keys begin at positions that are multiples of it.
constexpr int32_t tile_keys = FLEXDRAFT_TILE_KEYS;

// Returns the offset of a 16-byte chunk of a row, in bytes from the beginning of its tile.
template <int32_t HeadDim>
FLEXDRAFT_INLINE uint32_t swizzled(int32_t row, int32_t chunk) {
    return uint32_t(row * HeadDim * 2 + ((chunk ^ (row & 7)) << 4));
}

// Returns the address of the 16-byte chunk that is `chunks` chunks further in the same row. The number of the chunk at
// `address` must have none of the bits of `chunks`. The permutation is an exclusive or, so a step costs one
// instruction.
FLEXDRAFT_INLINE uint32_t swizzled_step(uint32_t address, int32_t chunks) { return address ^ uint32_t(chunks << 4); }

// Computes scores = Q · Kᵀ for each of a warp's parts: scores [16 rows, 64 keys], Q [16 rows, head_dim] and K [64 keys,
// head_dim]. `q` is the shared address of the warp's rows of Q, `k` of the tile's K. The parts share the loads of K.
template <typename Element, int32_t HeadDim, int32_t Parts>
FLEXDRAFT_INLINE void multiply_qk(float (&scores)[Parts][8][4], uint32_t q, uint32_t k, int32_t lane) {
#pragma unroll
    for (int32_t part = 0; part < Parts; ++part) {
#pragma unroll
        for (int32_t n = 0; n < 8; ++n) {
#pragma unroll
            for (int32_t i = 0; i < 4; ++i) scores[part][n][i] = 0.0f;
        }
    }
    const uint32_t q_row = q + swizzled<HeadDim>(lane % 16, lane / 16);
    const uint32_t k_row = k + swizzled<HeadDim>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int32_t step = 0; step < HeadDim / 16; ++step) {
        uint32_t a[Parts][4];
#pragma unroll
        for (int32_t part = 0; part < Parts; ++part) {
            ldmatrix_x4(a[part], swizzled_step(q_row, 2 * step) + uint32_t(16 * part * HeadDim * 2));
        }
#pragma unroll
        for (int32_t pair = 0; pair < 4; ++pair) {
            uint32_t b[4];
            ldmatrix_x4(b, swizzled_step(k_row, 2 * step) + uint32_t(16 * pair * HeadDim * 2));
#pragma unroll
            for (int32_t part = 0; part < Parts; ++part) {
                Element::mma(scores[part][2 * pair], a[part], b[0], b[1]);
                Element::mma(scores[part][2 * pair + 1], a[part], b[2], b[3]);
            }
        }
    }
}

// Computes out += P · V for each of a warp's parts: out [16 rows, head_dim], the weights P [16 rows, 64 keys] in the
// layout of the scores and rounded to the elements' type, V [64 keys, head_dim]. `v` is the shared address of the tile's V.
template <typename Element, int32_t HeadDim, int32_t Parts>
FLEXDRAFT_INLINE void multiply_pv(float (&out)[Parts][HeadDim / 8][4], const uint32_t (&p)[Parts][8][2], uint32_t v,
                                  int32_t lane) {
    const uint32_t v_row = v + swizzled<HeadDim>(lane % 16, lane / 16);
#pragma unroll
    for (int32_t step = 0; step < tile_keys / 16; ++step) {
#pragma unroll
        for (int32_t pair = 0; pair < HeadDim / 16; ++pair) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, swizzled_step(v_row, 2 * pair) + uint32_t(16 * step * HeadDim * 2));
#pragma unroll
            for (int32_t part = 0; part < Parts; ++part) {
                const uint32_t a[4] = {p[part][2 * step][0], p[part][2 * step][1], p[part][2 * step + 1][0],
                                       p[part][2 * step + 1][1]};
                Element::mma(out[part][2 * pair], a, b[0], b[1]);
                Element::mma(out[part][2 * pair + 1], a, b[2], b[3]);
            }
        }
    }
}
