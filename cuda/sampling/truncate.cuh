// Top-k, top-p and min-p of one row by one CTA, exact and without a sort of the vocabulary.
//
// Ids stand in descending order of score, ties in ascending order of id; what top-k and top-p keep is a prefix
// of that order. Its end, the cut, is found by histograms of counts and weights: first by score in steps of
// 1/64, then, in the one bin where the cut lies, among the candidates themselves, or by bits of the key while
// there are too many of them. Counts and weights are integers, so the order in which threads
// add them changes nothing.
#pragma once

#include "../common/shapes.h"
#include "block.cuh"
#include "fixed_exp.cuh"
#include "partials.cuh"

constexpr int kFinishThreads = FLEXDRAFT_FINISH_THREADS;
constexpr int kBins = 2048;
constexpr int kCandidates = 1024;

// A chunk of a partial result is 2^bits ids.
constexpr int kChunkBits = 10, kCalibratedChunkBits = 6;
static_assert(FLEXDRAFT_CHUNK == 1 << kChunkBits && FLEXDRAFT_CALIBRATED_CHUNK == 1 << kCalibratedChunkBits, "");

struct FinishShared {
    uint64_t weights[kBins]; // or kCandidates candidates
    uint32_t counts[kBins];
    uint64_t scratch[kFinishThreads / 32];
    uint64_t found_before_count, found_before_weight;
    uint64_t cut_count, cut_weight;
    uint32_t found_bin, found_count;
    uint32_t cut_key;
    int cut_id;
    uint32_t candidates;
    float winner_logit;
};
static_assert(sizeof(FinishShared) <= FLEXDRAFT_FINISH_SHARED, "what the launch asks for");

template <typename L>
struct ScoredRow {
    const L* logits;
    int vocab;
    float max, inverse_temperature;
    const float* maxima; // of chunks of 2^chunk_bits ids
    int chunks, chunk_bits;
};

// The end of a prefix, and what the prefix amounts to.
struct Cut {
    uint32_t key;
    int id;
    uint64_t count, weight;
};

// How long the prefix is: `count` ids, or the shortest whose weight reaches `fraction` of `total` (0: of
// the row's). `fraction` 0 asks for a count.
struct CutTarget {
    uint64_t count;
    float fraction;
    uint64_t total;
};

FLEXDRAFT_INLINE float score_of_key(uint32_t key) {
    return key == 0u ? 0.0f : __uint_as_float((key - 1u) | 0x80000000u);
}

// Calls visit(first, scores) for the ids first..first + 4 of this thread, all of the row between the threads that may
// have a key below `end`: chunks whose largest logit has not are passed over. Ids beyond the vocabulary have no score:
// visit compares with vocab.
template <typename L, typename Visit>
FLEXDRAFT_INLINE void for_each_four(const ScoredRow<L>& row, uint32_t end, Visit visit) {
    constexpr int kBatch = 4; // loads under way
    const float least = least_distance(score_of_key(end - 1u), row.inverse_temperature);
    for (int base = 4 * int(threadIdx.x); base < row.vocab; base += 4 * kFinishThreads * kBatch) {
        float v[kBatch][4];
        bool visited[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int first = base + 4 * kFinishThreads * i;
            // What is no number, as of two infinities, is not passed over.
            visited[i] = first < row.vocab && !(row.maxima[first >> row.chunk_bits] - row.max < least);
            if (visited[i]) load_logits(v[i], row.logits + first);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (!visited[i]) continue;
#pragma unroll
            for (int j = 0; j < 4; ++j) v[i][j] = warped_score(counted(v[i][j]), row.max, row.inverse_temperature);
            visit(base + 4 * kFinishThreads * i, v[i]);
        }
    }
}

template <typename L, typename Visit>
FLEXDRAFT_INLINE void for_each_score(const ScoredRow<L>& row, uint32_t end, Visit visit) {
    for_each_four(row, end, [&](int first, const float(&scores)[4]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (first + j < row.vocab) visit(first + j, scores[j]);
        }
    });
}

// Adds to a sum in shared memory. The hardware adds words; a wider addition would be a loop of compare-and-swap.
FLEXDRAFT_INLINE void add_wide(uint64_t* sum, uint64_t value) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(sum);
    const uint32_t low = uint32_t(value);
    const uint32_t carry = atomicAdd(words, low) > ~low ? 1u : 0u;
    const uint32_t high = uint32_t(value >> 32) + carry;
    if (high != 0u) atomicAdd(words + 1, high);
}

// Bins of scores: 0 to 1/64 below the largest, and so on; the last takes all that is 32 − 1/64 or more below.
FLEXDRAFT_INLINE int score_bin(float score) { return score > -32.0f ? int(-score * 64.0f) : kBins - 1; }
FLEXDRAFT_INLINE uint32_t first_key_of_bin(int bin) {
    return bin == 0 ? 0u : bin == kBins ? kKeys : score_key(-float(bin) / 64.0f);
}

