// The running state of a softmax, and how two of them become one.
//
// Scores are in bits (multiplied by log2 e), so weights are powers of two. A state that has seen nothing is
// maximum = -inf, sum = 0: merging it changes no bit of the other.
#pragma once

#include "../ptx/math.cuh"

// The factor that brings a state with maximum `from` to the maximum `to`, which is not smaller.
FLEXDRAFT_INLINE float rescale(float from, float to) { return to == -INFINITY ? 1.0f : exp2_approx(from - to); }

// One head of one row; a warp has it, each lane some of the elements.
template <int Elements>
struct State {
    float maximum, sum;
    float out[Elements];
};

// a = a and b, in this order.
template <int Elements>
FLEXDRAFT_INLINE void merge(State<Elements>& a, const State<Elements>& b) {
    const float maximum = fmaxf(a.maximum, b.maximum);
    const float of_a = rescale(a.maximum, maximum), of_b = rescale(b.maximum, maximum);
    a.sum = fmaf(b.sum, of_b, a.sum * of_a);
#pragma unroll
    for (int i = 0; i < Elements; ++i) a.out[i] = fmaf(b.out[i], of_b, a.out[i] * of_a);
    a.maximum = maximum;
}
