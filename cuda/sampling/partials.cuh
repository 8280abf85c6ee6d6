// The partial result of a chunk of the vocabulary: the chunk's contribution to the statistics and the draw of its row.
//
// Everything in a partial result is relative to the chunk's own largest logit, so nothing is rescaled within a chunk.
// sample_finish knows the largest logit of the row, and adds the chunks up. The draw is an exponential race (race.cuh).
#pragma once

#include "../ptx/math.cuh"
#include "race.cuh"
#include "warping.cuh"

constexpr float log2_e = 1.44269504088896340736f;

// How the pass over the logits weights the ids of a row, and whether it draws one of them.
struct RowDraw {
    DrawNumbers numbers;
    float scale; // log2(e) · inverse temperature; log2(e) for greedy rows
    bool draws;  // whether the chunk's winner is drawn; if not, it is the largest logit's id
};

// Returns the random numbers of a row. Its position may count from one of `starts`, [sequences].
FLEXDRAFT_INLINE DrawNumbers row_numbers(const FlexdraftRowSampling& row, const int32_t* starts, int32_t sequences) {
    uint64_t position = row.position;
    if (row.sequence >= 0 && row.sequence < sequences) position += uint64_t(int64_t(starts[row.sequence]));
    return draw_numbers(row.seed, row.purpose_and_slot, position);
}

FLEXDRAFT_INLINE RowDraw row_draw(const FlexdraftSampleParams& p, const FlexdraftRowSampling& row) {
    const float inverse = counted_inverse(row.inverse_temperature);
    // At the smallest temperatures the product would overflow to infinity, and 0 · infinity is NaN instead of 0.
    const float scale = inverse > 0.0f ? fminf(log2_e * inverse, 3.0e38f) : log2_e;
    // If top-k, top-p or min-p truncate the row, sample_finish draws instead, because only then the ids that are kept
    // are known.
    const bool draws = inverse > 0.0f && row.purpose_and_slot != 0u && !is_truncating(row, p.vocab);
    return RowDraw{row_numbers(row, p.starts, p.sequences), scale, draws};
}

// Returns the index of the logits of row `row`; −1 for padding and for an index out of range.
FLEXDRAFT_INLINE int32_t logits_row(const FlexdraftSampleParams& p, int32_t row) {
    const int32_t index = p.logit_index == nullptr ? row : p.logit_index[row];
    return index >= 0 && index < p.logit_rows ? index : -1;
}

template <typename L>
FLEXDRAFT_INLINE L* logits_at(const FlexdraftSampleParams& p, int32_t logits_row, int32_t id) {
    return static_cast<L*>(p.logits) + int64_t(logits_row) * p.logit_stride + id;
}

struct Partial {
    float max;       // the chunk's largest logit
    float sum;       // of exp((logit − max) · inverse temperature)
    float plain_sum; // of exp(logit − max); stored with a minus sign, −0 included, if one of the logits is NaN
    float logit;     // the winner's logit
    int32_t id;      // the winner; INT32_MAX if every logit is −inf
};

// Returns the address of one field of the partial results of a row, for all chunks: field f of chunk c of row r is word
// (r · FLEXDRAFT_PARTIAL_FIELDS + f) · chunks + c.
FLEXDRAFT_INLINE float* partial_field(const FlexdraftSampleParams& p, int32_t row, int32_t field) {
    return p.partials + (int64_t(row) * FLEXDRAFT_PARTIAL_FIELDS + field) * p.chunks;
}

// Stores the partial result of a chunk. `has_nan`: one of the logits is NaN, before it is counted.
FLEXDRAFT_INLINE void store_partial(const FlexdraftSampleParams& p, int32_t row, int32_t chunk, const Partial& partial,
                                    bool has_nan) {
    float* at = partial_field(p, row, 0) + chunk;
    at[0] = partial.max;
    at[int64_t(p.chunks)] = partial.sum;
    at[2 * int64_t(p.chunks)] = has_nan ? -partial.plain_sum : partial.plain_sum;
    at[3 * int64_t(p.chunks)] = partial.logit;
    at[4 * int64_t(p.chunks)] = __int_as_float(partial.id);
}

// Returns the sum of an array: its second half is added to its first half, and so on with the half that is left.
template <int32_t Count>
FLEXDRAFT_INLINE float tree_sum(float (&values)[Count]) {
    static_assert((Count & (Count - 1)) == 0, "halves");
#pragma unroll
    for (int32_t half = Count / 2; half > 0; half /= 2) {
#pragma unroll
        for (int32_t i = 0; i < half; ++i) values[i] += values[i + half];
    }
    return values[0];
}

