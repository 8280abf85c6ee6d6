// Top-k, top-p and min-p of one row of logits by one CTA, exact and without a sort of the vocabulary.
//
// Sort the ids by descending score, ties by ascending id: top-k and top-p keep a prefix of this order. The end of the
// prefix, the cut, is found with histograms of counts and weights. The first histogram is by score in steps of 1/64; it
// leaves the one bin in which the cut lies. The candidates in this bin are sorted or, while they are too many, split by
// a histogram of the bits of their keys. Counts and weights are integers, so the order in which threads add them
// changes nothing.
#pragma once

#include "../common/shapes.h"
#include "block.cuh"
#include "fixed_exp.cuh"
#include "partials.cuh"

constexpr int32_t finish_threads = FLEXDRAFT_FINISH_THREADS;
constexpr int32_t bin_count = 2048;
constexpr int32_t max_candidates = 1024;

// The size of a chunk of vocabulary ids is a power of two, 2^bits, with and without the calibrator.
constexpr int32_t plain_chunk_bits = 10, calibrated_chunk_bits = 6;
static_assert(FLEXDRAFT_CHUNK == 1 << plain_chunk_bits && FLEXDRAFT_CALIBRATED_CHUNK == 1 << calibrated_chunk_bits, "");

struct FinishShared {
    uint64_t weights[bin_count]; // or max_candidates candidates
    uint32_t counts[bin_count];
    uint64_t scratch[finish_threads / 32];
    uint64_t found_before_count, found_before_weight;
    uint64_t cut_count, cut_weight;
    uint32_t found_bin, found_count;
    uint32_t cut_key;
    int32_t cut_id;
    uint32_t candidates;
    uint32_t has_nan; // whether the row has a NaN
    float winner_logit;
};
static_assert(sizeof(FinishShared) <= FLEXDRAFT_FINISH_SHARED, "what the launch asks for");

template <typename L>
struct ScoredRow {
    const L* logits;
    int32_t vocab;
    float max, inverse_temperature;
    const float* maxima; // of chunks of 2^chunk_bits ids
    int32_t chunks, chunk_bits;
};

// The end of the prefix of ids that top-k or top-p keeps: its last id with the id's key, and the count and the weight
// of the prefix.
struct Cut {
    uint32_t key;
    int32_t id;
    uint64_t count, weight;
};

// The length that a prefix of the sorted ids is to have. With `fraction` 0: `count` ids. Otherwise the shortest prefix
// whose weight is at least `fraction` of `total`, or of the row's weight if `total` is 0.
struct CutTarget {
    uint64_t count;
    float fraction;
    uint64_t total;
};

// Calls visit(first, scores) with the scores of four ids at a time, first to first + 3. Together the threads visit all
// ids of the row whose key may be below `end`; they skip chunks whose largest logit has a larger key. Ids beyond the
// vocabulary have no score: `visit` must compare ids with the size of the vocabulary.
template <typename L, typename Visit>
FLEXDRAFT_INLINE void for_each_four(const ScoredRow<L>& row, uint32_t end, Visit visit) {
    constexpr int32_t loads_in_flight = 4; // loads under way
    const float least = least_distance(score_of_key(end - 1u), row.inverse_temperature);
    for (int32_t base = 4 * int32_t(threadIdx.x); base < row.vocab; base += 4 * finish_threads * loads_in_flight) {
        float v[loads_in_flight][4];
        bool visited[loads_in_flight];
#pragma unroll
        for (int32_t i = 0; i < loads_in_flight; ++i) {
            const int32_t first = base + 4 * finish_threads * i;
            // The difference of two infinite logits is NaN; a chunk with such a difference is not skipped.
            visited[i] = first < row.vocab && !(row.maxima[first >> row.chunk_bits] - row.max < least);
            if (visited[i]) load_logits(v[i], row.logits + first);
        }
#pragma unroll
        for (int32_t i = 0; i < loads_in_flight; ++i) {
            if (!visited[i]) continue;
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) v[i][j] = warped_score(counted(v[i][j]), row.max, row.inverse_temperature);
            visit(base + 4 * finish_threads * i, v[i]);
        }
    }
}

