// The accumulator of joint_attention: the softmax state into which the splits of a work item are merged, and the output
// of that state.
//
// The splits of an item merge one after the other. In between, their state waits in registers or, if the sums of one
// split need the registers (Shape::waits_in_memory), at the item's place in the workspace.
#pragma once

#include "online_softmax.cuh"

// Returns the index of the workspace place for the item's state of row `m` of the block, in arrays [rows, q_heads,
// places].
template <typename Shape>
FLEXDRAFT_INLINE int64_t place_of(const JointCta<Shape>& cta, int32_t m) {
    return cta.head_row_of(m) * cta.p.places + cta.compiler_barrier(cta.shared.item.state_place);
}

// Returns the address of the maximum and the sum of the item's state of row `m`, in the workspace.
template <typename Shape>
FLEXDRAFT_INLINE float2* stats_of(const JointCta<Shape>& cta, int32_t m) {
    return reinterpret_cast<float2*>(cta.p.partial_stats) + place_of(cta, m);
}

// Returns the address of this thread's first pair of elements of the item's state of row `m`, in the workspace; the
// thread's other pairs are 8 elements apart.
template <typename Shape>
FLEXDRAFT_INLINE float* elements_of(const JointCta<Shape>& cta, int32_t m) {
    return cta.p.partial_out + place_of(cta, m) * Shape::head_dim + cta.lane % 4 * 2;
}

// Returns the maximum and the sum of the state of row `m` that waits in the workspace, or of the empty state if none
// waits. One of the row's four lanes loads both. All lanes of the warp call this together.
template <typename Shape>
FLEXDRAFT_INLINE float2 waiting_stats(const JointCta<Shape>& cta, int32_t m, bool waits) {
    float2 stats = make_float2(-INFINITY, 0.0f);
    if (waits && cta.lane % 4 == 0) stats = *stats_of(cta, m);
    stats.x = __shfl_sync(0xffffffffu, stats.x, cta.lane & ~3);
    stats.y = __shfl_sync(0xffffffffu, stats.y, cta.lane & ~3);
    return stats;
}

// Loads this thread's elements of the state of row `m` that waits in the workspace, or zeros if none waits. All loads
// are issued before the first is used, because a load takes longer than everything that is computed with its value.
template <typename Shape>
FLEXDRAFT_INLINE void load_waiting(const JointCta<Shape>& cta, float2 (&pairs)[Shape::head_dim / 8], int32_t m,
                                   bool waits) {
    const float2* const from = reinterpret_cast<const float2*>(elements_of(cta, m));
    if (waits) {
#pragma unroll
        for (int32_t n = 0; n < Shape::head_dim / 8; ++n) pairs[n] = from[4 * n];
    } else {
#pragma unroll
        for (int32_t n = 0; n < Shape::head_dim / 8; ++n) pairs[n] = make_float2(0.0f, 0.0f);
    }
}

template <typename Shape>
struct Accumulator {
    static constexpr int32_t parts = Shape::waits_in_memory ? 1 : Shape::parts;
    // The state in registers; not used if it waits in the workspace.
    float maximum[parts][2], sum[parts][2];
    float out[parts][Shape::head_dim / 8][4];
    bool fresh; // no split was added yet

    FLEXDRAFT_METHOD void reset() {
        fresh = true;
        if constexpr (!Shape::waits_in_memory) {
#pragma unroll
            for (int32_t part = 0; part < parts; ++part) {
#pragma unroll
                for (int32_t r = 0; r < 2; ++r) {
                    maximum[part][r] = -INFINITY;
                    sum[part][r] = 0.0f;
                }
#pragma unroll
                for (int32_t n = 0; n < Shape::head_dim / 8; ++n) {
#pragma unroll
                    for (int32_t i = 0; i < 4; ++i) out[part][n][i] = 0.0f;
                }
            }
        }
    }

