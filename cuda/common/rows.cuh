// The sequence and the position of a row of a pass.
#pragma once

#include "params.h"
#include "platform.cuh"

struct PassRow {
    int32_t sequence; // -1: padding
    int32_t position;
    int32_t limit; // the last cached position that it sees
    bool mask;
};

// Returns the last of the `batch` sequences whose first row is at most `row`; first[batch] is the end.
FLEXDRAFT_INLINE int32_t owner_of(const int32_t* first, int32_t batch, int32_t row) {
    int32_t low = 0, high = batch - 1;
    while (low < high) {
        const int32_t middle = (low + high + 1) / 2;
        if (__ldg(first + middle) <= row) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

// Returns the index of the `n`-th (from 0) set bit of `bits`, which has more than `n` set bits.
FLEXDRAFT_INLINE int32_t nth_bit(uint64_t bits, int32_t n) {
    for (int32_t i = 0; i < n; ++i) bits &= bits - 1;
    return __ffsll(int64_t(bits)) - 1;
}

FLEXDRAFT_INLINE PassRow pass_row(const FlexdraftPass& pass, int32_t row) {
    PassRow result = {-1, 0, -1, false};
    if (pass.batch == 0) return result;
    if (row < __ldg(pass.first_candidate + pass.batch)) {
        const int32_t sequence = owner_of(pass.first_candidate, pass.batch, row);
        result.sequence = sequence;
        result.position = __ldg(pass.start + sequence) + row - __ldg(pass.first_candidate + sequence);
        result.limit = result.position;
    } else if (row < __ldg(pass.first_mask + pass.batch)) {
        const int32_t sequence = owner_of(pass.first_mask, pass.batch, row);
        const int32_t place = row - __ldg(pass.first_mask + sequence);
        const int32_t slots = __ldg(pass.slots + sequence);
        const int32_t group =
            __ldg(pass.first_group + sequence) + nth_bit(__ldg(pass.groups + sequence), place / slots);
        result.sequence = sequence;
        result.limit = __ldg(pass.start + sequence) + group;
        result.position = result.limit + 1 + place % slots;
        result.mask = true;
    }
    return result;
}
