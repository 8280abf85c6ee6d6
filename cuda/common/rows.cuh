// The attention mask between rows and cached positions, computed by arithmetic: every row of a pass has a limit, the
// last cached position that the row sees. `start` is the position of a sequence's candidate 0.
//
//   row                            position                limit
//   candidate i                    start + i               start + i
//   slot j of mask group k         start + k + 1 + j       start + k
//
// A slot also sees all slots of its own group, which are not in the cache.
//
// pass_row finds a row by its index in the operands. sequence_rows loads the description of one sequence, in which
// row_of_sequence counts candidates first, then the groups one after the other.
#pragma once

#include "params.h"
#include "platform.cuh"

FLEXDRAFT_INLINE int32_t candidate_limit(int32_t start, int32_t candidate) { return start + candidate; }
FLEXDRAFT_INLINE int32_t group_limit(int32_t start, int32_t group) { return start + group; }

// Returns the last of `batch` sequences whose first row is at most `row`; first[batch] is the number of rows.
FLEXDRAFT_INLINE int32_t owner_of(const int32_t* first, int32_t batch, int32_t row) {
    int32_t low = 0, high = batch - 1;
    while (low < high) {
        const int32_t middle = (low + high + 1) / 2;
        if (first[middle] <= row) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

// Returns the index of set bit number `n` of `bits`, counted from 0; `bits` has more than `n` set bits.
FLEXDRAFT_INLINE int32_t nth_bit(uint64_t bits, int32_t n) {
    for (int32_t i = 0; i < n; ++i) bits &= bits - 1;
    return __ffsll(int64_t(bits)) - 1;
}

// One row of a pass: its sequence, its position and what it sees.
struct PassRow {
    int32_t sequence; // -1: padding
    int32_t position;
    int32_t limit;
    bool mask; // whether the row is a slot of a mask group
};

FLEXDRAFT_INLINE PassRow pass_row(const FlexdraftPass& pass, int32_t row) {
    PassRow result = {.sequence = -1, .position = 0, .limit = -1, .mask = false};
    if (pass.batch == 0) return result;
    if (row < pass.first_candidate[pass.batch]) {
        const int32_t sequence = owner_of(pass.first_candidate, pass.batch, row);
        result.sequence = sequence;
        result.position = candidate_limit(pass.start[sequence], row - pass.first_candidate[sequence]);
        result.limit = result.position;
    } else if (row < pass.first_mask[pass.batch]) {
        const int32_t sequence = owner_of(pass.first_mask, pass.batch, row);
        const int32_t place = row - pass.first_mask[sequence];
        const int32_t slots = pass.slots[sequence];
        const int32_t group = pass.first_group[sequence] + nth_bit(pass.groups[sequence], place / slots);
        result.sequence = sequence;
        result.limit = group_limit(pass.start[sequence], group);
        result.position = result.limit + 1 + place % slots;
        result.mask = true;
    }
    return result;
}

// The description of the rows that one sequence has in a pass.
struct SequenceRows {
    int32_t start;
    int32_t candidates;      // number of candidate rows
    int32_t slots;           // slots per mask group
    uint64_t groups;         // bit i: the sequence has group first_group + i
    int32_t first_group;     // the accepted length of bit 0 of `groups`
    int32_t rows;            // number of candidate rows and mask rows
    int32_t first_candidate; // first candidate row in the operands
    int32_t first_mask;      // first mask row in the operands
    int32_t length;          // number of cached positions that at least one row sees
};

FLEXDRAFT_INLINE SequenceRows sequence_rows(const FlexdraftPass& pass, int32_t index) {
    SequenceRows sequence;
    sequence.start = pass.start[index];
    sequence.candidates = pass.candidates[index];
    sequence.slots = pass.slots[index];
    sequence.groups = pass.groups[index];
    sequence.first_group = pass.first_group[index];
    sequence.rows = sequence.candidates + __popcll(sequence.groups) * sequence.slots;
    sequence.first_candidate = pass.first_candidate[index];
    sequence.first_mask = pass.first_mask[index];
    const int32_t last_bit = 63 - __clzll(int64_t(sequence.groups));
    const int32_t groups_end = sequence.groups == 0 ? 0 : sequence.first_group + last_bit + 1;
    sequence.length = sequence.rows == 0 ? 0 : sequence.start + max(sequence.candidates, groups_end);
    return sequence;
}

// One row of a sequence: its index in the operands, its position, what it sees, and its mask group.
struct SequenceRow {
    int32_t index; // in the operands; -1: the sequence does not have the row
    int32_t position;
    int32_t limit;
    int32_t group; // the rank of the row's group among the groups of the sequence; -1: a candidate
};

FLEXDRAFT_INLINE SequenceRow row_of_sequence(const SequenceRows& sequence, int32_t row) {
    SequenceRow result = {.index = -1, .position = -1, .limit = -1, .group = -1};
    if (row < sequence.candidates) {
        result.index = sequence.first_candidate + row;
        result.position = result.limit = candidate_limit(sequence.start, row);
    } else if (row < sequence.rows) {
        result.group = (row - sequence.candidates) / sequence.slots;
        result.index = sequence.first_mask + row - sequence.candidates;
        result.limit = group_limit(sequence.start, sequence.first_group + nth_bit(sequence.groups, result.group));
        result.position = result.limit + 1 + (row - sequence.candidates) % sequence.slots;
    }
    return result;
}

// Returns the smallest position of the rows `first` to `last` of a sequence. The sequence has both rows. Positions ascend
// among candidates, among the slots of a group, and from slot 0 of a group to slot 0 of the next.
FLEXDRAFT_INLINE int32_t smallest_position(const SequenceRows& sequence, int32_t first, int32_t last) {
    const int32_t of_first = row_of_sequence(sequence, first).position;
    const int32_t mask = first - sequence.candidates;
    const int32_t next = sequence.candidates + (mask < 0 ? 0 : (mask / sequence.slots + 1) * sequence.slots);
    return next > last ? of_first : min(of_first, row_of_sequence(sequence, next).position);
}

// Returns the last cached position that any of the rows `first` to `last` of a sequence sees. The sequence has both
// rows.
FLEXDRAFT_INLINE int32_t largest_limit(const SequenceRows& sequence, int32_t first, int32_t last) {
    const int32_t of_last = row_of_sequence(sequence, last).limit;
    if (first >= sequence.candidates || last < sequence.candidates) return of_last;
    return max(of_last, candidate_limit(sequence.start, sequence.candidates - 1));
}