    // Merges the state of a finished split into the accumulator, and resets the split's state.
    FLEXDRAFT_METHOD void merge_split(const JointCta<Shape>& cta, OnlineSoftmax<Shape>& split) {
        split.gather_sums();
#pragma unroll
        for (int32_t part = 0; part < Shape::parts; ++part) {
#pragma unroll
            for (int32_t r = 0; r < 2; ++r) {
                if constexpr (Shape::waits_in_memory) {
                    const int32_t m = cta.row_of(part, r);
                    const bool exists = cta.shared.row_index[m] >= 0, waits = exists && !fresh;
                    float2 pairs[Shape::head_dim / 8];
                    load_waiting(cta, pairs, m, waits);
                    float2 before = waiting_stats(cta, m, waits);
                    const Factors factors = merge_sums(before.x, before.y, split.maximum[part][r], split.sum[part][r]);
                    if (!exists) continue;
                    if (cta.lane % 4 == 0) *stats_of(cta, m) = before;
                    float2* const to = reinterpret_cast<float2*>(elements_of(cta, m));
#pragma unroll
                    for (int32_t n = 0; n < Shape::head_dim / 8; ++n) {
                        to[4 * n] = make_float2(factors.merged(pairs[n].x, split.out[part][n][2 * r]),
                                                factors.merged(pairs[n].y, split.out[part][n][2 * r + 1]));
                    }
                } else {
                    const Factors factors =
                        merge_sums(maximum[part][r], sum[part][r], split.maximum[part][r], split.sum[part][r]);
#pragma unroll
                    for (int32_t n = 0; n < Shape::head_dim / 8; ++n) {
                        float(&own)[4] = out[part][n];
                        own[2 * r] = factors.merged(own[2 * r], split.out[part][n][2 * r]);
                        own[2 * r + 1] = factors.merged(own[2 * r + 1], split.out[part][n][2 * r + 1]);
                    }
                }
            }
        }
        fresh = false;
        split.reset();
    }

    // Stores the accumulated state of a row in the workspace, unless the state waits there already.
    FLEXDRAFT_METHOD void store_partial(const JointCta<Shape>& cta, int32_t part, int32_t r) const {
        if constexpr (!Shape::waits_in_memory) {
            const int32_t m = cta.row_of(part, r);
            if (cta.lane % 4 == 0) *stats_of(cta, m) = make_float2(maximum[part][r], sum[part][r]);
            float* const to = elements_of(cta, m);
#pragma unroll
            for (int32_t n = 0; n < Shape::head_dim / 8; ++n) {
                *reinterpret_cast<float2*>(to + 8 * n) = make_float2(out[part][n][2 * r], out[part][n][2 * r + 1]);
            }
        }
    }

    // Writes the attention output of a row, if the row belongs to the work item. All lanes of the warp call this
    // together.
    FLEXDRAFT_METHOD void epilogue(const JointCta<Shape>& cta, int32_t part, int32_t r) const {
        const FlexdraftAttentionParams& p = cta.p;
        const int32_t m = cta.row_of(part, r);
        const bool exists = cta.shared.row_index[m] >= 0;
        float2 stats, pairs[Shape::head_dim / 8];
        if constexpr (Shape::waits_in_memory) {
            load_waiting(cta, pairs, m, exists && !fresh);
            stats = waiting_stats(cta, m, exists && !fresh);
        } else {
            stats = make_float2(maximum[part][r], sum[part][r]);
#pragma unroll
            for (int32_t n = 0; n < Shape::head_dim / 8; ++n) {
                pairs[n] = make_float2(out[part][n][2 * r], out[part][n][2 * r + 1]);
            }
        }
        if (!exists) return;
        const int64_t head_row = cta.head_row_of(m);
        if (p.sinks != nullptr) {
            const float sink = p.sinks[head_row - int64_t(cta.shared.row_index[m]) * p.q_heads];
            const float factor = add_sink(stats.x, stats.y, sink * log2_e);
#pragma unroll
            for (int32_t n = 0; n < Shape::head_dim / 8; ++n) {
                pairs[n].x *= factor;
                pairs[n].y *= factor;
            }
        }
        uint16_t* const to = p.out + head_row * Shape::head_dim + cta.lane % 4 * 2;
#pragma unroll
        for (int32_t n = 0; n < Shape::head_dim / 8; ++n) {
            *reinterpret_cast<uint32_t*>(to + 8 * n) =
                divided<typename Shape::Element>(pairs[n].x, pairs[n].y, stats.y);
        }
        if (p.lse != nullptr && cta.lane % 4 == 0) p.lse[head_row] = log_sum_exp(stats.x, stats.y);
    }
};
