// The state of an online softmax over some keys, and the merge of two states.
//
// A state is a maximum, a sum and a row of weighted values. Scores are in bits (multiplied by log2 e), so weights are
// powers of two. The state of no keys has maximum -inf and sum 0; merging it changes no bit of the other state.
#pragma once

#include "../common/element.cuh"
#include "../ptx/math.cuh"

constexpr float log2_e = 1.44269504088896340736f;

// Returns the factor by which a softmax state is multiplied when its maximum grows from `from` to `to`.
FLEXDRAFT_INLINE float rescale(float from, float to) { return to == -INFINITY ? 1.0f : exp2_approx(from - to); }

// The factors by which the elements of softmax states `a` and `b` are multiplied when the two are merged.
struct Factors {
    float of_a, of_b;

    FLEXDRAFT_METHOD float merged(float a, float b) const { return fmaf(b, of_b, a * of_a); }
};

// Merges the maximum and the sum of softmax state `b` into state `a`, and returns the factors for the elements.
FLEXDRAFT_INLINE Factors merge_sums(float& a_maximum, float& a_sum, float b_maximum, float b_sum) {
    const float maximum = fmaxf(a_maximum, b_maximum);
    const Factors factors = {.of_a = rescale(a_maximum, maximum), .of_b = rescale(b_maximum, maximum)};
    a_sum = factors.merged(a_sum, b_sum);
    a_maximum = maximum;
    return factors;
}

// The softmax state of one head of one row, whose elements are spread over the lanes of a warp: `Elements` per lane.
template <int32_t Elements>
struct State {
    float maximum, sum;
    float out[Elements];
};

// Merges softmax state `b` into state `a`. The order of the two matters to the bits.
template <int32_t Elements>
FLEXDRAFT_INLINE void merge(State<Elements>& a, const State<Elements>& b) {
    const Factors factors = merge_sums(a.maximum, a.sum, b.maximum, b.sum);
#pragma unroll
    for (int32_t i = 0; i < Elements; ++i) a.out[i] = factors.merged(a.out[i], b.out[i]);
}

// Adds a sink to a complete softmax state: a key with the given score (in bits) and without a value. Returns the factor for
// the elements. A row that saw no key keeps the empty state.
FLEXDRAFT_INLINE float add_sink(float& maximum, float& sum, float score) {
    return sum != 0.0f ? merge_sums(maximum, sum, score, 1.0f).of_a : 1.0f;
}

// Returns two elements of an attention output, divided by the sum of the weights; 0 if the row saw no key. The addition
// of 0 makes every zero +0, because the sign of a zero would show how many empty states were merged.
template <typename Element>
FLEXDRAFT_INLINE uint32_t divided(float low, float high, float sum) {
    const float scale = sum != 0.0f ? 1.0f / sum : 0.0f;
    return Element::pack(fmaf(low, scale, 0.0f), fmaf(high, scale, 0.0f));
}

// Returns the natural logarithm of the sum of the exponentials of a row's scores.
FLEXDRAFT_INLINE float log_sum_exp(float maximum, float sum) {
    return sum != 0.0f ? (maximum + log2f(sum)) * 0.69314718f : -INFINITY;
}
