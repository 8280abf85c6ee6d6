// The running state of a softmax, and how two of them become one.
//
// Scores are in bits (multiplied by log2 e), so weights are powers of two. A state that has seen nothing is
// maximum = -inf, sum = 0: merging it changes no bit of the other.
#pragma once

#include "../common/bf16.cuh"
#include "../ptx/math.cuh"

// The factor that brings a state with maximum `from` to the maximum `to`, which is not smaller.
FLEXDRAFT_INLINE float rescale(float from, float to) { return to == -INFINITY ? 1.0f : exp2_approx(from - to); }

// What becomes of the elements of two states that add up.
struct Factors {
    float of_a, of_b;

    FLEXDRAFT_METHOD float merged(float a, float b) const { return fmaf(b, of_b, a * of_a); }
};

// a = a and b, in this order: of their maxima and sums.
FLEXDRAFT_INLINE Factors merge_sums(float& a_maximum, float& a_sum, float b_maximum, float b_sum) {
    const float maximum = fmaxf(a_maximum, b_maximum);
    const Factors factors = {rescale(a_maximum, maximum), rescale(b_maximum, maximum)};
    a_sum = factors.merged(a_sum, b_sum);
    a_maximum = maximum;
    return factors;
}

// One head of one row; a warp has it, each lane some of the elements.
template <int32_t Elements>
struct State {
    float maximum, sum;
    float out[Elements];
};

template <int32_t Elements>
FLEXDRAFT_INLINE void merge(State<Elements>& a, const State<Elements>& b) {
    const Factors factors = merge_sums(a.maximum, a.sum, b.maximum, b.sum);
#pragma unroll
    for (int32_t i = 0; i < Elements; ++i) a.out[i] = factors.merged(a.out[i], b.out[i]);
}

// The result of two elements: divided by the sum, 0 where nothing was seen. A zero is always +0: which merges
// of empty states came before shows in the sign of a zero alone.
FLEXDRAFT_INLINE uint32_t divided(float low, float high, float sum) {
    const float scale = sum != 0.0f ? 1.0f / sum : 0.0f;
    return pack_bf16(fmaf(low, scale, 0.0f), fmaf(high, scale, 0.0f));
}

// In natural units.
FLEXDRAFT_INLINE float log_sum_exp(float maximum, float sum) {
    return sum != 0.0f ? (maximum + log2f(sum)) * 0.69314718f : -INFINITY;
}
