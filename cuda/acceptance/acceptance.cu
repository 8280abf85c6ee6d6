// Acceptance of draft tokens and the bonus token, for a batch in one launch (two with block verification).
//
// Every CTA of a sequence repeats the scan, which reads two logits a draft token, and then covers a chunk of
// the vocabulary of the two rows where it stopped: the bonus token is the one that wins the race of weights, and
// the last CTA to arrive finds it among the chunks'. Comparisons only: any order gives the same.
#include "../common/shapes.h"
#include "../sampling/block.cuh"
#include "rows.cuh"
#include "selection.cuh"

namespace {

constexpr int32_t accept_threads = FLEXDRAFT_ACCEPT_THREADS;
constexpr int32_t block_ids = 4 * accept_threads;                    // that the threads of a CTA look at together
constexpr int32_t chunk_blocks = FLEXDRAFT_ACCEPT_CHUNK / block_ids; // of a CTA
static_assert(block_ids == FLEXDRAFT_CHUNK && FLEXDRAFT_ACCEPT_CHUNK % block_ids == 0,
              "a block is one chunk of the target");

// Where the scan stopped.
struct Stop {
    int32_t accepted;
    float prefix; // P_a: 1 but for block verification
};

// P_i of block verification, i = 0..=v, into shared memory; by thread 0.
template <typename Logit>
FLEXDRAFT_INLINE void block_prefixes(const Verification<Logit>& verification, const float2* probabilities,
                                     float* prefix) {
    prefix[0] = 1.0f;
    for (int32_t i = 1; i <= verification.sequence.drafts; ++i) {
        const float p = prefix[i - 1] * probabilities[i].x, q = probabilities[i].y;
        // A token that q cannot draw has no ratio; it counts as certain or impossible.
        const float ratio = q > 0.0f ? p / q : (p > 0.0f ? 1.0f : 0.0f);
        prefix[i] = fminf(ratio, 1.0f);
    }
}

// Shared memory of a CTA.
struct Scan {
    float2 probabilities[FLEXDRAFT_MAX_DRAFTS + 1]; // of d_i at i
    float prefix[FLEXDRAFT_MAX_DRAFTS + 1];
    uint16_t passed[FLEXDRAFT_MAX_DRAFTS + 1];
    float reduced[accept_threads / 32];
    float best[accept_threads / 32];
    int32_t id[accept_threads / 32];
    Stop stop;
    uint32_t last;
};
static_assert(sizeof(Scan) <= FLEXDRAFT_ACCEPT_SHARED, "what the wrapper gives a CTA");

template <typename Logit>
FLEXDRAFT_INLINE void read_probabilities(const Verification<Logit>& verification, Scan& scan) {
    const int32_t i = int32_t(threadIdx.x) + 1;
    if (i <= verification.sequence.drafts) scan.probabilities[i] = verification.probabilities(i);
    __syncthreads();
}

template <typename Logit>
FLEXDRAFT_INLINE Stop find_stop(const Verification<Logit>& verification, Scan& scan) {
    const FlexdraftVerify& s = verification.sequence;
    const int32_t i = int32_t(threadIdx.x) + 1;
    if (s.rule == FLEXDRAFT_RULE_MATCH || s.drafts == 0) {
        if (i <= s.drafts) scan.passed[i] = verification.target(i - 1).stats.token == verification.token(i);
    } else {
        read_probabilities(verification, scan);
        if (s.rule == FLEXDRAFT_RULE_BLOCK) {
            if (threadIdx.x == 0) block_prefixes(verification, scan.probabilities, scan.prefix);
            __syncthreads();
        }
        // A warp a draft token: block verification adds up what the chunks have left, always in the same order.
        const int32_t lane = int32_t(threadIdx.x) % 32;
        for (int32_t j = int32_t(threadIdx.x) / 32 + 1; j <= s.drafts; j += accept_threads / 32) {
            double threshold = scan.probabilities[j].x, scale = scan.probabilities[j].y;
            if (s.rule == FLEXDRAFT_RULE_BLOCK) {
                threshold = scan.prefix[j];
                scale = 1.0;
                if (j < s.drafts) {
                    const float* const sums =
                        verification.p.sums +
                        (int64_t(blockIdx.y) * (FLEXDRAFT_MAX_DRAFTS + 1) + j) * verification.p.chunks;
                    double surplus = 0.0;
                    for (int32_t c = lane; c < verification.p.chunks; c += 32) surplus += double(sums[c]);
#pragma unroll
                    for (int32_t lanes = 16; lanes > 0; lanes /= 2)
                        surplus += __shfl_xor_sync(0xffffffffu, surplus, lanes);
                    threshold = surplus;
                    scale = surplus + 1.0 - double(scan.prefix[j]);
                }
            }
            // Strictly: a token of probability 0 never passes.
            if (lane == 0) scan.passed[j] = verification.uniform(j) * scale < threshold;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int32_t accepted = 0;
        if (s.rule == FLEXDRAFT_RULE_BLOCK && s.drafts > 0) {
            for (int32_t d = 1; d <= s.drafts; ++d) accepted = scan.passed[d] ? d : accepted;
        } else {
            while (accepted < s.drafts && scan.passed[accepted + 1]) ++accepted;
        }
        scan.stop.accepted = accepted;
        scan.stop.prefix = s.rule == FLEXDRAFT_RULE_BLOCK && s.drafts > 0 ? scan.prefix[accepted] : 1.0f;
    }
    __syncthreads();
    return scan.stop;
}

struct Best {
    float score;
    int32_t id;
};

FLEXDRAFT_INLINE Best better(Best a, Best b) {
    const bool second = b.score > a.score || (b.score == a.score && b.id < a.id);
    return second ? b : a;
}

// The best of all threads, for every thread.
FLEXDRAFT_INLINE Best best_of_cta(Best mine, Scan& scan) {
#pragma unroll
    for (int32_t lanes = 16; lanes > 0; lanes /= 2) {
        const Best other = {__shfl_xor_sync(0xffffffffu, mine.score, lanes),
                            __shfl_xor_sync(0xffffffffu, mine.id, lanes)};
        mine = better(mine, other);
    }
    if (threadIdx.x % 32 == 0) {
        scan.best[threadIdx.x / 32] = mine.score;
        scan.id[threadIdx.x / 32] = mine.id;
    }
    __syncthreads();
    Best all = {scan.best[0], scan.id[0]};
#pragma unroll
    for (int32_t w = 1; w < accept_threads / 32; ++w) all = better(all, Best{scan.best[w], scan.id[w]});
    __syncthreads();
    return all;
}

// P · p − q where that is above 0, rounded after each operation: what a host computes too.
FLEXDRAFT_INLINE float residual(float prefix, float p, float q) {
    return fmaxf(__fadd_rn(__fmul_rn(prefix, p), -q), 0.0f);
}

// Which of the ids first..end wins the race (cuda/sampling/partials.cuh) with weights max(prefix · p - q, 0), or p
// without a q. A weight of 0 never wins, and without any other the id counts as none. So ids without a p need no random
// number and no q: chunks of them are not read (all ids are, where `WholeRow`: this is rare), and of the other chunks a
// warp passes over its own.
template <bool WholeRow, typename Logit>
FLEXDRAFT_INLINE Best draw(const Verification<Logit>& verification, Stop stop, bool with_q, int32_t first, int32_t end,
                           Scan& scan) {
    const FlexdraftVerify& s = verification.sequence;
    const DrawNumbers numbers =
        draw_numbers(s.seed, uint32_t(residual_draw) << 16 | uint32_t(stop.accepted), uint64_t(s.position));
    const Distribution<Logit> p = verification.target(stop.accepted);
    const Distribution<Logit> q = with_q ? verification.draft(stop.accepted + 1) : p;
    const float least = least_distance_kept(p.stats);
    const bool is_cut = p.is_cut();
    uint32_t dropped = 0;
    if (!WholeRow) {
        dropped = p.template dropped_chunks<chunk_blocks>(first / block_ids, verification.target_chunks(), least);
    }
    Best mine = {0.0f, INT32_MAX};
    float leading = 0.0f;
    bool leads = false; // whether `leading` is that of a block
    for (int32_t block = first; block < end; block += block_ids, dropped /= 2) {
        if ((dropped & 1u) != 0u) continue;
        const int32_t id = block + 4 * int32_t(threadIdx.x);
        float of_p[4] = {}, of_q[4] = {};
        if (id < end) {
            p.load(of_p, id);
            if (with_q) q.load(of_q, id);
        }
        if (is_cut && !__any_sync(0xffffffffu, p.may_keep(of_p, least))) continue;
        const PhiloxWords words = philox(numbers, uint32_t(id) / 4);
        float weight[4];
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
            weight[i] = 0.0f;
            if (id + i >= end) continue;
            weight[i] = p.of(of_p[i], id + i);
            if (with_q) weight[i] = residual(stop.prefix, weight[i], q.of(of_q[i], id + i));
            if (!leads) leading = fmaxf(leading, race_floor(weight[i], words.word[i]));
        }
        leads = true;
#pragma unroll
        for (int32_t lanes = 16; lanes > 0; lanes /= 2)
            leading = fmaxf(leading, __shfl_xor_sync(0xffffffffu, leading, lanes));
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
            if (weight[i] > 0.0f && weight[i] >= leading * exponential_floor(words.word[i])) {
                mine = better(mine, Best{weight[i] / exponential(words.word[i]), id + i});
            }
        }
        leading = fmaxf(leading, mine.score);
    }
    return best_of_cta(mine, scan);
}

