// The work items of joint_attention: how many a sequence has, and which item belongs to an index.
//
// The rows of a sequence, candidates first and then its groups, are packed with the query heads that share a KV head:
// packed row m is head m % head_ratio of row m / head_ratio. So any ratio fills blocks of packed rows without a gap.
//
// An item is a block of packed rows of one sequence and KV head, with one of
//   - a state: one split of the cached keys, or a span of splits;
//   - the slots of one group whose rows lie in the block.
// A sequence with a single state has no items for slots: the items of its state add the slots of their block's groups.
//
// CTAs take items in the order of their indices, and the longest items come first: the full states of all sequences,
// then the shorter states and the slots. An item that begins late then keeps one multiprocessor busy only for a short
// time while the others are idle. The order of items changes no bit of a result.
#pragma once

#include "../common/rows.cuh"
#include "params.h"

// The rows and keys that a work item stands for.
struct ItemPlace {
    int32_t sequence, kv_head, block;
    int32_t state; // index of the state of the cached keys; -1: the slots of a group
    int32_t group; // if `state` is -1, the rank of the group among the groups of the sequence
};

// The numbers of a sequence's work items, per KV head.
struct SequenceItems {
    int32_t blocks;       // blocks of packed rows
    int32_t first_state;  // the first state that a row sees; states before it are outside the window of every row
    int32_t full_states;  // states with the number of keys that an item takes
    int32_t other_states; // 1 if the last state has fewer keys, otherwise 0
    int32_t groups;       // groups whose slots are items of their own
    int32_t group_blocks; // the most blocks in which the rows of one group lie
    bool whole;           // the sequence has one state, whose items leave results
    bool left_out;        // the sequence has more states than the workspace has places: its items write zeros
};

// Returns the first cached position that a row at `position` sees.
FLEXDRAFT_INLINE int32_t window_begin(const FlexdraftAttentionParams& p, int32_t position) {
    return max(0, position - p.window + 1);
}

// Returns the first softmax state of the cached keys that a row of the sequence sees.
FLEXDRAFT_INLINE int32_t first_state_of(const FlexdraftAttentionParams& p, const SequenceRows& sequence) {
    if (p.window == FLEXDRAFT_NO_WINDOW || sequence.rows == 0) return 0;
    return window_begin(p, smallest_position(sequence, 0, sequence.rows - 1)) / (p.split * p.item_splits);
}

// Returns the number of softmax states that attention over the cached keys of a sequence leaves per row and head, from
// its first state on.
FLEXDRAFT_INLINE int32_t states_of(const FlexdraftAttentionParams& p, const SequenceRows& sequence,
                                   int32_t first_state) {
    const int32_t keys = p.split * p.item_splits;
    return sequence.length / keys + (sequence.length % keys != 0 ? 1 : 0) - first_state;
}

template <int32_t BlockRows>
FLEXDRAFT_INLINE SequenceItems items_of(const FlexdraftAttentionParams& p, const SequenceRows& sequence) {
    SequenceItems items;
    items.first_state = first_state_of(p, sequence);
    const int32_t keys = p.split * p.item_splits, states = states_of(p, sequence, items.first_state);
    items.blocks = (sequence.rows * p.head_ratio + BlockRows - 1) / BlockRows;
    items.full_states = sequence.length / keys - items.first_state;
    items.other_states = states - items.full_states;
    items.left_out = states > p.max_states;
    if (items.left_out) {
        items.first_state = 0;
        items.full_states = 0;
        items.other_states = 1;
    }
    items.whole = states == 1 || items.left_out;
    items.groups = items.whole ? 0 : __popcll(sequence.groups);
    items.group_blocks = (sequence.slots * p.head_ratio + BlockRows - 2) / BlockRows + 1;
    return items;
}

// Returns the number of work items of a sequence that take full states (full_items), and the number of its other items
// (other_items).
FLEXDRAFT_INLINE int32_t full_items(const FlexdraftAttentionParams& p, const SequenceItems& items) {
    return p.kv_heads * items.blocks * items.full_states;
}
FLEXDRAFT_INLINE int32_t other_items(const FlexdraftAttentionParams& p, const SequenceItems& items) {
    return p.kv_heads * (items.blocks * items.other_states + items.groups * items.group_blocks);
}

