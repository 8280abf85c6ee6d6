// Acceptance of draft tokens and the choice of the bonus token, for a batch in one launch, or in two with block
// verification.
//
// Symbols, for one sequence: d_1 to d_v are its v draft tokens. p_i is the target's distribution of the token after
// d_i, for i = 0 to v, and q_i is the distribution that d_i was drawn from. a is the accepted length. P_i is the
// probability with which block verification keeps the prefix d_1 to d_i (arXiv 2403.10444); with the other rules P_i is
// 1.
//
// Grid [chunks of the vocabulary, sequences], a third dimension in accept_block_sums_*. Every CTA of a sequence repeats
// the scan over the draft tokens, which reads two logits per draft token. The bonus token is drawn by an exponential
// race (sampling/race.cuh) with weights max(P_a p_a − q_(a+1), 0), or p_a if all draft tokens are accepted. Each CTA
// finds the best id of its chunk, and the last CTA to arrive takes the best of the chunks. Both only compare, so any
// order of the CTAs gives the same token.
//
// Registers per thread:
//
//   kernel                            sm_80   sm_90a
//   accept_f32                           76       75
//   accept_bf16                          76       75
//   accept_f16                           77       75
//   accept_block_sums_f32                64       63
//   accept_block_sums_bf16               62       64
//   accept_block_sums_f16                62       64
//   select_drafts                        23       24
//   follow_verdicts                      15       15
#include "../common/shapes.h"
#include "../ptx/griddepcontrol.cuh"
#include "../sampling/race.cuh"
#include "rows.cuh"
#include "selection.cuh"

namespace {

constexpr int32_t accept_threads = FLEXDRAFT_ACCEPT_THREADS;
constexpr int32_t block_ids = 4 * accept_threads;                    // ids that a CTA reads at once
constexpr int32_t chunk_blocks = FLEXDRAFT_ACCEPT_CHUNK / block_ids; // blocks of ids in a CTA's chunk
static_assert(block_ids == FLEXDRAFT_CHUNK && FLEXDRAFT_ACCEPT_CHUNK % block_ids == 0,
              "a block is one chunk of the target");

// The place at which the accepted prefix of a draft ends: the accepted length a, P_a, and the FlexdraftLogitsFault of
// the target's row a.
struct Stop {
    int32_t accepted;
    float prefix;
    int32_t fault;
};

// Computes the probabilities P_0 to P_v with which block verification keeps each prefix of a draft, into `prefix`.
// Thread 0 calls this.
template <typename Logit>
FLEXDRAFT_INLINE void block_prefixes(const Verification<Logit>& verification, const float2* probabilities,
                                     float* prefix) {
    prefix[0] = 1.0f;
    for (int32_t i = 1; i <= verification.sequence.drafts; ++i) {
        const float p = prefix[i - 1] * probabilities[i].x, q = probabilities[i].y;
        // A draft token with q(token) = 0 has no ratio p / q; the ratio counts as 1 if p(token) is above 0, and as 0
        // otherwise.
        const float ratio = q > 0.0f ? p / q : (p > 0.0f ? 1.0f : 0.0f);
        prefix[i] = fminf(ratio, 1.0f);
    }
}

// The layout of a CTA's shared memory.
struct Scan {
    float2 probabilities[FLEXDRAFT_MAX_DRAFTS + 1]; // at i: p_(i-1)(d_i) and q_i(d_i)
    float prefix[FLEXDRAFT_MAX_DRAFTS + 1];         // at i: P_i
    uint16_t passed[FLEXDRAFT_MAX_DRAFTS + 1];      // at i: whether d_i passed its test
    float reduced[accept_threads / 32];             // scratch of sums
    uint64_t ranks[accept_threads / 32];            // scratch of arg-max
    Stop stop;
    uint32_t last; // whether this CTA is the last of its sequence
};
static_assert(sizeof(Scan) <= FLEXDRAFT_ACCEPT_SHARED, "what the launch asks for");

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
    const int32_t fault = i - 1 <= s.drafts ? verification.target(i - 1).stats.fault : FLEXDRAFT_LOGITS_SOUND;
    if (s.rule == FLEXDRAFT_RULE_MATCH || s.drafts == 0) {
        if (i <= s.drafts) scan.passed[i] = verification.target(i - 1).stats.token == verification.token(i);
    } else {
        read_probabilities(verification, scan);
        if (s.rule == FLEXDRAFT_RULE_BLOCK) {
            if (threadIdx.x == 0) block_prefixes(verification, scan.probabilities, scan.prefix);
            __syncthreads();
        }
        // Each warp tests one draft token at a time. Block verification adds the sums of the chunks, always in the same
        // order.
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
            // The comparison is strict, so a draft token of probability 0 never passes.
            if (lane == 0) scan.passed[j] = verification.uniform(j) * scale < threshold;
        }
    }
    // The first faulty row of the target, in the high word, and its fault.
    uint64_t faulty = ~uint64_t(0);
    if (__syncthreads_or(fault != FLEXDRAFT_LOGITS_SOUND) != 0) {
        if (fault != FLEXDRAFT_LOGITS_SOUND) faulty = uint64_t(i - 1) << 32 | uint32_t(fault);
        faulty = block_reduce<accept_threads>(faulty, scan.ranks, [](uint64_t a, uint64_t b) { return a < b ? a : b; });
    }
    if (threadIdx.x == 0) {
        int32_t accepted = 0;
        if (s.rule == FLEXDRAFT_RULE_BLOCK && s.drafts > 0) {
            for (int32_t d = 1; d <= s.drafts; ++d) accepted = scan.passed[d] ? d : accepted;
        } else {
            while (accepted < s.drafts && scan.passed[accepted + 1]) ++accepted;
        }
        // The verdict uses rows 0 to a. If one of them is faulty, the sequence ends there.
        const bool ends = faulty >> 32 <= uint64_t(accepted);
        if (ends) accepted = int32_t(faulty >> 32);
        scan.stop.accepted = accepted;
        scan.stop.fault = ends ? int32_t(uint32_t(faulty)) : FLEXDRAFT_LOGITS_SOUND;
        scan.stop.prefix = s.rule == FLEXDRAFT_RULE_BLOCK && s.drafts > 0 ? scan.prefix[accepted] : 1.0f;
    }
    __syncthreads();
    return scan.stop;
}

