// Kernels that select the rows from which the next draft is made, which depend on how many draft tokens were accepted.
// These kernels let a step continue from verdicts that the host has not read.
#pragma once

#include "../ptx/griddepcontrol.cuh"
#include "params.h"

constexpr int32_t selection_threads = FLEXDRAFT_MAX_DRAFTS + 1;

// Writes, for one sequence, the rows of the mask group that makes its next draft, its bonus token and its start
// position. Grid [drafts], one thread per slot.
FLEXDRAFT_INLINE void select(const FlexdraftSelectParams& p) {
    wait_for_earlier_launches();
    const FlexdraftDraft draft = p.drafts[blockIdx.x];
    const bool exists = draft.sequence >= 0 && draft.sequence < p.batch && draft.slots >= 1 &&
                        draft.slots <= FLEXDRAFT_MAX_DRAFTS + 1 && draft.first_draft >= 0 &&
                        draft.first_draft <= p.rows - (draft.slots - 1);
    if (!exists) {
        if (threadIdx.x == 0) {
            if (p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_ROW));
            p.bonus[blockIdx.x] = 0;
            p.starts[blockIdx.x] = 0;
        }
        return;
    }
    const FlexdraftVerdict verdict = p.verdicts[draft.sequence];
    const bool verified = verdict.accepted >= 0 && verdict.accepted <= FLEXDRAFT_MAX_DRAFTS;
    if (threadIdx.x == 0) {
        p.bonus[blockIdx.x] = verified ? verdict.bonus : 0;
        p.starts[blockIdx.x] = verified ? int32_t(verdict.cached_length) : 0;
    }
    const int32_t slot = int32_t(threadIdx.x) + 1;
    if (slot >= draft.slots) return;
    const int32_t row = draft.first_draft + slot - 1;
    const bool laid_out = verified && (draft.groups == 0 || (draft.groups >> verdict.accepted & 1) != 0);
    int32_t source = -1;
    if (laid_out) {
        const uint64_t below = draft.groups & ((uint64_t(1) << verdict.accepted) - 1);
        const int32_t left_out = draft.in_logits != 0 ? 1 : 0; // slot 0 has no row of logits
        source = draft.first_slot + __popcll(below) * (draft.slots - left_out) + slot - left_out;
    }
    p.sources[row] = source;
    p.draft_rows[row] = !laid_out ? -1 : draft.in_logits != 0 ? source : row;
}

// Moves the mask group of every sequence of a drafting pass to the sequence's accepted length. Grid [ceil(batch /
// threads)], one thread per sequence.
FLEXDRAFT_INLINE void follow(const FlexdraftFollowParams& p) {
    const int32_t s = int32_t(blockIdx.x) * selection_threads + int32_t(threadIdx.x);
    wait_for_earlier_launches();
    if (s >= p.batch) return;
    const int32_t index = p.sequences[s];
    bool exists = index >= 0 && index < p.verdict_count;
    if (exists) {
        const FlexdraftVerdict verdict = p.verdicts[index];
        // A mask group sees the positions up to the last position that stays in the KV cache.
        const int64_t group = verdict.cached_length - 1 - p.start[s];
        exists = verdict.accepted >= 0 && group >= 0 && group <= p.first_group[s];
        if (exists) p.first_group[s] = int32_t(group);
    }
    if (!exists && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_ROW));
}
