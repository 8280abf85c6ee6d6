// The exponential race, which draws an id with probability proportional to its weight: the id with the largest
// weight / E wins, where E = −ln u is standard exponential and u is the id's own uniform number.
//
// With weight exp(score) this is Gumbel-max, the arg-max of score − ln E, and the weights are needed for a sum anyway.
// Since 1 − u ≤ E ≤ (1 − u) / u, nearly all ids lose without a logarithm.
#pragma once

#include "../common/philox.cuh"
#include "argmax.cuh"

// Returns a lower bound of exponential(word), the id's exponential number, at the cost of one addition: the leading 23
// bits of 1 − u ≤ −ln u. The bound is smaller by a relative 2^−16 at least, so rounding cannot exceed the exact value.
FLEXDRAFT_INLINE float exponential_floor(uint32_t word) { return __uint_as_float(0x3f800000u | (~word >> 9)) - 1.0f; }

// Returns a lower bound of weight / exponential(word), which decides the race: −ln u ≤ (1 − u) / u, with u rounded
// down, and the result reduced by more than rounding may add.
FLEXDRAFT_INLINE float race_floor(float weight, uint32_t word) {
    const float u = __uint_as_float(0x3f800000u | (word >> 9)) - 1.0f;
    return __fdividef(weight * u, 1.0f - u) * 0.99999f;
}

// Returns the largest value in each group of `Lanes` neighbouring lanes, to all lanes of the group, which call this
// function together.
template <int32_t Lanes>
FLEXDRAFT_INLINE float largest_of_lanes(float value) {
#pragma unroll
    for (int32_t offset = Lanes / 2; offset > 0; offset /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    return value;
}

// The exponential race among the ids that one thread sees. An exponential takes a logarithm, in one of two branches,
// and a warp executes every branch that one of its lanes takes. Therefore enter() only stores an id that may win: its
// exponential is computed when another id that may win arrives, or at the end. Nearly always there is only one such
// computation.
struct Race {
    float leading = 0.0f; // a lower bound of the winner's weight / E
    float weight = 0.0f;  // of the id that waits; 0 if none waits
    uint32_t word = 0u;   // the random word of the id that waits
    float logit = -INFINITY;
    int32_t id = INT32_MAX;
    float best = 0.0f; // the largest weight / E of the ids that no longer wait
    float best_logit = -INFINITY;
    int32_t best_id = INT32_MAX;

    // Raises the lower bound of the winner's weight / E to that of an id that takes part.
    FLEXDRAFT_METHOD void bound(float some_weight, uint32_t some_word) {
        leading = fmaxf(leading, race_floor(some_weight, some_word));
    }

    // Computes weight / E of an id and compares it with the best so far, if the id may still win. Ids come in ascending
    // order, so of equal ids the lowest stays.
    FLEXDRAFT_METHOD void run(float new_weight, uint32_t new_word, float new_logit, int32_t new_id) {
        if (new_weight > 0.0f && new_weight >= leading * exponential_floor(new_word)) {
            const float ratio = new_weight / exponential(new_word);
            if (ratio > best) best = ratio, best_id = new_id, best_logit = new_logit;
            leading = fmaxf(leading, best);
        }
    }

    // Makes an id wait if it may still win; the id takes part when the next such id comes, or in settle(). `Bounded`:
    // bound() has seen this id.
    template <bool Bounded>
    FLEXDRAFT_METHOD void enter(float new_weight, uint32_t new_word, float new_logit, int32_t new_id) {
        if (!(new_weight >= leading * exponential_floor(new_word))) return;
        if (!Bounded) bound(new_weight, new_word);
        settle();
        weight = new_weight, word = new_word, logit = new_logit, id = new_id;
    }

    // Lets the id that waits take part in the race.
    FLEXDRAFT_METHOD void settle() {
        run(weight, word, logit, id);
        weight = 0.0f;
    }
};