// Returns max(prefix · p − q, 0), rounded after each operation, as the host computes it.
FLEXDRAFT_INLINE float residual(float prefix, float p, float q) {
    return fmaxf(__fadd_rn(__fmul_rn(prefix, p), -q), 0.0f);
}

// Returns the rank (sampling/argmax.cuh) of the id from `first` to end − 1 that wins the exponential race for the bonus
// token, with weights max(P_a p_a − q_(a+1), 0), or p_a without a q; the id is INT32_MAX if every weight is 0.
//
// An id with p_a = 0 never wins, so it needs no random number and no q. Chunks with only such ids are not read, except
// with `WholeRow`, which is rare, and in the other chunks a warp skips blocks of its ids.
template <bool WholeRow, typename Logit>
FLEXDRAFT_INLINE uint64_t draw(const Verification<Logit>& verification, Stop stop, bool with_q, int32_t first,
                               int32_t end, Scan& scan) {
    const FlexdraftVerify& s = verification.sequence;
    const DrawNumbers numbers =
        draw_numbers(s.seed, uint32_t(residual_draw) << 16 | uint32_t(stop.accepted), uint64_t(s.position));
    const Distribution<Logit> p = verification.target(stop.accepted);
    const Distribution<Logit> q = with_q ? verification.draft(stop.accepted + 1) : p;
    const float least = least_distance_kept(p.stats);
    const bool is_cut = p.is_cut();
    const ChosenIds chosen = q.chosen_between(first, end);
    uint32_t dropped = 0;
    if (!WholeRow) {
        dropped = p.template dropped_chunks<chunk_blocks>(first / block_ids, verification.target_chunks(), least);
    }
    Race race;
    bool bounded = false; // whether the ids of a block have bounded the race
    for (int32_t block = first; block < end; block += block_ids, dropped /= 2) {
        if ((dropped & 1u) != 0u) continue;
        const int32_t id = block + 4 * int32_t(threadIdx.x);
        float of_p[4] = {}, of_q[4] = {};
        if (id < end) {
            p.load(of_p, id);
            if (with_q) q.load(of_q, id);
        }
        chosen.set(of_q, id);
        if (is_cut && !__any_sync(0xffffffffu, p.may_keep(of_p, least))) continue;
        const PhiloxWords words = philox(numbers, uint32_t(id) / 4);
        float weight[4];
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
            weight[i] = 0.0f;
            if (id + i >= end) continue;
            weight[i] = p.of(of_p[i], id + i);
            if (with_q) weight[i] = residual(stop.prefix, weight[i], q.of(of_q[i], id + i));
            if (!bounded) race.bound(weight[i], words.word[i]);
        }
        bounded = true;
        race.leading = largest_of_lanes<32>(race.leading);
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) { race.run(weight[i], words.word[i], 0.0f, id + i); }
    }
    return block_argmax<accept_threads>(rank_of(race.best, race.best_id), scan.ranks);
}

