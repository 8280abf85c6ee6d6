// sample_finish_*: combines the partial results of a row's chunks into the statistics of the row.
//
// Grid [rows]. Chunks are added in an order that depends only on their number. If a row asks for top-k, top-p or min-p,
// it is cut afterwards, and its token is drawn again among the ids that are kept.
#pragma once

#include "../ptx/griddepcontrol.cuh"
#include "truncate.cuh"

// The best vocabulary id that a thread has seen, with its logit.
struct Winner {
    float value;
    int32_t id;
    float logit;
};

FLEXDRAFT_INLINE void meet(Winner& winner, const Winner& other) {
    if (is_better(other.value, other.id, winner.value, winner.id)) winner = other;
}

// Replaces every thread's winner by the CTA's best id and its logit.
FLEXDRAFT_INLINE void block_winner(Winner& winner, FinishShared& s) {
    const uint64_t rank = rank_of(winner.value, winner.id);
    const uint64_t best = block_argmax<finish_threads>(rank, s.scratch);
    if (rank == best) s.winner_logit = winner.logit;
    __syncthreads();
    winner.id = id_of_rank(best), winner.logit = s.winner_logit;
    __syncthreads();
}

// Applies top-k, top-p and min-p to the row, draws a token among the ids that are kept, and updates the statistics that
// this changes.
template <typename L>
FLEXDRAFT_INLINE void truncate_row(const FlexdraftSampleParams& p, const FlexdraftRowSampling& sampling,
                                   const L* logits, const float* maxima, FlexdraftRowStats& stats, FinishShared& s) {
    const int32_t chunk_bits = p.rank > 0 ? calibrated_chunk_bits : plain_chunk_bits;
    const ScoredRow<L> row = {logits, p.vocab, stats.max, stats.inverse_temperature, maxima, p.chunks, chunk_bits};
    const Cut cut = find_truncation(row, sampling, s);
    stats.cut_score = score_of_key(cut.key), stats.cut_id = cut.id;

    const DrawNumbers numbers = row_numbers(sampling, p.starts, p.sequences);
    const bool draws = sampling.purpose_and_slot != 0u;
    uint64_t weight = 0, kept = 0;
    Winner winner = {.value = -infinity, .id = INT32_MAX, .logit = -infinity};
    for_each_four(row, cut.key + 1u, [&](int32_t first, const float(&scores)[4]) {
        bool is_in[4], any = false;
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
            const uint32_t key = score_key(scores[j]);
            is_in[j] = first + j < p.vocab && scores[j] > -infinity &&
                       (key < cut.key || (key == cut.key && first + j <= cut.id));
            any |= is_in[j];
        }
        if (!any) return;
        PhiloxWords words = {};
        if (draws) words = philox(numbers, uint32_t(first) / 4u);
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
            if (!is_in[j]) continue;
            weight += fixed_weight(scores[j]), kept += 1u;
            // An upper bound of the id's Gumbel number −ln(−ln u): if 2^32 − 1 − word has z leading zeros, −ln u ≥
            // 2^(−1 − z), so the Gumbel number is at most (z + 1) · ln 2, here rounded up.
            const float bound = draws ? float(1 + __clz(int32_t(~words.word[j]))) * 0.6932f : 0.0f;
            if (scores[j] + bound > winner.value || winner.id == INT32_MAX) {
                const float value = scores[j] + (draws ? gumbel(words.word[j]) : 0.0f);
                meet(winner, {.value = value, .id = first + j, .logit = 0.0f});
            }
        }
    });
    const auto add = [](uint64_t a, uint64_t b) { return a + b; };
    weight = block_reduce<finish_threads>(weight, s.scratch, add);
    kept = block_reduce<finish_threads>(kept, s.scratch, add);
    block_winner(winner, s);
    // The id with the largest logit is always kept, so some id wins; the check only keeps the load within the row.
    if (winner.id >= p.vocab) return;
    stats.token = winner.id;
    stats.token_logit = counted(load_logit(logits + winner.id));
    stats.log_sum = logf(float(weight) * (1.0f / float(1ull << weight_bits)));
    stats.kept = int32_t(kept);
}