// Returns the partial result of a chunk whose logits are spread over `Lanes` consecutive lanes: v[i][j] is the counted
// logit of id first + 4 · Lanes · i + j (−inf beyond the vocabulary), and `first` is a multiple of 4. All lanes of the
// warp call this together, and all lanes of the chunk get the result.
//
// Four ids are added first, then fours that are half of the chunk apart, then a quarter of the chunk, and so on. It
// does not matter whether one lane adds two fours or two lanes do, so `Lanes` changes no bit.
template <int32_t Groups, int32_t Lanes>
FLEXDRAFT_INLINE Partial chunk_partial(const float (&v)[Groups][4], int32_t first, const RowDraw& row) {
    constexpr uint32_t all_lanes = 0xffffffffu;
    float max = -infinity;
#pragma unroll
    for (int32_t i = 0; i < Groups; ++i) { max = fmaxf(max, fmaxf(fmaxf(v[i][0], v[i][1]), fmaxf(v[i][2], v[i][3]))); }
#pragma unroll
    for (int32_t offset = Lanes / 2; offset > 0; offset /= 2) max = fmaxf(max, __shfl_xor_sync(all_lanes, max, offset));

    // If no logit is above −inf, every weight is 0, and no id wins.
    const float base = max > -infinity ? max : 0.0f;
    // Returns logit − max, which is at most 0. +inf − +inf is NaN, and counts as 0.
    const auto below = [&](float logit) { return fminf(logit - base, 0.0f); };
    float sums[Groups], weight[Groups][4];
    PhiloxWords words[Groups];
    Race race;
    // If a warp has many chunks, then in nearly every step some chunk has an id that beats all earlier ids of its lane,
    // which would cost the whole warp a logarithm. Therefore all ids bound the winner before the first id enters the
    // race. With one chunk per warp, the first ids are enough.
    constexpr bool bound_all = Lanes < 32;
    const auto weigh = [&](int32_t i) {
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
            weight[i][j] = exp2_approx(below(v[i][j]) * row.scale);
            sums[i] = j == 0 ? weight[i][j] : sums[i] + weight[i][j];
        }
        words[i] = PhiloxWords{};
        if (!row.draws) return;
        words[i] = philox(row.numbers, uint32_t(first + 4 * Lanes * i) / 4u);
        if (bound_all || i == 0) {
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) race.bound(weight[i][j], words[i].word[j]);
        }
    };
    const auto share_bound = [&]() { race.leading = largest_of_lanes<Lanes>(race.leading); };
    if (bound_all) {
#pragma unroll
        for (int32_t i = 0; i < Groups; ++i) weigh(i);
        share_bound();
    }
#pragma unroll
    for (int32_t i = 0; i < Groups; ++i) {
        if (!bound_all) {
            weigh(i);
            // After the first four groups of ids, the lower bound of the winner hardly changes.
            if (i < 4) share_bound();
        }
        const int32_t id = first + 4 * Lanes * i;
        if (row.draws) {
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) race.enter<bound_all>(weight[i][j], words[i].word[j], v[i][j], id + j);
        } else {
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) {
                if (race.best == 0.0f && v[i][j] == max && max > -infinity) {
                    race.best = 1.0f, race.best_id = id + j, race.best_logit = max;
                }
            }
        }
    }
    if (row.draws) race.settle();
    float sum = tree_sum(sums), plain_sum = sum;
    if (row.scale != log2_e) {
#pragma unroll
        for (int32_t i = 0; i < Groups; ++i) {
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) {
                const float weight = exp2_approx(below(v[i][j]) * log2_e);
                sums[i] = j == 0 ? weight : sums[i] + weight;
            }
        }
        plain_sum = tree_sum(sums);
    }
    float best = race.best, best_logit = race.best_logit;
    int32_t best_id = race.best_id;
#pragma unroll
    for (int32_t offset = Lanes / 2; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(all_lanes, sum, offset);
        plain_sum += __shfl_xor_sync(all_lanes, plain_sum, offset);
        const float other = __shfl_xor_sync(all_lanes, best, offset);
        const float other_logit = __shfl_xor_sync(all_lanes, best_logit, offset);
        const int32_t other_id = __shfl_xor_sync(all_lanes, best_id, offset);
        if (is_better(other, other_id, best, best_id)) best = other, best_logit = other_logit, best_id = other_id;
    }
    return Partial{.max = max, .sum = sum, .plain_sum = plain_sum, .logit = best_logit, .id = best_id};
}
