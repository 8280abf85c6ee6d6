// The distributions that an acceptance rule compares: p_i of the target and q_i of the draft (acceptance.cu), read one
// vocabulary id at a time.
#pragma once

#include "../common/philox.cuh"
#include "../sampling/warping.cuh"
#include "params.h"

// The chosen ids of a chained row that lie in a range of ids: each lane of a warp has one chosen id with its logit, and
// `within` has the bits of the lanes whose ids are in the range.
struct ChosenIds {
    int32_t id;
    float logit;
    uint32_t within;

    // Sets the logits of the chosen ids among the four ids from `id` on. All lanes of a warp call this together.
    FLEXDRAFT_METHOD void set(float (&four)[4], int32_t first) const {
        for (uint32_t left = within; left != 0u; left &= left - 1u) {
            const int32_t lane = __ffs(int32_t(left)) - 1;
            const int32_t place = __shfl_sync(0xffffffffu, id, lane) - first;
            const float value = __shfl_sync(0xffffffffu, logit, lane);
#pragma unroll
            for (int32_t i = 0; i < 4; ++i) four[i] = place == i ? value : four[i];
        }
    }
};

// The distribution that one row of logits stands for, that the chosen ids of a chained row stand for, or a distribution
// with a single possible token. It computes the probability of an id as sampling did when a token was drawn.
template <typename Logit>
struct Distribution {
    const Logit* logits; // null: the row has chosen ids, or `point` has all of the probability
    FlexdraftRowStats stats;
    int32_t point;
    const float* maxima = nullptr; // the largest logit of each chunk of FLEXDRAFT_CHUNK ids; may be null
    const int32_t* ids = nullptr;  // the chosen ids of a chained row, [count]; every other id has the logit −inf
    const float* chosen = nullptr; // the logits of the chosen ids, [count]
    int32_t count = 0;

    FLEXDRAFT_METHOD float at(int32_t id) const {
        if (logits != nullptr) return of(load_logit(logits + id), id);
        // The ids are loaded in groups of eight, whose loads are in flight together. The last group repeats the last id.
        constexpr int32_t group = 8;
        int32_t place = -1;
#pragma unroll 1
        for (int32_t first = 0; first < count; first += group) {
            int32_t loaded[group];
#pragma unroll
            for (int32_t i = 0; i < group; ++i) loaded[i] = ids[min(first + i, count - 1)];
#pragma unroll
            for (int32_t i = 0; i < group; ++i) place = loaded[i] == id ? min(first + i, count - 1) : place;
        }
        return of(place < 0 ? -infinity : chosen[place], id);
    }

    // Returns the chosen ids from `first` to end − 1. All lanes of a warp call this together.
    FLEXDRAFT_METHOD ChosenIds chosen_between(int32_t first, int32_t end) const {
        const int32_t lane = int32_t(threadIdx.x) % 32;
        ChosenIds own = {.id = -1, .logit = -infinity, .within = 0u};
        if (count == 0) return own;
        if (lane < count) own.id = ids[lane], own.logit = chosen[lane];
        own.within = __ballot_sync(0xffffffffu, own.id >= first && own.id < end);
        return own;
    }

    // Loads the logits of the ids from `id` to id + 3, where `id` is a multiple of 4. The load ends within the row's
    // stride. The logits of a chained row become −inf; ChosenIds sets the chosen logits.
    FLEXDRAFT_METHOD void load(float (&four)[4], int32_t id) const {
        if (logits != nullptr) {
            load_logits(four, logits + id);
        } else {
            four[0] = four[1] = four[2] = four[3] = -infinity;
        }
    }

    // Returns whether top-k, top-p or min-p dropped ids of this row.
    FLEXDRAFT_METHOD bool is_cut() const { return logits != nullptr && stats.cut_score > -infinity; }

    // Returns a mask of the `Count` chunks of the vocabulary from `chunk` on: bit i is set only if every id of chunk +
    // i has probability 0. The row has `chunks` chunks. `least` is least_distance_kept(stats); NaN, the difference of
    // two infinities, is not below it.
    template <int32_t Count>
    FLEXDRAFT_METHOD uint32_t dropped_chunks(int32_t chunk, int32_t chunks, float least) const {
        if (maxima == nullptr) return 0;
        float largest[Count];
#pragma unroll
        for (int32_t i = 0; i < Count; ++i) largest[i] = maxima[min(chunk + i, chunks - 1)];
        uint32_t dropped = 0;
#pragma unroll
        for (int32_t i = 0; i < Count; ++i) dropped |= largest[i] - stats.max < least ? 1u << i : 0u;
        return dropped;
    }

