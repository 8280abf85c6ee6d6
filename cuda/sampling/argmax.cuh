// Arg-max over threads: of several ids, the id with the highest value wins, and ties go to the lowest id. Values are
// not NaN. INT32_MAX stands for no id.
#pragma once

#include "block.cuh"

FLEXDRAFT_INLINE bool is_better(float a_value, int32_t a_id, float b_value, int32_t b_id) {
    return a_value > b_value || (a_value == b_value && a_id < b_id);
}

// An id and its value as one integer, which is larger for a better id: order-preserving bits of the value, in which −0
// equals +0, then the complement of the id.
FLEXDRAFT_INLINE uint64_t rank_of(float value, int32_t id) {
    const uint32_t bits = __float_as_uint(value + 0.0f);
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return uint64_t(ordered) << 32 | ~uint32_t(id);
}

FLEXDRAFT_INLINE int32_t id_of_rank(uint64_t rank) { return int32_t(~uint32_t(rank)); }

FLEXDRAFT_INLINE float value_of_rank(uint64_t rank) {
    const uint32_t ordered = uint32_t(rank >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// Returns the best rank among all threads of the CTA, in every thread. `scratch` has an element per warp and may be
// reused at once.
template <int32_t Threads>
FLEXDRAFT_INLINE uint64_t block_argmax(uint64_t rank, uint64_t* scratch) {
    return block_reduce<Threads>(rank, scratch, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
}