template <typename L>
FLEXDRAFT_INLINE void sample_finish(const FlexdraftSampleParams& p, unsigned char* shared) {
    FinishShared& s = *reinterpret_cast<FinishShared*>(shared);
    const int32_t row = int32_t(blockIdx.x), thread = int32_t(threadIdx.x);
    uint32_t error = 0;
    wait_for_earlier_launches();
    const int32_t source = logits_row(p, row);
    FlexdraftRowStats stats = {};
    if (source < 0) {
        const bool is_padding = p.logit_index != nullptr && p.logit_index[row] == -1;
        if (thread == 0) {
            p.stats[row] = stats;
            if (!is_padding && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_ROW));
        }
        return;
    }
    const FlexdraftRowSampling sampling = p.sampling[row];
    if (sampling.sequence >= p.sequences) error |= FLEXDRAFT_ERROR_ROW;
    const RowDraw draw = row_draw(p, sampling);
    const L* logits = logits_at<L>(p, source, 0);

    const float* maxima = partial_field(p, row, 0);
    float max = -infinity;
    uint32_t signs = 0;
    if (thread == 0) s.has_nan = 0;
    for (int32_t chunk = thread; chunk < p.chunks; chunk += finish_threads) {
        max = fmaxf(max, maxima[chunk]);
        signs |= __float_as_uint(maxima[2 * int64_t(p.chunks) + chunk]);
    }
    float* const floats = reinterpret_cast<float*>(s.scratch);
    max = block_reduce<finish_threads>(max, floats, [](float a, float b) { return fmaxf(a, b); });
    // The minus sign of a chunk's sum. The next barrier of a row with a number is in the sums of its chunks.
    if ((signs & 0x80000000u) != 0u) atomicOr(&s.has_nan, 1u);
    if (max == -infinity) __syncthreads();

    stats.max = max;
    stats.inverse_temperature = counted_inverse(sampling.inverse_temperature);
    stats.cut_score = -infinity, stats.cut_id = INT32_MAX, stats.kept = p.vocab;
    stats.token_logit = -infinity;
    if (max > -infinity) {
        float sum = 0.0f, plain_sum = 0.0f;
        Winner winner = {.value = -infinity, .id = INT32_MAX, .logit = -infinity};
        for (int32_t chunk = thread; chunk < p.chunks; chunk += finish_threads) {
            const float* field = maxima + chunk;
            const float below = field[0] == max ? 0.0f : field[0] - max;
            sum += field[int64_t(p.chunks)] * exp2_approx(below * draw.scale);
            plain_sum += fabsf(field[2 * int64_t(p.chunks)]) * exp2_approx(below * log2_e);
            const float logit = field[3 * int64_t(p.chunks)];
            const int32_t id = __float_as_int(field[4 * int64_t(p.chunks)]);
            if (id == INT32_MAX) continue;
            float value = logit;
            if (draw.draws) {
                value = warped_score(logit, max, stats.inverse_temperature) + gumbel_of(draw.numbers, uint32_t(id));
            }
            meet(winner, {.value = value, .id = id, .logit = logit});
        }
        const auto add = [](float a, float b) { return a + b; };
        sum = block_reduce<finish_threads>(sum, floats, add);
        plain_sum = block_reduce<finish_threads>(plain_sum, floats, add);
        block_winner(winner, s);
        stats.token = winner.id, stats.token_logit = winner.logit;
        stats.confidence = 1.0f / plain_sum;
        if (stats.inverse_temperature > 0.0f) stats.log_sum = logf(sum);
        if (is_truncating(sampling, p.vocab)) {
            if (p.logits_current) {
                truncate_row(p, sampling, logits, maxima, stats, s);
            } else {
                error |= FLEXDRAFT_ERROR_STORE;
            }
        }
    }
    if (thread != 0) return;

    stats.fault = s.has_nan != 0u    ? FLEXDRAFT_LOGITS_NAN
                  : max == infinity  ? FLEXDRAFT_LOGITS_INFINITE
                  : max == -infinity ? FLEXDRAFT_LOGITS_FORBIDDEN
                                     : FLEXDRAFT_LOGITS_SOUND;
    if (is_one_hot(stats)) stats.kept = 1;
    stats.probability = warped_probability(stats, stats.token_logit, stats.token);
    const int32_t token = p.draft == nullptr ? -1 : p.draft[row];
    if (token >= p.vocab) {
        error |= FLEXDRAFT_ERROR_TOKEN;
    } else if (token >= 0 && (p.logits_current || is_one_hot(stats))) {
        const float logit = p.logits_current ? load_logit(logits + token) : 0.0f;
        stats.draft_probability = warped_probability(stats, logit, token);
    } else if (token >= 0) {
        error |= FLEXDRAFT_ERROR_STORE;
    }
    p.stats[row] = stats;
    if (error != 0u && p.error != nullptr) atomicOr(p.error, error);
}