    // Returns whether at least one of four ids with these logits may have a probability above 0.
    FLEXDRAFT_METHOD bool may_keep(const float (&four)[4], float least) const {
        const float largest = fmaxf(fmaxf(four[0], four[1]), fmaxf(four[2], four[3]));
        return !(counted(largest) - stats.max < least);
    }

    // Returns the probability of the token `id`, whose logit in this row is `logit`.
    FLEXDRAFT_METHOD float of(float logit, int32_t id) const {
        if (logits == nullptr && count == 0) return id == point ? 1.0f : 0.0f;
        return warped_probability(stats, logit, id);
    }
};

// One sequence whose draft tokens are verified. Its rows and tokens may be used if exists() returns true.
template <typename Logit>
struct Verification {
    const FlexdraftAcceptParams& p;
    FlexdraftVerify sequence;

    FLEXDRAFT_METHOD bool exists() const {
        const FlexdraftVerify& s = sequence;
        const bool counts = s.drafts >= 0 && s.drafts <= FLEXDRAFT_MAX_DRAFTS && s.position >= 0;
        const bool target = s.first_target >= 0 && s.first_target < p.target_rows - s.drafts;
        const bool tokens = s.first_token >= 0 && s.first_token <= p.token_count - s.drafts;
        const bool stats = s.first_draft_stats >= 0 && s.first_draft_stats <= p.draft_stats_rows - s.drafts;
        const bool rows = s.first_draft >= 0 && s.first_draft <= p.draft_rows - s.drafts;
        const bool chained = s.first_draft == FLEXDRAFT_DRAFT_CHAINED && p.draft_count > 0;
        const bool draft = s.first_draft == FLEXDRAFT_DRAFT_CERTAIN || (stats && (rows || chained));
        return counts && target && tokens && draft;
    }

    // Returns draft token d_i, for i = 1 to v.
    FLEXDRAFT_METHOD int32_t token(int32_t i) const { return p.tokens[sequence.first_token + i - 1]; }

    FLEXDRAFT_METHOD int32_t target_chunks() const { return (p.vocab + FLEXDRAFT_CHUNK - 1) / FLEXDRAFT_CHUNK; }

    FLEXDRAFT_METHOD Distribution<Logit> target(int32_t i) const {
        const int64_t row = sequence.first_target + i;
        const int64_t line = target_chunks();
        const float* const maxima =
            p.target_partials == nullptr ? nullptr : p.target_partials + row * FLEXDRAFT_PARTIAL_FIELDS * line;
        return {static_cast<const Logit*>(p.target) + row * p.logit_stride, p.target_stats[row], 0, maxima};
    }

    FLEXDRAFT_METHOD Distribution<Logit> draft(int32_t j) const {
        if (sequence.first_draft == FLEXDRAFT_DRAFT_CERTAIN) return {nullptr, FlexdraftRowStats(), token(j)};
        const int64_t stats_row = sequence.first_draft_stats + j - 1;
        const FlexdraftRowStats stats = p.draft_stats[stats_row];
        if (sequence.first_draft == FLEXDRAFT_DRAFT_CHAINED) {
            const int64_t first = stats_row * p.draft_count;
            return {nullptr, stats, 0, nullptr, p.draft_ids + first, p.draft_chosen + first, p.draft_count};
        }
        const int64_t row = sequence.first_draft + j - 1;
        return {static_cast<const Logit*>(p.draft) + row * p.logit_stride, stats, 0};
    }

    // Returns the uniform random number, a multiple of 2^-32, that decides whether draft token d_i passes.
    FLEXDRAFT_METHOD double uniform(int32_t i) const {
        const DrawNumbers numbers =
            draw_numbers(sequence.seed, uint32_t(acceptance_uniform) << 16 | uint32_t(i), uint64_t(sequence.position));
        return double(philox(numbers, 0).word[0]) * (1.0 / 4294967296.0);
    }

    // Returns the probabilities p_(i-1)(d_i) and q_i(d_i) of draft token d_i. A token outside the vocabulary has
    // probability 0 in both.
    FLEXDRAFT_METHOD float2 probabilities(int32_t i) const {
        const int32_t id = token(i);
        if (id < 0 || id >= p.vocab) {
            return make_float2(0.0f, sequence.first_draft == FLEXDRAFT_DRAFT_CERTAIN ? 1.0f : 0.0f);
        }
        return make_float2(target(i - 1).at(id), draft(i).at(id));
    }
};
