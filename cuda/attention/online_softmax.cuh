// The online softmax of joint_attention: the state of one split, tile by tile, in the registers of a warp.
//
// Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867); Dao et al., "FlashAttention"
// (arXiv 2205.14135). Scores are in bits, as in state.cuh. A cap on the scores is the soft cap of Gemma 2 (arXiv
// 2408.00118).
#pragma once

#include "joint_cta.cuh"
#include "state.cuh"

// Returns tanh(x · ln(2) / 2), which is (2^x - 1) / (2^x + 1), with an absolute error below 2^-20.
FLEXDRAFT_INLINE float tanh_of_bits(float x) { return 1.0f - __fdividef(2.0f, 1.0f + exp2_approx(x)); }

// The online softmax of a warp's rows: a thread has two rows of each part of its warp (JointCta::row_of), and the
// quarter of each row's elements that Element::mma gives it. Until gather_sums, `sum` covers the thread's quarter of
// the keys; `maximum` covers all keys.
template <typename Shape>
struct OnlineSoftmax {
    using Element = typename Shape::Element;
    float maximum[Shape::parts][2], sum[Shape::parts][2];
    float out[Shape::parts][Shape::head_dim / 8][4];

    FLEXDRAFT_METHOD void reset() {
#pragma unroll
        for (int32_t part = 0; part < Shape::parts; ++part) {
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

    // Adds the tile of keys whose first key is `first` to the softmax states of the warp's rows. `q` and `k` are the
    // shared addresses of the warp's rows of Q and of the tile's K, behind which the tile's V lies. If `cut` is true, a
    // row may not see all keys of the tile.
    FLEXDRAFT_METHOD void add_tile(const JointCta<Shape>& cta, const KeyRange& keys, uint32_t q, uint32_t k,
                                   int32_t first, bool cut) {
        const float scale = cta.p.scale_log2;
        const int32_t lane = cta.compiler_barrier(cta.lane);
        float scores[Shape::parts][8][4];
        multiply_qk<Element, Shape::head_dim, Shape::parts>(scores, q, k, lane);
        if (cta.p.cap_scale != 0.0f) {
#pragma unroll
            for (int32_t part = 0; part < Shape::parts; ++part) {
#pragma unroll
                for (int32_t n = 0; n < 8; ++n) {
#pragma unroll
                    for (int32_t i = 0; i < 4; ++i) {
                        scores[part][n][i] = tanh_of_bits(scores[part][n][i] * cta.p.cap_scale);
                    }
                }
            }
        }
        if (cut) {
#pragma unroll
            for (int32_t part = 0; part < Shape::parts; ++part) {
                const int32_t last[2] = {cta.last_of(keys, part, 0), cta.last_of(keys, part, 1)};
#pragma unroll
                for (int32_t n = 0; n < 8; ++n) {
#pragma unroll
                    for (int32_t i = 0; i < 4; ++i) {
                        const int32_t key = first + 8 * n + lane % 4 * 2 + i % 2;
                        if (key > last[i / 2]) scores[part][n][i] = -INFINITY;
                    }
                }
            }
        }
        if (cta.p.window != FLEXDRAFT_NO_WINDOW && keys.group_row < 0) {
#pragma unroll
            for (int32_t part = 0; part < Shape::parts; ++part) {
                const int32_t begin[2] = {cta.begin_of_row(part, 0), cta.begin_of_row(part, 1)};
#pragma unroll
                for (int32_t n = 0; n < 8; ++n) {
#pragma unroll
                    for (int32_t i = 0; i < 4; ++i) {
                        const int32_t key = first + 8 * n + lane % 4 * 2 + i % 2;
                        if (key < begin[i / 2]) scores[part][n][i] = -INFINITY;
                    }
                }
            }
        }
        uint32_t weights[Shape::parts][8][2];
#pragma unroll
        for (int32_t part = 0; part < Shape::parts; ++part) {
            float before[2];
#pragma unroll
            for (int32_t r = 0; r < 2; ++r) {
                float most = fmaxf(scores[part][0][2 * r], scores[part][0][2 * r + 1]);
#pragma unroll
                for (int32_t n = 1; n < 8; ++n) {
                    most = fmaxf(most, fmaxf(scores[part][n][2 * r], scores[part][n][2 * r + 1]));
                }
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                most = fmaxf(maximum[part][r], most * scale);
                before[r] = rescale(maximum[part][r], most);
                const float base = most == -INFINITY ? 0.0f : most;
                float added = 0.0f;
#pragma unroll
                for (int32_t n = 0; n < 8; ++n) {
                    weights[part][n][r] = Element::pack(exp2_approx(fmaf(scores[part][n][2 * r], scale, -base)),
                                                        exp2_approx(fmaf(scores[part][n][2 * r + 1], scale, -base)));
                    // The sum by which a result is divided adds the weights as V is multiplied by them: rounded to
                    // the elements' type.
                    added += Element::low(weights[part][n][r]) + Element::high(weights[part][n][r]);
                }
                sum[part][r] = fmaf(sum[part][r], before[r], added);
                maximum[part][r] = most;
            }
            // The state is rescaled only if the tile has a new maximum for a row of the warp, which is rare.
            if (__any_sync(0xffffffffu, before[0] != 1.0f || before[1] != 1.0f)) {
#pragma unroll
                for (int32_t n = 0; n < Shape::head_dim / 8; ++n) {
#pragma unroll
                    for (int32_t i = 0; i < 4; ++i) out[part][n][i] *= before[i / 2];
                }
            }
        }
        multiply_pv<Element, Shape::head_dim, Shape::parts>(out, weights, k + Shape::tile_bytes, lane);
    }

    // Gives every thread the complete sums of its rows, which four lanes hold in parts.
    FLEXDRAFT_METHOD void gather_sums() {
#pragma unroll
        for (int32_t part = 0; part < Shape::parts; ++part) {
#pragma unroll
            for (int32_t r = 0; r < 2; ++r) {
                sum[part][r] += __shfl_xor_sync(0xffffffffu, sum[part][r], 1);
                sum[part][r] += __shfl_xor_sync(0xffffffffu, sum[part][r], 2);
            }
        }
    }
};
