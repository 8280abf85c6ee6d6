// chain_walk: draws the tokens of a draft row by row, each among the chosen ids of its row.
//
// Grid [drafts]. All warps compute the random numbers of all rows; then one warp walks from row to row, with one chosen
// id per lane. A step of the walk depends on the previous step only through the row of the table of scores that it
// reads.
#pragma once

#include "../common/shapes.h"
#include "../common/vectors.cuh"
#include "../ptx/griddepcontrol.cuh"
#include "../sampling/fixed_exp.cuh"
#include "../sampling/partials.cuh"
#include "params.h"

constexpr int32_t walk_threads = FLEXDRAFT_WALK_THREADS;
static_assert(FLEXDRAFT_MAX_DRAFTS * 32 * 4 <= FLEXDRAFT_WALK_SHARED, "a random number per draft token and lane");

// One chosen id of a row, in the lane of a warp. Lanes beyond the chosen ids have the id INT32_MAX and the logit −inf.
struct ChosenId {
    int32_t id;
    float logit; // s_j
    float score; // the logit after temperature
    bool exists;
};

// Returns whether the row draws with random numbers; if not, its token is the id of the largest logit.
FLEXDRAFT_INLINE bool is_drawn(const FlexdraftRowSampling& sampling) {
    return counted_inverse(sampling.inverse_temperature) > 0.0f && sampling.purpose_and_slot != 0u;
}

// Applies top-k, top-p and min-p to the chosen ids of a row, in the order and with the weights of
// sampling/truncate.cuh. Sets the row's cut.
FLEXDRAFT_INLINE void truncate_chosen(const ChosenId& own, const FlexdraftRowSampling& sampling, int32_t count,
                                      FlexdraftRowStats& stats) {
    constexpr uint32_t all_lanes = 0xffffffffu;
    // An id's place in descending order of scores, ties to the lowest id, as an integer; smaller is better.
    const uint64_t order = uint64_t(own.exists ? score_key(own.score) : key_end) << 32 | uint32_t(own.id);
    const uint64_t weight = own.exists ? fixed_weight(own.score) : 0u;
    int32_t place = 0;
    uint64_t weight_before = 0;
    for (int32_t lane = 0; lane < count; ++lane) {
        const uint64_t other = __shfl_sync(all_lanes, order, lane), other_weight = __shfl_sync(all_lanes, weight, lane);
        if (other < order) ++place, weight_before += other_weight;
    }
    uint64_t cut = uint64_t(key_end - 1u) << 32 | uint32_t(INT32_MAX);
    bool kept = own.exists;
    const bool by_count = sampling.top_k > 0 && sampling.top_k < count;
    const bool by_weight = sampling.top_p > 0.0f && sampling.top_p < 1.0f;
    if (by_count) kept &= place < sampling.top_k;
    if (by_weight) {
        // The fraction of top-p is of the weight that top-k keeps.
        uint64_t total = kept ? weight : 0u;
#pragma unroll
        for (int32_t offset = 16; offset > 0; offset /= 2) total += __shfl_xor_sync(all_lanes, total, offset);
        kept &= weight_before < ceil_of_fraction(sampling.top_p, total);
    }
    if (by_count || by_weight) {
        const int32_t last = __popc(__ballot_sync(all_lanes, kept)) - 1;
        const uint32_t at = __ballot_sync(all_lanes, own.exists && place == last);
        cut = __shfl_sync(all_lanes, order, __ffs(int32_t(at)) - 1);
    }
    const uint32_t last_key = score_key(sampling.min_score);
    if (sampling.min_score > -infinity && uint32_t(cut >> 32) > last_key) {
        cut = uint64_t(last_key) << 32 | uint32_t(INT32_MAX);
    }
    stats.cut_score = score_of_key(uint32_t(cut >> 32)), stats.cut_id = int32_t(uint32_t(cut));
}

