// The distributions that an acceptance rule compares: p_i of the target and q_i of the draft (acceptance.cu), read one
// vocabulary id at a time.
#pragma once

#include "../common/philox.cuh"
#include "../sampling/warping.cuh"
#include "params.h"

// The distribution that one row of logits stands for, or a distribution with a single possible token. It computes the
// probability of an id as sampling did when a token was drawn.
template <typename Logit>
struct Distribution {
    const Logit* logits; // null: `point` has all of the probability
    FlexdraftRowStats stats;
    int32_t point;
    const float* maxima; // the largest logit of each chunk of FLEXDRAFT_CHUNK ids; may be null

    FLEXDRAFT_METHOD float at(int32_t id) const {
        return logits == nullptr ? of(0.0f, id) : of(load_logit(logits + id), id);
    }

    // Loads the logits of the ids from `id` to id + 3, where `id` is a multiple of 4. The load ends within the row's
    // stride.
    FLEXDRAFT_METHOD void load(float (&four)[4], int32_t id) const {
        if (logits != nullptr) load_logits(four, logits + id);
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
        if (logits == nullptr) return id == point ? 1.0f : 0.0f;
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
        const bool draft =
            s.first_draft == -1 || (s.first_draft >= 0 && s.first_draft <= p.draft_rows - s.drafts &&
                                    s.first_draft_stats >= 0 && s.first_draft_stats <= p.draft_stats_rows - s.drafts);
        return counts && target && tokens && draft;
    }

    // Returns draft token d_i, for i = 1 to v.
    FLEXDRAFT_METHOD int32_t token(int32_t i) const { return __ldg(p.tokens + sequence.first_token + i - 1); }

    FLEXDRAFT_METHOD int32_t target_chunks() const { return (p.vocab + FLEXDRAFT_CHUNK - 1) / FLEXDRAFT_CHUNK; }

    FLEXDRAFT_METHOD Distribution<Logit> target(int32_t i) const {
        const int64_t row = sequence.first_target + i;
        const int64_t line = target_chunks();
        const float* const maxima =
            p.target_partials == nullptr ? nullptr : p.target_partials + row * FLEXDRAFT_PARTIAL_FIELDS * line;
        return {static_cast<const Logit*>(p.target) + row * p.logit_stride, p.target_stats[row], 0, maxima};
    }

    FLEXDRAFT_METHOD Distribution<Logit> draft(int32_t j) const {
        if (sequence.first_draft < 0) return {nullptr, FlexdraftRowStats(), token(j), nullptr};
        const int64_t row = sequence.first_draft + j - 1;
        const int64_t stats_row = sequence.first_draft_stats + j - 1;
        return {static_cast<const Logit*>(p.draft) + row * p.logit_stride, p.draft_stats[stats_row], 0, nullptr};
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
        if (id < 0 || id >= p.vocab) return make_float2(0.0f, sequence.first_draft < 0 ? 1.0f : 0.0f);
        return make_float2(target(i - 1).at(id), draft(i).at(id));
    }
};