template <typename L, typename Visit>
FLEXDRAFT_INLINE void for_each_score(const ScoredRow<L>& row, uint32_t end, Visit visit) {
    for_each_four(row, end, [&](int32_t first, const float(&scores)[4]) {
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
            if (first + j < row.vocab) visit(first + j, scores[j]);
        }
    });
}

// Adds to a 64-bit sum in shared memory, by two 32-bit additions. The hardware adds words; a wider addition would be a
// loop of compare-and-swap.
FLEXDRAFT_INLINE void add_wide(uint64_t* sum, uint64_t value) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(sum);
    const uint32_t low = uint32_t(value);
    const uint32_t carry = atomicAdd(words, low) > ~low ? 1u : 0u;
    const uint32_t high = uint32_t(value >> 32) + carry;
    if (high != 0u) atomicAdd(words + 1, high);
}

// Bins of a histogram of scores: bin 0 has the scores up to 1/64 below the largest, and so on; the last bin takes all
// scores that are 32 − 1/64 or more below.
FLEXDRAFT_INLINE int32_t score_bin(float score) { return score > -32.0f ? int32_t(-score * 64.0f) : bin_count - 1; }
FLEXDRAFT_INLINE uint32_t first_key_of_bin(int32_t bin) {
    return bin == 0 ? 0u : bin == bin_count ? key_end : score_key(-float(bin) / 64.0f);
}

// Sorts s.weights[0..max_candidates] in ascending order (a bitonic network).
FLEXDRAFT_INLINE void sort_candidates(FinishShared& s) {
    for (int32_t size = 2; size <= max_candidates; size *= 2) {
        for (int32_t stride = size / 2; stride > 0; stride /= 2) {
            const int32_t pair = int32_t(threadIdx.x);
            const int32_t low = 2 * pair - (pair & (stride - 1)), high = low + stride;
            const uint64_t a = s.weights[low], b = s.weights[high];
            if ((a > b) == ((low & size) == 0)) s.weights[low] = b, s.weights[high] = a;
            __syncthreads();
        }
    }
}
static_assert(max_candidates == 2 * finish_threads, "a thread compares one pair of candidates");

// Finds the end of the kept prefix among the candidates in s.weights; ids with the given count and weight come before
// them.
FLEXDRAFT_INLINE void cut_among_candidates(FinishShared& s, bool by_weight, uint64_t target, uint64_t before_count,
                                           uint64_t before_weight) {
    sort_candidates(s);
    const int32_t first = 2 * int32_t(threadIdx.x);
    uint64_t candidate[2], weight[2];
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
        candidate[i] = s.weights[first + i];
        const bool exists = candidate[i] != ~uint64_t(0);
        weight[i] = exists ? fixed_weight(score_of_key(uint32_t(candidate[i] >> 32))) : 0u;
    }
    uint64_t up_to = before_weight + block_sum_before<finish_threads>(weight[0] + weight[1], s.scratch);
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) {
        const uint64_t count = before_count + uint64_t(first + i) + 1u;
        const uint64_t last = up_to;
        up_to += weight[i];
        const bool reached = by_weight ? last < target && up_to >= target : count == target;
        if (reached && candidate[i] != ~uint64_t(0)) {
            s.cut_key = uint32_t(candidate[i] >> 32), s.cut_id = int32_t(uint32_t(candidate[i]));
            s.cut_count = count, s.cut_weight = up_to;
        }
    }
    __syncthreads();
}

// Finds the id with which a prefix of ids ends, among ids of equal score: the id number `wanted` of the ids whose key
// is `key`.
template <typename L>
FLEXDRAFT_INLINE void cut_among_ties(const ScoredRow<L>& row, FinishShared& s, uint32_t key, uint64_t wanted) {
    uint64_t passed = 0;
    for (int32_t base = 0; base < row.vocab; base += 4 * finish_threads) {
        const int32_t first = base + 4 * int32_t(threadIdx.x);
        bool tied[4] = {};
        uint64_t count = 0;
        if (first < row.vocab) {
            float v[4];
            load_logits(v, row.logits + first);
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) {
                const float score = warped_score(counted(v[j]), row.max, row.inverse_temperature);
                tied[j] = first + j < row.vocab && score_key(score) == key;
                count += tied[j] ? 1u : 0u;
            }
        }
        uint64_t seen = passed + block_sum_before<finish_threads>(count, s.scratch);
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
            seen += tied[j] ? 1u : 0u;
            if (tied[j] && seen == wanted) s.cut_id = first + j;
        }
        passed += block_reduce<finish_threads>(count, s.scratch, [](uint64_t a, uint64_t b) { return a + b; });
        if (passed >= wanted) break;
    }
    __syncthreads();
}