// Draws the token of one row and returns its statistics, in every lane. `before` is the place of the previous token
// among the chosen ids of its row, and becomes the place of the drawn token.
FLEXDRAFT_INLINE FlexdraftRowStats walk_row(const FlexdraftWalkParams& p, int32_t row, float gumbel, int32_t& before) {
    constexpr uint32_t all_lanes = 0xffffffffu;
    const int32_t lane = int32_t(threadIdx.x) % 32;
    const int64_t at = int64_t(row) * p.count + lane;
    const FlexdraftRowSampling sampling = p.sampling[row];
    ChosenId own = {.id = INT32_MAX, .logit = -infinity, .score = -infinity, .exists = lane < p.count};
    if (own.exists) {
        own.id = p.ids[at];
        own.logit = __fadd_rn(p.chosen[at], p.scores[(int64_t(row) * p.count + before) * p.count + lane]);
    }
    const bool has_nan = __any_sync(all_lanes, own.logit != own.logit);
    own.logit = counted(own.logit);
    if (own.exists) p.chosen[at] = own.logit;

    FlexdraftRowStats stats = {};
    stats.max = largest_of_lanes<32>(own.logit);
    stats.inverse_temperature = counted_inverse(sampling.inverse_temperature);
    stats.cut_score = -infinity, stats.cut_id = INT32_MAX;
    stats.token_logit = -infinity;
    before = 0;
    if (stats.max > -infinity) {
        // +inf − +inf is NaN, so equal logits are compared first.
        stats.confidence = 1.0f / warp_sum(expf(warped_score(own.logit, stats.max, 1.0f)));
        float value = own.logit;
        bool kept = own.exists;
        if (stats.inverse_temperature > 0.0f) {
            own.score = warped_score(own.logit, stats.max, stats.inverse_temperature);
            if (is_truncating(sampling, p.count)) truncate_chosen(own, sampling, p.count, stats);
            kept &= own.score > -infinity && is_kept(stats, own.score, own.id);
            if (is_drawn(sampling)) value = own.score + gumbel;
            stats.log_sum = logf(warp_sum(kept ? expf(own.score) : 0.0f));
            stats.kept = __popc(__ballot_sync(all_lanes, kept));
        }
        const uint64_t own_rank = kept ? rank_of(value, own.id) : 0u;
        uint64_t rank = own_rank;
#pragma unroll
        for (int32_t offset = 16; offset > 0; offset /= 2) {
            const uint64_t other = __shfl_xor_sync(all_lanes, rank, offset);
            rank = other > rank ? other : rank;
        }
        // The id with the largest logit is always kept, so a lane has the best rank.
        before = __ffs(int32_t(__ballot_sync(all_lanes, own_rank == rank))) - 1;
        stats.token = id_of_rank(rank), stats.token_logit = __shfl_sync(all_lanes, own.logit, before);
    }
    stats.fault = has_nan                  ? FLEXDRAFT_LOGITS_NAN
                  : stats.max == infinity  ? FLEXDRAFT_LOGITS_INFINITE
                  : stats.max == -infinity ? FLEXDRAFT_LOGITS_FORBIDDEN
                                           : FLEXDRAFT_LOGITS_SOUND;
    if (is_one_hot(stats)) stats.kept = 1;
    stats.probability = warped_probability(stats, stats.token_logit, stats.token);
    return stats;
}

FLEXDRAFT_INLINE void walk(const FlexdraftWalkParams& p, unsigned char* shared) {
    float* const gumbels = reinterpret_cast<float*>(shared); // [rows of the draft, 32]
    wait_for_earlier_launches();
    const FlexdraftDraft draft = p.drafts[blockIdx.x];
    const int32_t thread = int32_t(threadIdx.x), rows = draft.slots - 1, first = draft.first_draft;
    const bool exists = rows >= 0 && rows <= FLEXDRAFT_MAX_DRAFTS && first >= 0 && first <= p.rows - rows;
    if (!exists) {
        if (thread == 0 && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_ROW));
        return;
    }
    for (int32_t i = thread; i < 32 * rows; i += walk_threads) {
        const int32_t row = first + i / 32, lane = i % 32;
        const FlexdraftRowSampling sampling = p.sampling[row];
        const bool draws = lane < p.count && is_drawn(sampling);
        const DrawNumbers numbers = row_numbers(sampling, p.starts, p.sequences);
        gumbels[i] = draws ? gumbel_of(numbers, uint32_t(p.ids[int64_t(row) * p.count + lane])) : 0.0f;
        if (lane == 0 && sampling.sequence >= p.sequences && p.error != nullptr) {
            atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_ROW));
        }
    }
    __syncthreads();
    if (thread >= 32) return;
    int32_t before = 0;
    for (int32_t i = 0; i < rows; ++i) {
        FlexdraftRowStats stats = {};
        if (p.logit_index == nullptr || p.logit_index[first + i] >= 0) {
            stats = walk_row(p, first + i, gumbels[32 * i + thread], before);
        }
        if (thread == 0) p.stats[first + i] = stats;
    }
}
