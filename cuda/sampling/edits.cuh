// Edits of logits before they are sampled: penalties, biases, and forbidden ids. src/processors.rs has the rules.
//
// Edited logits replace the logits in memory, so every later reader sees them. The edits are the same f32 operations
// as the host's, each rounded once, and the result is rounded to the stored type.
#pragma once

#include "partials.cuh"

// Returns a logit after an edit.
FLEXDRAFT_INLINE float edited(float logit, const FlexdraftLogitEdit& edit, const FlexdraftRowEdits& row) {
    if ((edit.effects & FLEXDRAFT_EDIT_REPEATED) != 0u) {
        const float penalty = row.repetition_penalty;
        logit = logit > 0.0f ? __fdiv_rn(logit, penalty) : __fmul_rn(logit, penalty);
    }
    if ((edit.effects & FLEXDRAFT_EDIT_GENERATED) != 0u) {
        logit = __fadd_rn(__fadd_rn(logit, -edit.operand), -row.presence_penalty);
    }
    if ((edit.effects & FLEXDRAFT_EDIT_BIASED) != 0u) logit = __fadd_rn(logit, edit.operand);
    return (edit.effects & FLEXDRAFT_EDIT_FORBIDDEN) != 0u ? -infinity : logit;
}

// Returns the edits of a row; without edits, its fields are −1. An index beyond the tables is reported.
FLEXDRAFT_INLINE FlexdraftRowEdits row_edits(const FlexdraftSampleParams& p, int32_t row) {
    FlexdraftRowEdits edits = p.row_edits[row];
    const bool has_edits = edits.first_offset >= 0 && edits.first_offset < p.offset_count - p.chunks;
    const bool has_mask = edits.first_word >= 0 && edits.first_word <= p.mask_words - (p.vocab + 31) / 32;
    const bool exists = (has_edits || edits.first_offset == -1) && (has_mask || edits.first_word == -1);
    if (!exists && threadIdx.x % 32 == 0 && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_ROW));
    if (!has_edits) edits.first_offset = -1;
    if (!has_mask) edits.first_word = -1;
    return edits;
}

// Edits the logits of one chunk of a row in memory, except for the mask. All lanes of a warp call this together, and
// no other warp has the chunk. One lane does all edits of an id, which follow each other, in their order.
template <typename L>
FLEXDRAFT_INLINE void edit_chunk(const FlexdraftSampleParams& p, const FlexdraftRowEdits& row, L* logits,
                                 int32_t chunk) {
    if (row.first_offset < 0) return;
    const int32_t* const offsets = p.edit_offsets + row.first_offset + chunk;
    const int32_t begin = max(offsets[0], 0), end = min(offsets[1], p.edit_count);
    for (int32_t i = begin + int32_t(threadIdx.x) % 32; i < end; i += 32) {
        const int32_t id = p.edits[i].id;
        if (id / FLEXDRAFT_CHUNK != chunk || id < 0 || id >= p.vocab) continue;
        if (i > begin && p.edits[i - 1].id == id) continue;
        float logit = load_logit(logits + id);
        bool changes = false;
        for (int32_t j = i; j < end; ++j) {
            const FlexdraftLogitEdit edit = p.edits[j];
            if (edit.id != id) break;
            if (row.row < int32_t(edit.first_row) || row.row >= int32_t(edit.end_row)) continue;
            logit = edited(logit, edit, row);
            changes = true;
        }
        if (changes) store_logit(logits + id, logit);
    }
    __syncwarp();
}

// Returns the bits of a row's mask for ids `first` to first + 3: bit j is set if id first + j is allowed. The row has a
// mask. `first` is a multiple of 4 and below the size of the vocabulary.
FLEXDRAFT_INLINE uint32_t allowed_four(const FlexdraftSampleParams& p, const FlexdraftRowEdits& row, int32_t first) {
    return p.masks[row.first_word + first / 32] >> (first % 32) & 0xfu;
}

// Forbids, among the logits `v` of ids `first` to first + 3, the ids whose bit in `allowed` is not set, in `v` and in
// memory. `first` is a multiple of 4 and below the size of the vocabulary.
template <typename L>
FLEXDRAFT_INLINE void mask_four(const FlexdraftSampleParams& p, uint32_t allowed, L* logits, int32_t first,
                                float (&v)[4]) {
    if (allowed == 0xfu) return;
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
        if ((allowed >> j & 1u) == 0u) v[j] = -infinity;
    }
    if (first + 4 <= p.vocab) {
        store_logits(logits + first, v);
        return;
    }
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
        if (first + j < p.vocab && (allowed >> j & 1u) == 0u) store_logit(logits + first + j, -infinity);
    }
}