// Returns a key such that at least `count` ids of the row have smaller keys, because the largest logits of `count`
// chunks have.
template <typename L>
FLEXDRAFT_INLINE uint32_t end_of_largest(const ScoredRow<L>& row, FinishShared& s, int32_t count) {
    if (count > row.chunks) return key_end;
    const int32_t thread = int32_t(threadIdx.x);
    for (int32_t bin = thread; bin < bin_count; bin += finish_threads) s.counts[bin] = 0;
    __syncthreads();
    for (int32_t chunk = thread; chunk < row.chunks; chunk += finish_threads) {
        atomicAdd(&s.counts[score_bin(warped_score(row.maxima[chunk], row.max, row.inverse_temperature))], 1u);
    }
    __syncthreads();
    constexpr int32_t own_bins = bin_count / finish_threads;
    uint64_t own = 0;
#pragma unroll
    for (int32_t i = 0; i < own_bins; ++i) own += s.counts[own_bins * thread + i];
    uint64_t up_to = block_sum_before<finish_threads>(own, s.scratch);
#pragma unroll
    for (int32_t i = 0; i < own_bins; ++i) {
        const uint64_t last = up_to;
        up_to += s.counts[own_bins * thread + i];
        if (last < uint64_t(count) && up_to >= uint64_t(count)) s.found_bin = uint32_t(own_bins * thread + i);
    }
    __syncthreads();
    const int32_t bin = int32_t(s.found_bin);
    __syncthreads();
    return first_key_of_bin(bin + 1);
}