template <typename Logit>
FLEXDRAFT_INLINE void write_verdict(const Verification<Logit>& verification, Stop stop, int32_t bonus) {
    const FlexdraftAcceptParams& p = verification.p;
    const FlexdraftVerify& s = verification.sequence;
    int32_t* const committed = p.committed + int64_t(blockIdx.y) * (FLEXDRAFT_MAX_DRAFTS + 1);
    static_assert(FLEXDRAFT_MAX_DRAFTS < accept_threads, "a thread per token");
    const int32_t i = int32_t(threadIdx.x);
    if (i <= FLEXDRAFT_MAX_DRAFTS) {
        const bool has_bonus = i == stop.accepted && stop.fault == FLEXDRAFT_LOGITS_SOUND;
        committed[i] = i < stop.accepted ? verification.token(i + 1) : (has_bonus ? bonus : -1);
    }
    if (threadIdx.x != 0) return;
    FlexdraftVerdict verdict;
    verdict.accepted = stop.accepted;
    verdict.bonus = bonus;
    verdict.probability = verification.target(stop.accepted).at(bonus);
    const uint64_t below = s.groups & ((uint64_t(1) << stop.accepted) - 1);
    verdict.group = (s.groups >> stop.accepted & 1) != 0 ? __popcll(below) : -1;
    verdict.cached_length = s.position + stop.accepted + 1;
    verdict.fault = stop.fault;
    verdict.unused = 0;
    p.verdicts[blockIdx.y] = verdict;
}

template <typename Logit>
FLEXDRAFT_INLINE void accept(const FlexdraftAcceptParams& p) {
    FLEXDRAFT_SHARED(shared);
    Scan& scan = *reinterpret_cast<Scan*>(shared);
    const int32_t chunk = int32_t(blockIdx.x);
    wait_for_earlier_launches();
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
    const int32_t end = min(first + FLEXDRAFT_ACCEPT_CHUNK, p.vocab);
    const uint64_t own = draw<false>(verification, stop, with_q, first, end, scan);
    float* const best = p.best + int64_t(blockIdx.y) * p.chunks * 2;
    if (threadIdx.x == 0) {
        best[2 * chunk] = value_of_rank(own);
        best[2 * chunk + 1] = __int_as_float(id_of_rank(own));
        __threadfence();
        scan.last = atomicAdd(p.arrived + blockIdx.y, 1u) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (scan.last == 0) return;
    uint64_t rank = rank_of(0.0f, INT32_MAX);
    for (int32_t c = int32_t(threadIdx.x); c < p.chunks; c += accept_threads) {
        const uint64_t other = rank_of(best[2 * c], __float_as_int(best[2 * c + 1]));
        rank = other > rank ? other : rank;
    }
    rank = block_argmax<accept_threads>(rank, scan.ranks);
    // If p equals q up to rounding, every weight max(p − q, 0) is 0, and the bonus token is drawn from p itself.
    if (id_of_rank(rank) == INT32_MAX && with_q) rank = draw<true>(verification, stop, false, 0, p.vocab, scan);
    if (threadIdx.x == 0) p.arrived[blockIdx.y] = 0;
    const int32_t bonus = id_of_rank(rank);
    write_verdict(verification, stop, bonus == INT32_MAX ? 0 : bonus);
}

// Adds max(P_i p_i − q_(i+1), 0) over the vocabulary ids of one chunk, for block verification and for i = 1 to v − 1,
// which the gridDim.z CTAs of the chunk share.
template <typename Logit>
FLEXDRAFT_INLINE void block_sums(const FlexdraftAcceptParams& p) {
    FLEXDRAFT_SHARED(shared);
    Scan& scan = *reinterpret_cast<Scan*>(shared);
    const int32_t chunk = int32_t(blockIdx.x);
    wait_for_earlier_launches();
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
        const ChosenIds chosen = draft.chosen_between(first, end);
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
            chosen.set(of_q[turn], id);
        }
        float sum = 0.0f;
#pragma unroll
        for (int32_t turn = 0; turn < turns; ++turn) {
            // A chunk of ids whose p is 0 adds nothing to the sum of max(P p − q, 0).
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
FLEXDRAFT_KERNEL(accept_f16, FlexdraftAcceptParams, accept_threads, 3) { accept<f16>(p); }
FLEXDRAFT_KERNEL(accept_block_sums_f32, FlexdraftAcceptParams, accept_threads, 3) { block_sums<float>(p); }
FLEXDRAFT_KERNEL(accept_block_sums_bf16, FlexdraftAcceptParams, accept_threads, 3) { block_sums<bf16>(p); }
FLEXDRAFT_KERNEL(accept_block_sums_f16, FlexdraftAcceptParams, accept_threads, 3) { block_sums<f16>(p); }

FLEXDRAFT_KERNEL(select_drafts, FlexdraftSelectParams, selection_threads, 1) { select(p); }
FLEXDRAFT_KERNEL(follow_verdicts, FlexdraftFollowParams, selection_threads, 1) { follow(p); }

FLEXDRAFT_KERNEL_TABLE(acceptance, accept_f32, accept_bf16, accept_f16, accept_block_sums_f32, accept_block_sums_bf16,
                       accept_block_sums_f16, select_drafts, follow_verdicts)