// The plan of work items: first[e] items come before the items of entry e, and first[2 * pairs] is the number of all
// items. Entry e of the first `pairs` entries has the full states of sequences 2e and 2e + 1; entry pairs + e has their
// other items. One entry per sequence would take shared memory that a stage of keys needs. Every CTA computes the plan,
// because only the device knows the lengths.
FLEXDRAFT_INLINE int32_t plan_pairs(int32_t batch) { return (batch + 1) / 2; }

// Computes the plan. Returns whether this thread counted a sequence that had to be left out, which is an error. The
// function writes only shared memory, so earlier launches may still run.
template <int32_t BlockRows>
FLEXDRAFT_INLINE bool plan_items(const FlexdraftAttentionParams& p, int32_t* first) {
    const int32_t pairs = plan_pairs(p.pass.batch);
    bool left_out = false;
    // Each thread counts the items of one sequence, and threads with an even index add the counts of the next thread.
    // All lanes of a warp go around the loop together.
#pragma unroll 1
    for (int32_t s = int32_t(threadIdx.x); s - int32_t(threadIdx.x % 32) < p.pass.batch; s += int32_t(blockDim.x)) {
        int32_t full = 0, others = 0;
        if (s < p.pass.batch) {
            const SequenceItems items = items_of<BlockRows>(p, sequence_rows(p.pass, s));
            left_out |= items.left_out;
            full = full_items(p, items);
            others = other_items(p, items);
        }
        full += __shfl_xor_sync(0xffffffffu, full, 1);
        others += __shfl_xor_sync(0xffffffffu, others, 1);
        if (s % 2 == 0 && s < p.pass.batch) {
            first[1 + s / 2] = full;
            first[1 + pairs + s / 2] = others;
        }
    }
    __syncthreads();
    // Warp 0 replaces the counts by their running sums.
    if (threadIdx.x < 32) {
        const int32_t lane = int32_t(threadIdx.x);
        int32_t before = 0;
        if (lane == 0) first[0] = 0;
#pragma unroll 1
        for (int32_t begin = 1; begin <= 2 * pairs; begin += 32) {
            const int32_t at = begin + lane;
            int32_t sum = at <= 2 * pairs ? first[at] : 0;
#pragma unroll
            for (int32_t lanes = 1; lanes < 32; lanes *= 2) {
                const int32_t other = __shfl_up_sync(0xffffffffu, sum, uint32_t(lanes));
                if (lane >= lanes) sum += other;
            }
            sum += before;
            if (at <= 2 * pairs) first[at] = sum;
            before = __shfl_sync(0xffffffffu, sum, 31);
        }
    }
    __syncthreads(); // "plan"
    return left_out;
}

// Returns the entry of the plan to which work item `index` belongs: the last entry that begins at or before the item.
FLEXDRAFT_INLINE int32_t entry_of(const int32_t* first, int32_t pairs, int32_t index) {
    int32_t entry = 0;
    for (int32_t step = 1 << (31 - __clz(2 * pairs)); step > 0; step /= 2) {
        if (entry + step < 2 * pairs && first[entry + step] <= index) entry += step;
    }
    return entry;
}

// Returns the rows and keys of work item `index` of a sequence, counted among its items with full states or among its
// other items; the caller sets `sequence`. Blocks that read the same keys follow each other. The rows of a group may
// lie in fewer blocks than the plan counts; an item without a block has block -1.
template <int32_t BlockRows>
FLEXDRAFT_INLINE ItemPlace item_place(const FlexdraftAttentionParams& p, const SequenceRows& sequence,
                                      const SequenceItems& items, bool full, int32_t index) {
    ItemPlace place;
    const int32_t others = p.kv_heads * items.blocks * items.other_states;
    if (full || index < others) {
        place.block = index % items.blocks;
        place.kv_head = index / items.blocks % p.kv_heads;
        place.state = items.first_state + (full ? index / items.blocks / p.kv_heads : items.full_states);
        place.group = -1;
    } else {
        index -= others;
        place.kv_head = index / items.group_blocks % p.kv_heads;
        place.state = -1;
        place.group = index / items.group_blocks / p.kv_heads;
        const int32_t first_packed = (sequence.candidates + place.group * sequence.slots) * p.head_ratio;
        const int32_t last_packed = first_packed + sequence.slots * p.head_ratio - 1;
        place.block = first_packed / BlockRows + index % items.group_blocks;
        if (place.block > last_packed / BlockRows) place.block = -1;
    }
    return place;
}
