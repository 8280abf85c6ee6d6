// sample_rows_*: the pass over logits that need no calibration.
//
// Grid [rows, ceil(chunks / 8)], one warp per chunk of 1024 ids. A lane holds its 32 logits in registers, so each logit
// is read once, and all loads of a warp are in flight together. If its row has edits, a warp first edits the logits of
// its chunk in memory.
#pragma once

#include "../common/shapes.h"
#include "../ptx/griddepcontrol.cuh"
#include "edits.cuh"

constexpr int32_t plain_warps = FLEXDRAFT_PLAIN_WARPS;

template <typename L>
FLEXDRAFT_INLINE void sample_rows(const FlexdraftSampleParams& p) {
    constexpr int32_t groups = FLEXDRAFT_CHUNK / (4 * 32);
    const int32_t row = int32_t(blockIdx.x);
    const int32_t chunk = int32_t(blockIdx.y) * plain_warps + int32_t(threadIdx.x) / 32;
    wait_for_earlier_launches();
    const int32_t source = logits_row(p, row);
    if (source < 0 || chunk >= p.chunks) return;

    const int32_t first = chunk * FLEXDRAFT_CHUNK + 4 * (int32_t(threadIdx.x) % 32);
    L* const logits = logits_at<L>(p, source, 0);
    FlexdraftRowEdits edits = {};
    edits.first_offset = edits.first_word = -1;
    if (p.row_edits != nullptr) {
        edits = row_edits(p, row);
        edit_chunk(p, edits, logits, chunk);
    }
    float v[groups][4];
#pragma unroll
    for (int32_t i = 0; i < groups; ++i) {
        const int32_t id = first + 128 * i;
        // The stride of rows is a multiple of 8, so four logits from an id below the size of the vocabulary are within
        // the row.
        if (id < p.vocab) {
            load_logits(v[i], logits + id);
        } else {
            v[i][0] = v[i][1] = v[i][2] = v[i][3] = -infinity;
        }
    }
    if (edits.first_word >= 0) {
        uint32_t allowed[groups];
#pragma unroll
        for (int32_t i = 0; i < groups; ++i) {
            const int32_t id = first + 128 * i;
            allowed[i] = id < p.vocab ? allowed_four(p, edits, id) : 0xfu;
        }
#pragma unroll
        for (int32_t i = 0; i < groups; ++i) mask_four(p, allowed[i], logits, first + 128 * i, v[i]);
    }
    bool has_nan = false;
#pragma unroll
    for (int32_t i = 0; i < groups; ++i) {
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
            if (first + 128 * i + j >= p.vocab) v[i][j] = -infinity;
            has_nan |= v[i][j] != v[i][j];
            v[i][j] = counted(v[i][j]);
        }
    }
    has_nan = __any_sync(0xffffffffu, has_nan);
    const bool stores = threadIdx.x % 32 == 0;
    if (has_nan && stores && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_NAN));

    const Partial partial = chunk_partial<groups, 32>(v, first, row_draw(p, p.sampling[row]));
    if (stores) store_partial(p, row, chunk, partial, has_nan);
}