// Sorts s.weights[0..kCandidates] in ascending order (a bitonic network).
FLEXDRAFT_INLINE void sort_candidates(FinishShared& s) {
    for (int size = 2; size <= kCandidates; size *= 2) {
        for (int stride = size / 2; stride > 0; stride /= 2) {
            const int pair = int(threadIdx.x);
            const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
            const uint64_t a = s.weights[low], b = s.weights[high];
            if ((a > b) == ((low & size) == 0)) s.weights[low] = b, s.weights[high] = a;
            __syncthreads();
        }
    }
}
static_assert(kCandidates == 2 * kFinishThreads, "a thread compares one pair of candidates");

// The cut among the candidates in s.weights, with `before` candidates in front.
FLEXDRAFT_INLINE void cut_among_candidates(FinishShared& s, bool by_weight, uint64_t target, uint64_t before_count,
                                           uint64_t before_weight) {
    sort_candidates(s);
    const int first = 2 * int(threadIdx.x);
    uint64_t candidate[2], weight[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        candidate[i] = s.weights[first + i];
        const bool exists = candidate[i] != ~uint64_t(0);
        weight[i] = exists ? fixed_weight(score_of_key(uint32_t(candidate[i] >> 32))) : 0u;
    }
    uint64_t up_to = before_weight + block_sum_before<kFinishThreads>(weight[0] + weight[1], s.scratch);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint64_t count = before_count + uint64_t(first + i) + 1u;
        const uint64_t last = up_to;
        up_to += weight[i];
        const bool reached = by_weight ? last < target && up_to >= target : count == target;
        if (reached && candidate[i] != ~uint64_t(0)) {
            s.cut_key = uint32_t(candidate[i] >> 32), s.cut_id = int(uint32_t(candidate[i]));
            s.cut_count = count, s.cut_weight = up_to;
        }
    }
    __syncthreads();
}

// The cut after `wanted` of the ids whose key is `key`.
template <typename L>
FLEXDRAFT_INLINE void cut_among_ties(const ScoredRow<L>& row, FinishShared& s, uint32_t key, uint64_t wanted) {
    uint64_t passed = 0;
    for (int base = 0; base < row.vocab; base += 4 * kFinishThreads) {
        const int first = base + 4 * int(threadIdx.x);
        bool tied[4] = {};
        uint64_t count = 0;
        if (first < row.vocab) {
            float v[4];
            load_logits(v, row.logits + first);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float score = warped_score(counted(v[j]), row.max, row.inverse_temperature);
                tied[j] = first + j < row.vocab && score_key(score) == key;
                count += tied[j] ? 1u : 0u;
            }
        }
        uint64_t seen = passed + block_sum_before<kFinishThreads>(count, s.scratch);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            seen += tied[j] ? 1u : 0u;
            if (tied[j] && seen == wanted) s.cut_id = first + j;
        }
        passed += block_reduce<kFinishThreads>(count, s.scratch, [](uint64_t a, uint64_t b) { return a + b; });
        if (passed >= wanted) break;
    }
    __syncthreads();
}

// A key below which at least `count` ids of the row lie: that number of chunks have their largest logit there.
template <typename L>
FLEXDRAFT_INLINE uint32_t end_of_largest(const ScoredRow<L>& row, FinishShared& s, int count) {
    if (count > row.chunks) return kKeys;
    const int thread = int(threadIdx.x);
    for (int bin = thread; bin < kBins; bin += kFinishThreads) s.counts[bin] = 0;
    __syncthreads();
    for (int chunk = thread; chunk < row.chunks; chunk += kFinishThreads) {
        atomicAdd(&s.counts[score_bin(warped_score(row.maxima[chunk], row.max, row.inverse_temperature))], 1u);
    }
    __syncthreads();
    constexpr int kOwn = kBins / kFinishThreads;
    uint64_t own = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own += s.counts[kOwn * thread + i];
    uint64_t up_to = block_sum_before<kFinishThreads>(own, s.scratch);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const uint64_t last = up_to;
        up_to += s.counts[kOwn * thread + i];
        if (last < uint64_t(count) && up_to >= uint64_t(count)) s.found_bin = uint32_t(kOwn * thread + i);
    }
    __syncthreads();
    const int bin = int(s.found_bin);
    __syncthreads();
    return first_key_of_bin(bin + 1);
}