// Returns the end of the prefix that has the length `wanted`; the caller knows that its key is below `high`.
template <typename L>
FLEXDRAFT_INLINE Cut find_cut(const ScoredRow<L>& row, FinishShared& s, const CutTarget& wanted, uint32_t high) {
    const int32_t thread = int32_t(threadIdx.x);
    const bool by_weight = wanted.fraction > 0.0f;
    uint64_t target = wanted.count, before_count = 0, before_weight = 0;
    uint32_t low = 0; // the cut's key is in low..high
    bool by_score = true;
    if (thread == 0) s.cut_key = key_end - 1u, s.cut_id = INT32_MAX, s.cut_count = 0, s.cut_weight = 0;

    // Each turn narrows the search to one of 2048 bins: the first turn to a range of at most 2^30 keys, each later turn
    // to 2^−11 of its range.
    while (true) {
        int32_t shift = 0;
        while ((high - 1u - low) >> shift >= uint32_t(bin_count)) ++shift;
        for (int32_t bin = thread; bin < bin_count; bin += finish_threads) s.weights[bin] = 0, s.counts[bin] = 0;
        if (thread == 0) s.found_bin = bin_count - 1, s.found_count = 0, s.candidates = 0;
        __syncthreads();
        for_each_score(row, high, [&](int32_t, float score) {
            const uint32_t key = score_key(score);
            if (key < low || key >= high) return;
            const int32_t bin = by_score ? score_bin(score) : int32_t((key - low) >> shift);
            atomicAdd(&s.counts[bin], 1u);
            const uint64_t weight = fixed_weight(score);
            if (weight > 0u) add_wide(&s.weights[bin], weight);
        });
        __syncthreads();

        // Finds the first bin at whose end the count or the weight of ids reaches the target.
        constexpr int32_t own_bins = bin_count / finish_threads;
        uint64_t count = 0, weight = 0;
#pragma unroll
        for (int32_t i = 0; i < own_bins; ++i) {
            count += s.counts[own_bins * thread + i];
            weight += s.weights[own_bins * thread + i];
        }
        if (by_weight && by_score) {
            const auto add = [](uint64_t a, uint64_t b) { return a + b; };
            const uint64_t sum = block_reduce<finish_threads>(weight, s.scratch, add);
            target = ceil_of_fraction(wanted.fraction, wanted.total > 0u ? wanted.total : sum);
        }
        count = before_count + block_sum_before<finish_threads>(count, s.scratch);
        weight = before_weight + block_sum_before<finish_threads>(weight, s.scratch);
#pragma unroll
        for (int32_t i = 0; i < own_bins; ++i) {
            const int32_t bin = own_bins * thread + i;
            const uint64_t last = by_weight ? weight : count;
            const uint64_t next = last + (by_weight ? s.weights[bin] : uint64_t(s.counts[bin]));
            if (last < target && next >= target) {
                s.found_bin = uint32_t(bin), s.found_count = s.counts[bin];
                s.found_before_count = count, s.found_before_weight = weight;
            }
            count += s.counts[bin], weight += s.weights[bin];
        }
        __syncthreads();
        const int32_t bin = int32_t(s.found_bin);
        const uint32_t in_bin = s.found_count;
        before_count = s.found_before_count, before_weight = s.found_before_weight;
        // The next turn of the search overwrites the values that were just read.
        __syncthreads();
        // If the target is beyond the whole row, no bin reaches it; no caller asks for such a target. Then everything
        // is kept.
        if (in_bin == 0u) break;
        if (by_score) {
            low = first_key_of_bin(bin), high = min(high, first_key_of_bin(bin + 1));
        } else {
            const uint32_t end = low + (uint32_t(bin + 1) << shift);
            low += uint32_t(bin) << shift;
            high = end < high ? end : high;
        }
        by_score = false;

        if (in_bin <= uint32_t(max_candidates)) {
            for (int32_t i = thread; i < max_candidates; i += finish_threads) s.weights[i] = ~uint64_t(0);
            __syncthreads();
            for_each_score(row, high, [&](int32_t id, float score) {
                const uint32_t key = score_key(score);
                if (key < low || key >= high) return;
                const uint32_t at = atomicAdd(&s.candidates, 1u);
                if (at < uint32_t(max_candidates)) s.weights[at] = uint64_t(key) << 32 | uint32_t(id);
            });
            __syncthreads();
            cut_among_candidates(s, by_weight, target, before_count, before_weight);
            break;
        }
        if (high - low == 1u) {
            const uint64_t each = fixed_weight(score_of_key(low));
            const uint64_t missing = target - (by_weight ? before_weight : before_count);
            const uint64_t tied = by_weight && each > 0u ? (missing + each - 1u) / each : missing;
            if (thread == 0) {
                s.cut_key = low;
                s.cut_count = before_count + tied, s.cut_weight = before_weight + tied * each;
            }
            cut_among_ties(row, s, low, tied);
            break;
        }
    }
    const Cut cut = {s.cut_key, s.cut_id, s.cut_count, s.cut_weight};
    __syncthreads();
    return cut;
}

// Returns the end of the prefix of ids that top-k, top-p and min-p keep, as `sampling` sets them.
template <typename L>
FLEXDRAFT_INLINE Cut find_truncation(const ScoredRow<L>& row, const FlexdraftRowSampling& sampling, FinishShared& s) {
    Cut cut = {key_end - 1u, INT32_MAX, 0, 0};
    if (sampling.top_k > 0 && sampling.top_k < row.vocab) {
        const uint32_t end = end_of_largest(row, s, sampling.top_k);
        cut = find_cut(row, s, CutTarget{uint64_t(sampling.top_k), 0.0f, 0}, end);
    }
    if (sampling.top_p > 0.0f && sampling.top_p < 1.0f) {
        // The fraction of top-p is of the weight that top-k keeps, so the end of the prefix is among the ids that top-k
        // keeps. Ids without weight are not kept.
        const uint32_t end = min(cut.key + 1u, score_key(weightless_score));
        cut = find_cut(row, s, CutTarget{0, sampling.top_p, cut.weight}, end);
    }
    const uint32_t last_key = score_key(sampling.min_score);
    if (sampling.min_score > -infinity && cut.key > last_key) cut.key = last_key, cut.id = INT32_MAX;
    return cut;
}
