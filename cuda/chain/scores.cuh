// chain_score_*: the scores of all pairs of neighbouring tokens, as dot products of factors.
//
// Grid [rows, ceil(count / 4)]: a CTA computes four rows of a table of scores, and a warp computes 4 × 4 scores at once, so
// that it loads each factor for four scores. Every lane adds the products of its own elements of the rank, and the lanes
// are added in a fixed order, so that a score has the same bits in any batch.
#pragma once

#include "../common/shapes.h"
#include "../common/vectors.cuh"
#include "../ptx/griddepcontrol.cuh"
#include "../sampling/warping.cuh"
#include "params.h"

constexpr int32_t score_threads = FLEXDRAFT_SCORE_THREADS;
constexpr int32_t score_tile = FLEXDRAFT_SCORE_TILE;

// Loads four elements of a factor. The first `left` elements are within its rank; the others become 0.
template <typename Factor>
FLEXDRAFT_INLINE void load_factor(float (&v)[4], const Factor* at, int32_t left) {
    load_logits(v, at);
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) v[i] = i < left ? v[i] : 0.0f;
}

template <typename Factor>
FLEXDRAFT_INLINE void score(const FlexdraftChainScoreParams& p) {
    const int32_t row = int32_t(blockIdx.x), first_before = int32_t(blockIdx.y) * score_tile;
    const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
    wait_for_earlier_launches();
    const int32_t owner = p.owners[row];
    if (owner < 0 || owner >= p.drafts) {
        if (threadIdx.x == 0 && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_ROW));
        return;
    }
    // The only token before the first row of a draft is the bonus token.
    const bool after_bonus = row == 0 || p.owners[row - 1] != owner;
    const int32_t tokens_before = after_bonus ? 1 : p.count;
    if (first_before >= tokens_before) return;
    const int64_t first_factor = after_bonus ? owner : p.drafts + int64_t(row - 1) * p.count;
    const Factor* const after_rows = static_cast<const Factor*>(p.after) + int64_t(row) * p.count * p.after_stride;

    const float* before[score_tile];
#pragma unroll
    for (int32_t i = 0; i < score_tile; ++i) {
        // Rows beyond the table repeat the last row, and are not stored.
        before[i] = p.before + (first_factor + min(first_before + i, tokens_before - 1)) * p.before_stride;
    }
    for (int32_t first = score_tile * warp; first < p.count; first += score_tile * (score_threads / 32)) {
        const Factor* after[score_tile];
#pragma unroll
        for (int32_t j = 0; j < score_tile; ++j) after[j] = after_rows + min(first + j, p.count - 1) * p.after_stride;
        float sums[score_tile][score_tile] = {};
        for (int32_t k = 4 * lane; k < p.rank; k += 4 * 32) {
            float x[score_tile][4], y[score_tile][4];
#pragma unroll
            for (int32_t i = 0; i < score_tile; ++i) {
                load_factor(x[i], before[i] + k, p.rank - k);
                load_factor(y[i], after[i] + k, p.rank - k);
            }
#pragma unroll
            for (int32_t i = 0; i < score_tile; ++i) {
#pragma unroll
                for (int32_t j = 0; j < score_tile; ++j) {
#pragma unroll
                    for (int32_t e = 0; e < 4; ++e) sums[i][j] = __fmaf_rn(x[i][e], y[j][e], sums[i][j]);
                }
            }
        }
#pragma unroll
        for (int32_t i = 0; i < score_tile; ++i) {
#pragma unroll
            for (int32_t j = 0; j < score_tile; ++j) {
                const float sum = warp_sum(sums[i][j]);
                if (lane == score_tile * i + j && first_before + i < tokens_before && first + j < p.count) {
                    p.scores[(int64_t(row) * p.count + first_before + i) * p.count + first + j] = sum;
                }
            }
        }
    }
}
