// attention_merge: computes a row's attention output from the softmax states that joint_attention left in the
// workspace.
//
// Grid [rows, q_heads / FLEXDRAFT_MERGE_WARPS]. A warp merges the states of one head of one row; each lane has pairs of
// elements that are 64 apart.
#pragma once

#include "../common/shapes.h"
#include "../ptx/griddepcontrol.cuh"
#include "state.cuh"
#include "work_items.cuh"

// Merges states in a binary tree over groups of states: with Levels levels, up to 2^Levels - 1 groups have a place.
template <typename Element, int32_t HeadDim, int32_t Levels>
FLEXDRAFT_INLINE void attention_merge(const FlexdraftAttentionParams& p) {
    constexpr int32_t elements = HeadDim / 32;
    constexpr int32_t at_once = FLEXDRAFT_SPAN_SPLITS;
    static_assert(at_once == 4, "a group of spans is a tree of two levels");
    const int32_t row_index = int32_t(blockIdx.x);
    const int32_t head = int32_t(blockIdx.y * FLEXDRAFT_MERGE_WARPS + threadIdx.x / 32);
    const int32_t lane = int32_t(threadIdx.x % 32);
    wait_for_earlier_launches();
    if (head >= p.q_heads) return;
    const int64_t head_row = int64_t(row_index) * p.q_heads + head;
    const PassRow row = pass_row(p.pass, row_index);
    // If a sequence has a single state, joint_attention has already written its results; if the sequence was left out,
    // its results are zeros.
    int32_t sequence_states = 0, first_state = 0;
    if (row.sequence >= 0) {
        const SequenceRows sequence = sequence_rows(p.pass, row.sequence);
        first_state = first_state_of(p, sequence);
        sequence_states = states_of(p, sequence, first_state);
    }
    if (sequence_states == 1 || sequence_states > p.max_states) return;
    const float2* const stats = reinterpret_cast<const float2*>(p.partial_stats) + head_row * p.places;
    const float* const partial = p.partial_out + head_row * p.places * HeadDim + 2 * lane;
    State<elements> empty;
    empty.maximum = -INFINITY;
    empty.sum = 0.0f;
#pragma unroll
    for (int32_t i = 0; i < elements; ++i) empty.out[i] = 0.0f;
    const auto load = [&](int32_t index) {
        State<elements> state;
        state.maximum = stats[index].x;
        state.sum = stats[index].y;
#pragma unroll
        for (int32_t i = 0; i < elements; i += 2) {
            const float2 pair = *reinterpret_cast<const float2*>(partial + index * HeadDim + 32 * i);
            state.out[i] = pair.x;
            state.out[i + 1] = pair.y;
        }
        return state;
    };

    // If bit l of the number of groups so far is set, tree[l] is a complete subtree of 2^l groups that waits for its
    // right sibling. A group is a span or, if items are spans, a subtree of four spans; some of these may be empty.
    State<elements> tree[Levels];
#pragma unroll
    for (int32_t l = 0; l < Levels; ++l) tree[l] = empty;
    const int32_t state_keys = p.split * p.item_splits;
    const int32_t begin = window_begin(p, row.position) / state_keys;
    const int32_t states = row.sequence < 0 ? 0 : row.limit / state_keys + 1;
    // The states before the row's window are empty, and so are groups of them.
    int32_t groups = begin / at_once;
#pragma unroll 1
    for (int32_t s = groups * at_once; s < states; s += at_once) {
        // Four states are loaded before the first of them is used, because dependent loads would take longer than
        // everything else.
        State<elements> some[at_once];
#pragma unroll
        for (int32_t i = 0; i < at_once; ++i) {
            some[i] = s + i >= begin && s + i < states ? load(s + i - first_state) : empty;
        }
        if (p.item_splits != 1) merge(some[2], some[3]);
#pragma unroll
        for (int32_t i = 1; i < at_once; ++i) {
            if (i < 3 || p.item_splits == 1) merge(some[0], some[i]);
        }
        bool carried = true;
#pragma unroll
        for (int32_t l = 0; l < Levels; ++l) {
            if (!carried) continue;
            if ((groups >> l & 1) != 0) {
                merge(tree[l], some[0]);
                some[0] = tree[l];
            } else {
                tree[l] = some[0];
                carried = false;
            }
        }
        ++groups;
    }
    // The state over the slots of the row's mask group is loaded before the merges of the subtrees, which do not need
    // it.
    State<elements> slots = empty;
    if (row.mask) slots = load(p.places - 1);
    // Merges the complete subtrees that wait, from right to left: a smaller subtree is further right.
    State<elements> total = empty;
#pragma unroll
    for (int32_t l = 0; l < Levels; ++l) {
        if ((groups >> l & 1) == 0) continue;
        merge(tree[l], total);
        total = tree[l];
    }
    if (row.mask) merge(total, slots);
    if (p.sinks != nullptr) {
        const float factor = add_sink(total.maximum, total.sum, p.sinks[head] * log2_e);
#pragma unroll
        for (int32_t i = 0; i < elements; ++i) total.out[i] *= factor;
    }

    uint16_t* const out = p.out + head_row * HeadDim + 2 * lane;
#pragma unroll
    for (int32_t i = 0; i < elements; i += 2) {
        *reinterpret_cast<uint32_t*>(out + 32 * i) = divided<Element>(total.out[i], total.out[i + 1], total.sum);
    }
    if (p.lse != nullptr && lane == 0) p.lse[head_row] = log_sum_exp(total.maximum, total.sum);
}
