// The main loop of joint_attention: computes a work item's softmax state or result for every row.
#pragma once

#include "accumulator.cuh"
#include "tile_loader.cuh"
#include "work_items.cuh"

// Adds a range of keys to the softmax states of the warp's rows. With the first range of an item, Q is copied behind
// tile 0.
template <typename Shape>
FLEXDRAFT_INLINE void mainloop(const JointCta<Shape>& cta, Accumulator<Shape>& accumulator, const KeyRange& keys,
                               bool is_first) {
    const int32_t tiles = (keys.end - keys.first + tile_keys - 1) / tile_keys;
    // The last key that any row of the warp sees, and the last key that every row of the warp sees.
    int32_t most = -1, least = INT32_MAX;
#pragma unroll
    for (int32_t part = 0; part < Shape::parts; ++part) {
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const int32_t last = cta.last_of(keys, part, r);
            most = max(most, last);
            least = min(least, last);
        }
    }
#pragma unroll
    for (int32_t lanes = 16; lanes >= 4; lanes /= 2) {
        most = max(most, __shfl_xor_sync(0xffffffffu, most, lanes));
        least = min(least, __shfl_xor_sync(0xffffffffu, least, lanes));
    }
    // The page of a tile's keys is looked up one tile before the keys are copied.
    int32_t page = page_of(cta, keys, keys.first);
#pragma unroll 1
    for (int32_t t = 0; t < Shape::stages - 1; ++t) {
        const int32_t first = keys.first + t * tile_keys;
        if (t < tiles) load_tile(cta, keys, first, page, t);
        if (t == 0 && is_first) load_q(cta);
        page = page_of(cta, keys, first + tile_keys);
        cp_async_commit();
    }
    OnlineSoftmax<Shape> split;
    split.reset();
    // Splits end at absolute positions, wherever the range begins.
    const int32_t tiles_per_split = cta.p.split / tile_keys;
    int32_t left = tiles_per_split - keys.first / tile_keys % tiles_per_split;
#pragma unroll 1
    for (int32_t t = 0; t < tiles; ++t) {
        cp_async_wait<Shape::stages - 2>();
        __syncthreads(); // "tile"
        const int32_t next = t + Shape::stages - 1;
        const int32_t next_first = keys.first + next * tile_keys;
        if (next < tiles) load_tile(cta, keys, next_first, page, next % Shape::stages);
        page = page_of(cta, keys, next_first + tile_keys);
        cp_async_commit();
        const int32_t first = keys.first + t * tile_keys;
        // A tile of keys that none of the warp's rows sees would change nothing, so the warp skips it.
        if (first <= most) {
            const uint32_t q =
                cta.shared_q + uint32_t(cta.compiler_barrier(cta.warp) * Shape::warp_rows * Shape::head_dim * 2);
            const uint32_t k = cta.shared_kv + uint32_t(t % Shape::stages * 2 * Shape::tile_bytes);
            split.add_tile(cta, keys, q, k, first, first + tile_keys - 1 > least);
        }
        if (--left == 0 || t + 1 == tiles) {
            accumulator.merge_split(cta, split);
            left = tiles_per_split;
        }
    }
    cp_async_wait<0>();
    __syncthreads(); // "drain"
}

// Writes a description of each packed row of the block to shared memory. A row has a part in the item if it sees some of
// the `item_keys` cached keys from `first_key` on, or if it belongs to the group whose slots are the item's keys.
template <typename Shape>
FLEXDRAFT_INLINE void describe_rows(const JointCta<Shape>& cta, const SequenceRows& sequence, const ItemPlace& place,
                                    int32_t first_key, int32_t item_keys) {
    const int32_t ratio = cta.p.head_ratio;
    for (int32_t m = int32_t(threadIdx.x); m < Shape::rows; m += Shape::threads) {
        const int32_t packed = place.block * Shape::rows + m;
        const SequenceRow row = row_of_sequence(sequence, packed / ratio);
        const bool sees_keys = row.limit >= first_key && window_begin(cta.p, row.position) - first_key < item_keys;
        const bool has_part = place.state < 0 ? row.group == place.group : sees_keys;
        cta.shared.row_index[m] = has_part ? row.index : -1;
        cta.shared.row_limit[m] = has_part ? row.limit : -1;
        cta.shared.row_place[m] = uint16_t((row.group + 1) * 256 + packed % ratio);
    }
}