// The cut, which is known to be below `high`.
template <typename L>
FLEXDRAFT_INLINE Cut find_cut(const ScoredRow<L>& row, FinishShared& s, const CutTarget& wanted, uint32_t high) {
    const int thread = int(threadIdx.x);
    const bool by_weight = wanted.fraction > 0.0f;
    uint64_t target = wanted.count, before_count = 0, before_weight = 0;
    uint32_t low = 0; // the cut's key is in low..high
    bool by_score = true;
    if (thread == 0) s.cut_key = kKeys - 1u, s.cut_id = INT32_MAX, s.cut_count = 0, s.cut_weight = 0;

    // Each turn leaves one of 2048 bins: the first a range of at most 2^30 keys, the others 2^−11 of it.
    while (true) {
        int shift = 0;
        while ((high - 1u - low) >> shift >= uint32_t(kBins)) ++shift;
        for (int bin = thread; bin < kBins; bin += kFinishThreads) s.weights[bin] = 0, s.counts[bin] = 0;
        if (thread == 0) s.found_bin = kBins - 1, s.found_count = 0, s.candidates = 0;
        __syncthreads();
        for_each_score(row, high, [&](int, float score) {
            const uint32_t key = score_key(score);
            if (key < low || key >= high) return;
            const int bin = by_score ? score_bin(score) : int((key - low) >> shift);
            atomicAdd(&s.counts[bin], 1u);
            const uint64_t weight = fixed_weight(score);
            if (weight > 0u) add_wide(&s.weights[bin], weight);
        });
        __syncthreads();

        // The first bin at whose end the target is reached.
        constexpr int kOwn = kBins / kFinishThreads;
        uint64_t count = 0, weight = 0;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            count += s.counts[kOwn * thread + i];
            weight += s.weights[kOwn * thread + i];
        }
        if (by_weight && by_score) {
            const auto add = [](uint64_t a, uint64_t b) { return a + b; };
            const uint64_t sum = block_reduce<kFinishThreads>(weight, s.scratch, add);
            target = ceil_of_fraction(wanted.fraction, wanted.total > 0u ? wanted.total : sum);
        }
        count = before_count + block_sum_before<kFinishThreads>(count, s.scratch);
        weight = before_weight + block_sum_before<kFinishThreads>(weight, s.scratch);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const int bin = kOwn * thread + i;
            const uint64_t last = by_weight ? weight : count;
            const uint64_t next = last + (by_weight ? s.weights[bin] : uint64_t(s.counts[bin]));
            if (last < target && next >= target) {
                s.found_bin = uint32_t(bin), s.found_count = s.counts[bin];
                s.found_before_count = count, s.found_before_weight = weight;
            }
            count += s.counts[bin], weight += s.weights[bin];
        }
        __syncthreads();
        const int bin = int(s.found_bin);
        const uint32_t in_bin = s.found_count;
        before_count = s.found_before_count, before_weight = s.found_before_weight;
        // The next turn writes what was just read.
        __syncthreads();
        // No bin reaches a target beyond the row, which no caller has: everything is kept then.
        if (in_bin == 0u) break;
        if (by_score) {
            low = first_key_of_bin(bin), high = min(high, first_key_of_bin(bin + 1));
        } else {
            const uint32_t end = low + (uint32_t(bin + 1) << shift);
            low += uint32_t(bin) << shift;
            high = end < high ? end : high;
        }
        by_score = false;

        if (in_bin <= uint32_t(kCandidates)) {
            for (int i = thread; i < kCandidates; i += kFinishThreads) s.weights[i] = ~uint64_t(0);
            __syncthreads();
            for_each_score(row, high, [&](int id, float score) {
                const uint32_t key = score_key(score);
                if (key < low || key >= high) return;
                const uint32_t at = atomicAdd(&s.candidates, 1u);
                if (at < uint32_t(kCandidates)) s.weights[at] = uint64_t(key) << 32 | uint32_t(id);
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

// The end of what `sampling` keeps of the row.
template <typename L>
FLEXDRAFT_INLINE Cut find_truncation(const ScoredRow<L>& row, const FlexdraftRowSampling& sampling,
                                     FinishShared& s) {
    Cut cut = {kKeys - 1u, INT32_MAX, 0, 0};
    if (sampling.top_k > 0 && sampling.top_k < row.vocab) {
        const uint32_t end = end_of_largest(row, s, sampling.top_k);
        cut = find_cut(row, s, CutTarget{uint64_t(sampling.top_k), 0.0f, 0}, end);
    }
    if (sampling.top_p > 0.0f && sampling.top_p < 1.0f) {
        // Of what top-k left; a prefix of it, as the target is no more than its weight. What has no weight is no part.
        const uint32_t end = min(cut.key + 1u, score_key(kWeightless));
        cut = find_cut(row, s, CutTarget{0, sampling.top_p, cut.weight}, end);
    }
    const uint32_t last_key = score_key(sampling.min_score);
    if (sampling.min_score > -kInfinity && cut.key > last_key) cut.key = last_key, cut.id = INT32_MAX;
    return cut;
}
