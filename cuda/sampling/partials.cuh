// What a chunk of the vocabulary contributes to its row: one pass over the logits, one line of results.
//
// Everything in a partial result is relative to the chunk's own largest logit, so nothing is rescaled within
// a chunk, and sample_finish, which knows the row's largest, adds the chunks up.
//
// The draw is a race: argmax of score + Gumbel is argmax of exp(score) / E with E = −ln u, and exp(score) is
// needed for the sum anyway. 1 − u ≤ E ≤ (1 − u) / u, so nearly all ids lose without a logarithm.
#pragma once

#include "../common/philox.cuh"
#include "../ptx/math.cuh"
#include "warping.cuh"

constexpr float kLog2E = 1.44269504088896340736f;

// What the pass needs to know of a row.
struct RowDraw {
    DrawNumbers numbers;
    float scale; // log2(e) · inverse temperature; log2(e) for greedy rows
    bool draws;  // otherwise the winner is the largest logit
};

FLEXDRAFT_INLINE DrawNumbers row_numbers(const FlexdraftSample& p, const FlexdraftRowSampling& row) {
    uint64_t position = row.position;
    if (row.sequence >= 0 && row.sequence < p.sequences) position += uint64_t(int64_t(p.starts[row.sequence]));
    return draw_numbers(row.seed, row.purpose_and_slot, position);
}

FLEXDRAFT_INLINE RowDraw row_draw(const FlexdraftSample& p, const FlexdraftRowSampling& row) {
    const float inverse = counted_inverse(row.inverse_temperature);
    // At the smallest temperatures the product overflows; 0 · scale must stay 0.
    const float scale = inverse > 0.0f ? fminf(kLog2E * inverse, 3.0e38f) : kLog2E;
    // A truncated row is drawn from once it is known what is kept.
    const bool draws = inverse > 0.0f && row.purpose_and_slot != 0u && !is_truncating(row, p.vocab);
    return RowDraw{row_numbers(p, row), scale, draws};
}

// The row of `logits` that row `row` is, or −1 where there is nothing to do.
FLEXDRAFT_INLINE int logits_row(const FlexdraftSample& p, int row) {
    const int index = p.logit_index == nullptr ? row : p.logit_index[row];
    return index >= 0 && index < p.logit_rows ? index : -1;
}

template <typename L>
FLEXDRAFT_INLINE L* logits_at(const FlexdraftSample& p, int logits_row, int id) {
    return static_cast<L*>(p.logits) + int64_t(logits_row) * p.logit_stride + id;
}

struct Partial {
    float max;       // the chunk's largest logit
    float sum;       // of exp((logit − max) · inverse temperature)
    float plain_sum; // of exp(logit − max)
    float logit;     // the winner's
    int id;          // the winner; INT32_MAX where every logit is −inf
};

// Field f of chunk c of row r is word ((r · fields) + f) · chunks + c.
FLEXDRAFT_INLINE float* partial_field(const FlexdraftSample& p, int row, int field) {
    return p.partials + (int64_t(row) * FLEXDRAFT_PARTIAL_FIELDS + field) * p.chunks;
}

FLEXDRAFT_INLINE void store_partial(const FlexdraftSample& p, int row, int chunk, const Partial& partial) {
    float* at = partial_field(p, row, 0) + chunk;
    at[0] = partial.max;
    at[int64_t(p.chunks)] = partial.sum;
    at[2 * int64_t(p.chunks)] = partial.plain_sum;
    at[3 * int64_t(p.chunks)] = partial.logit;
    at[4 * int64_t(p.chunks)] = __int_as_float(partial.id);
}

// The partial result of a chunk that `Lanes` consecutive lanes hold: v[i][j] is the counted logit of id
// first + 4 · Lanes · i + j (−inf beyond the vocabulary), first a multiple of 4. All lanes of the warp call
// this together; all of the chunk's lanes get the result.
template <int Groups, int Lanes>
FLEXDRAFT_INLINE Partial chunk_partial(const float (&v)[Groups][4], int first, const RowDraw& row) {
    constexpr uint32_t kAll = 0xffffffffu;
    float max = -kInfinity;
#pragma unroll
    for (int i = 0; i < Groups; ++i) {
        max = fmaxf(max, fmaxf(fmaxf(v[i][0], v[i][1]), fmaxf(v[i][2], v[i][3])));
    }
#pragma unroll
    for (int offset = Lanes / 2; offset > 0; offset /= 2) max = fmaxf(max, __shfl_xor_sync(kAll, max, offset));

    // Without any logit above −inf every weight is 0, and nobody wins.
    const float base = max > -kInfinity ? max : 0.0f;
    float sum = 0.0f, best = 0.0f, best_logit = -kInfinity;
    int best_id = INT32_MAX;
    // What the winner of the chunk has at least. A warp goes where one of its lanes goes, so an id that is out of the
    // race for the chunk must not be looked at because it leads in its lane.
    float leading = 0.0f;
#pragma unroll
    for (int i = 0; i < Groups; ++i) {
        const int id = first + 4 * Lanes * i;
        float weight[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            // +inf − +inf is no number.
            weight[j] = exp2_approx((v[i][j] == base ? 0.0f : v[i][j] - base) * row.scale);
            sum += weight[j];
        }
        PhiloxWords words = {};
        if (row.draws) words = philox(row.numbers, uint32_t(id) / 4u);
        if (i == 0 && row.draws) {
#pragma unroll
            for (int j = 0; j < 4; ++j) leading = fmaxf(leading, race_floor(weight[j], words.word[j]));
        }
        if (i < 4) {
            // Later the leader hardly changes.
#pragma unroll
            for (int offset = Lanes / 2; offset > 0; offset /= 2) {
                leading = fmaxf(leading, __shfl_xor_sync(kAll, leading, offset));
            }
        }
        if (row.draws) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (weight[j] >= leading * exponential_floor(words.word[j])) {
                    const float ratio = weight[j] / exponential(words.word[j]);
                    if (ratio > best) best = ratio, best_id = id + j, best_logit = v[i][j];
                }
            }
            leading = fmaxf(leading, best);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (best == 0.0f && v[i][j] == max && max > -kInfinity) best = 1.0f, best_id = id + j, best_logit = max;
            }
        }
    }
    float plain_sum = sum;
    if (row.scale != kLog2E) {
        plain_sum = 0.0f;
#pragma unroll
        for (int i = 0; i < Groups; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                plain_sum += exp2_approx((v[i][j] == base ? 0.0f : v[i][j] - base) * kLog2E);
            }
        }
    }
#pragma unroll
    for (int offset = Lanes / 2; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(kAll, sum, offset);
        plain_sum += __shfl_xor_sync(kAll, plain_sum, offset);
        const float other = __shfl_xor_sync(kAll, best, offset);
        const float other_logit = __shfl_xor_sync(kAll, best_logit, offset);
        const int other_id = __shfl_xor_sync(kAll, best_id, offset);
        if (other > best || (other == best && other_id < best_id)) {
            best = other, best_logit = other_logit, best_id = other_id;
        }
    }
    return Partial{max, sum, plain_sum, best_logit, best_id};
}