template <typename Shape>
FLEXDRAFT_INLINE void work_item(const JointCta<Shape>& cta, const SequenceRows& sequence, const SequenceItems& items,
                                const ItemPlace& place) {
    const FlexdraftAttentionParams& p = cta.p;
    WorkItem& work = cta.shared.item;
    const int32_t ratio = p.head_ratio, item_keys = p.split * p.item_splits;
    const int32_t first_row = place.block * Shape::rows / ratio;
    const int32_t last_row = (min(place.block * Shape::rows + Shape::rows, sequence.rows * ratio) - 1) / ratio;
    const int32_t first_key = max(place.state, 0) * item_keys;
    const int32_t seen = largest_limit(sequence, first_row, last_row) + 1;
    const int32_t end_key = seen - first_key < item_keys ? seen : first_key + item_keys;
    int32_t begin_key = first_key;
    if (p.window != FLEXDRAFT_NO_WINDOW && place.state >= 0 && !items.left_out) {
        begin_key = max(begin_key, window_begin(p, smallest_position(sequence, first_row, last_row)));
    }
    // If the limits of all rows of the block lie before the item's first key, or their windows begin behind its last key,
    // the item has no keys.
    if (end_key <= begin_key) return;
    describe_rows(cta, sequence, place, first_key, items.left_out ? INT32_MAX : item_keys);
    if (threadIdx.x == 0) {
        WorkItem item = {
            .sequence = place.sequence,
            .kv_head = place.kv_head,
            .state_place = place.state < 0 ? p.places - 1 : place.state - items.first_state,
            .whole = items.whole,
            .begin_key = begin_key,
            .end_key = end_key,
            .begin_group = 0,
            .first_group = 0,
            .end_group = 0,
            .slots = sequence.slots,
            .first_mask = sequence.first_mask - p.candidates,
        };
        // The mask groups of the work item: the group whose slots are the item's keys, or the groups of the block's
        // rows.
        if (place.state < 0) {
            item.begin_group = item.first_group = place.group;
            item.end_group = place.group + 1;
        } else {
            const bool has_slots = items.whole && last_row >= sequence.candidates;
            item.first_group = has_slots ? max(first_row - sequence.candidates, 0) / sequence.slots : 0;
            item.begin_group = item.first_group - 1;
            item.end_group = has_slots ? (last_row - sequence.candidates) / sequence.slots + 1 : item.first_group;
            if (items.left_out) item.end_group = item.begin_group;
        }
        work = item;
    }
    __syncthreads(); // "item"
    Accumulator<Shape> accumulator;
    accumulator.reset();
#pragma unroll 1
    for (int32_t group = work.begin_group; group < work.end_group; ++group) {
        const int32_t first = work.begin_key / tile_keys * tile_keys;
        KeyRange keys = {.first = first, .end = work.end_key, .group_row = -1, .group = -1};
        if (group >= work.first_group) {
            const int32_t group_row = work.first_mask + group * work.slots;
            keys = {.first = 0, .end = work.slots, .group_row = group_row, .group = group};
        }
        mainloop(cta, accumulator, keys, group == work.begin_group);
    }
#pragma unroll
    for (int32_t part = 0; part < Shape::parts; ++part) {
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            if (work.whole) {
                accumulator.epilogue(cta, part, r);
            } else if (cta.shared.row_index[cta.row_of(part, r)] >= 0) {
                accumulator.store_partial(cta, part, r);
            }
        }
    }
    __syncthreads(); // "item end"
}