template <typename Logit>
FLEXDRAFT_INLINE void write_verdict(const Verification<Logit>& verification, Stop stop, int32_t bonus) {
    const FlexdraftAcceptParams& p = verification.p;
    const FlexdraftVerify& s = verification.sequence;
    int32_t* const committed = p.committed + int64_t(blockIdx.y) * (FLEXDRAFT_MAX_DRAFTS + 1);
    for (int32_t i = int32_t(threadIdx.x); i <= FLEXDRAFT_MAX_DRAFTS; i += accept_threads) {
        committed[i] = i < stop.accepted ? verification.token(i + 1) : (i == stop.accepted ? bonus : -1);
    }
    if (threadIdx.x != 0) return;
    FlexdraftVerdict verdict;
    verdict.accepted = stop.accepted;
    verdict.bonus = bonus;
    verdict.probability = verification.target(stop.accepted).at(bonus);
    const uint64_t below = s.groups & ((uint64_t(1) << stop.accepted) - 1);
    verdict.group = (s.groups >> stop.accepted & 1) != 0 ? __popcll(below) : -1;
    verdict.cached_length = s.position + stop.accepted + 1;
    p.verdicts[blockIdx.y] = verdict;
}

template <typename Logit>
FLEXDRAFT_INLINE void accept(const FlexdraftAcceptParams& p) {
    FLEXDRAFT_SHARED(shared);
    Scan& scan = *reinterpret_cast<Scan*>(shared);
    const int32_t chunk = int32_t(blockIdx.x);
    const Verification<Logit> verification = {p, p.sequences[blockIdx.y]};
    if (!verification.exists()) {
        if (chunk == 0 && threadIdx.x == 0) {
            if (p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_ROW));
            p.verdicts[blockIdx.y].accepted = -1;
        }
        return;
    }
    const FlexdraftVerify& s = verification.sequence;
    const bool matching = s.rule == FLEXDRAFT_RULE_MATCH || s.drafts == 0;
    if (matching && chunk != 0) return;
    const Stop stop = find_stop(verification, scan);
    if (matching) {
        write_verdict(verification, stop, verification.target(stop.accepted).stats.token);
        return;
    }
    const bool with_q = stop.accepted < s.drafts;
    const int32_t first = chunk * FLEXDRAFT_ACCEPT_CHUNK;
    const Best mine =
        draw<false>(verification, stop, with_q, first, min(first + FLEXDRAFT_ACCEPT_CHUNK, p.vocab), scan);
    float* const best = p.best + int64_t(blockIdx.y) * p.chunks * 2;
    if (threadIdx.x == 0) {
        best[2 * chunk] = mine.score;
        best[2 * chunk + 1] = __int_as_float(mine.id);
        __threadfence();
        scan.last = atomicAdd(p.arrived + blockIdx.y, 1u) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (scan.last == 0) return;
    Best all = {0.0f, INT32_MAX};
    for (int32_t c = int32_t(threadIdx.x); c < p.chunks; c += accept_threads) {
        all = better(all, Best{best[2 * c], __float_as_int(best[2 * c + 1])});
    }
    all = best_of_cta(all, scan);
    // Nothing is left of p where it equals q but for rounding: then p itself.
    if (all.id == INT32_MAX && with_q) all = draw<true>(verification, stop, false, 0, p.vocab, scan);
    if (threadIdx.x == 0) p.arrived[blockIdx.y] = 0;
    write_verdict(verification, stop, all.id == INT32_MAX ? 0 : all.id);
}

