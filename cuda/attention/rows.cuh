// Which rows a tile of the product has, and what each sees.
//
// The rows of a sequence, candidates first and then its groups, are packed with the query heads that share a
// KV head: packed row m is head m % ratio of row m / ratio. Any ratio fills tiles of 16 without a gap.
#pragma once

#include "../common/rows.cuh"
#include "params.h"

struct Sequence {
    int32_t start;      // n
    int32_t candidates; // candidate rows
    int32_t slots;      // S
    uint64_t groups;    // bit i: group first_group + i
    int32_t first_group;
    int32_t rows;            // all rows
    int32_t first_candidate; // in the operands
    int32_t first_mask;
    int32_t length; // cached positions that some row sees
};

FLEXDRAFT_INLINE Sequence sequence_of(const FlexdraftPass& pass, int32_t s) {
    Sequence q;
    q.start = __ldg(pass.start + s);
    q.candidates = __ldg(pass.candidates + s);
    q.slots = __ldg(pass.slots + s);
    q.groups = __ldg(pass.groups + s);
    q.first_group = __ldg(pass.first_group + s);
    q.rows = q.candidates + __popcll(q.groups) * q.slots;
    q.first_candidate = __ldg(pass.first_candidate + s);
    q.first_mask = __ldg(pass.first_mask + s);
    const int32_t last_bit = 63 - __clzll(int64_t(q.groups));
    const int32_t groups_end = q.groups == 0 ? 0 : q.first_group + last_bit + 1;
    q.length = q.rows == 0 ? 0 : q.start + max(q.candidates, groups_end);
    return q;
}

// One row of a sequence.
struct AttentionRow {
    int32_t index; // in the operands; -1: there is no such row
    int32_t limit; // the last cached position that it sees
    int32_t group; // the index of its group among the sequence's; -1 for a candidate
};

FLEXDRAFT_INLINE AttentionRow attention_row(const Sequence& q, int32_t row) {
    AttentionRow result = {-1, -1, -1};
    if (row < q.candidates) {
        result.index = q.first_candidate + row;
        result.limit = q.start + row;
    } else if (row < q.rows) {
        result.group = (row - q.candidates) / q.slots;
        result.index = q.first_mask + row - q.candidates;
        result.limit = q.start + q.first_group + nth_bit(q.groups, result.group);
    }
    return result;
}

// The largest limit of rows first..=last, both of the sequence.
FLEXDRAFT_INLINE int32_t largest_limit(const Sequence& q, int32_t first, int32_t last) {
    const int32_t of_last = attention_row(q, last).limit;
    if (first >= q.candidates || last < q.candidates) return of_last;
    return max(of_last, q.start + q.candidates - 1);
}

// States that the cached keys of a sequence leave, one for as many splits as an item has.
FLEXDRAFT_INLINE int32_t states_of(const FlexdraftAttentionParams& p, const Sequence& q) {
    const int32_t keys = p.split * p.item_splits;
    return q.length / keys + (q.length % keys != 0 ? 1 : 0);
}