// One chunk of the sums of max(P_i p_i - q_{i+1}, 0), for block verification, for every gridDim.z-th i.
template <typename Logit>
FLEXDRAFT_INLINE void block_sums(const FlexdraftAcceptParams& p) {
    FLEXDRAFT_SHARED(shared);
    Scan& scan = *reinterpret_cast<Scan*>(shared);
    const int32_t chunk = int32_t(blockIdx.x);
    const Verification<Logit> verification = {p, p.sequences[blockIdx.y]};
    const FlexdraftVerify& s = verification.sequence;
    if (s.rule != FLEXDRAFT_RULE_BLOCK || int32_t(blockIdx.z) + 1 >= s.drafts || !verification.exists()) return;
    read_probabilities(verification, scan);
    if (threadIdx.x == 0) block_prefixes(verification, scan.probabilities, scan.prefix);
    __syncthreads();
    const int32_t first = chunk * FLEXDRAFT_ACCEPT_CHUNK, end = min(first + FLEXDRAFT_ACCEPT_CHUNK, p.vocab);
    constexpr int32_t turns = chunk_blocks;
    for (int32_t i = int32_t(blockIdx.z) + 1; i < s.drafts; i += int32_t(gridDim.z)) {
        const float prefix = scan.prefix[i];
        const Distribution<Logit> target = verification.target(i), draft = verification.draft(i + 1);
        const float least = least_distance_kept(target.stats);
        float of_p[turns][4] = {}, of_q[turns][4] = {};
        const uint32_t dropped =
            target.template dropped_chunks<turns>(first / block_ids, verification.target_chunks(), least);
#pragma unroll
        for (int32_t turn = 0; turn < turns; ++turn) {
            const int32_t block = first + turn * block_ids;
            const int32_t id = block + 4 * int32_t(threadIdx.x);
            if ((dropped >> turn & 1u) == 0u && id < end) {
                target.load(of_p[turn], id);
                draft.load(of_q[turn], id);
            }
        }
        float sum = 0.0f;
#pragma unroll
        for (int32_t turn = 0; turn < turns; ++turn) {
            // Without a p nothing is left above q.
            if ((dropped >> turn & 1u) != 0u) continue;
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) {
                const int32_t id = first + turn * block_ids + 4 * int32_t(threadIdx.x) + j;
                if (id < end) sum += residual(prefix, target.of(of_p[turn][j], id), draft.of(of_q[turn][j], id));
            }
        }
        sum = block_reduce<accept_threads>(sum, scan.reduced, [](float a, float b) { return a + b; });
        if (threadIdx.x == 0) {
            p.sums[(int64_t(blockIdx.y) * (FLEXDRAFT_MAX_DRAFTS + 1) + i) * p.chunks + chunk] = sum;
        }
    }
}

} // namespace

FLEXDRAFT_KERNEL(accept_f32, FlexdraftAcceptParams, accept_threads, 3) { accept<float>(p); }
FLEXDRAFT_KERNEL(accept_bf16, FlexdraftAcceptParams, accept_threads, 3) { accept<bf16>(p); }
FLEXDRAFT_KERNEL(accept_block_sums_f32, FlexdraftAcceptParams, accept_threads, 3) { block_sums<float>(p); }
FLEXDRAFT_KERNEL(accept_block_sums_bf16, FlexdraftAcceptParams, accept_threads, 3) { block_sums<bf16>(p); }

FLEXDRAFT_KERNEL(select_drafts, FlexdraftSelectParams, selection_threads, 1) { select(p); }
FLEXDRAFT_KERNEL(follow_verdicts, FlexdraftFollowParams, selection_threads, 1) { follow(p); }

FLEXDRAFT_KERNEL_TABLE(acceptance, accept_f32, accept_bf16, accept_block_sums_f32, accept_block_sums_bf16,
                       select_drafts, follow_verdicts)
