// chain_choose_*: chooses the ids of the largest logits of each row, exactly and without a sort of the vocabulary.
//
// Grid [rows]. The pass over the logits (sampling) has left the largest logit of every chunk of the vocabulary. The K
// largest of a row lie in the K chunks with the largest of these maxima, ties to the lowest chunk: any other id has a
// smaller logit than these K maxima, or an equal logit and a higher id. So a CTA reads the maxima and K chunks.
//
// A warp keeps the 32 best ranks (sampling/argmax.cuh) that it has seen in its lanes. 32 new ranks are sorted and merged
// into them, which takes 20 exchanges between lanes, if one of the new ranks is among the K best so far.
#pragma once

#include "../common/shapes.h"
#include "../ptx/griddepcontrol.cuh"
#include "../sampling/argmax.cuh"
#include "../sampling/warping.cuh"
#include "params.h"

constexpr int32_t choose_threads = FLEXDRAFT_CHOOSE_THREADS;
constexpr int32_t choose_warps = choose_threads / 32;
static_assert(8 * choose_threads <= FLEXDRAFT_CHOOSE_SHARED && FLEXDRAFT_CHAIN_LIMIT == 32, "a rank per lane");

// The best ranks that a warp has seen: lane i has the i-th best, or 0 if there were fewer. All lanes call each method
// together.
struct WarpBest {
    uint64_t rank = 0;

    // Exchanges ranks with the lane whose index differs in bit `stride`. Returns the larger rank of the two in the
    // lane `keeps_larger` is true for.
    static FLEXDRAFT_METHOD uint64_t exchange(uint64_t own, int32_t stride, bool keeps_larger) {
        const uint64_t other = __shfl_xor_sync(0xffffffffu, own, stride);
        return (own > other) == keeps_larger ? own : other;
    }

    // Merges 32 ranks, in ascending order of lanes, into the best ranks. The larger ranks of descending and ascending
    // lanes are the 32 best of both, in an order that the exchanges turn into a descending order (a bitonic merge).
    FLEXDRAFT_METHOD void merge(uint64_t ascending) {
        const int32_t lane = int32_t(threadIdx.x) % 32;
        rank = rank > ascending ? rank : ascending;
#pragma unroll
        for (int32_t stride = 16; stride > 0; stride /= 2) rank = exchange(rank, stride, (lane & stride) == 0);
    }

    // Adds one rank per lane; 0 adds nothing. The best `count` ranks are exact, and later lanes may miss some.
    FLEXDRAFT_METHOD void add(uint64_t added, int32_t count) {
        const uint64_t least = __shfl_sync(0xffffffffu, rank, count - 1);
        if (!__any_sync(0xffffffffu, added > least)) return;
        const int32_t lane = int32_t(threadIdx.x) % 32;
#pragma unroll
        for (int32_t size = 2; size <= 32; size *= 2) {
#pragma unroll
            for (int32_t stride = size / 2; stride > 0; stride /= 2) {
                added = exchange(added, stride, ((lane & stride) == 0) == ((lane & size) != 0));
            }
        }
        merge(added);
    }

    // Merges the best ranks of all warps of the CTA, in every warp. `lists` has a rank per thread and may be reused at
    // once.
    FLEXDRAFT_METHOD void merge_warps(uint64_t* lists) {
        lists[threadIdx.x] = rank;
        __syncthreads();
        const int32_t lane = int32_t(threadIdx.x) % 32, own_warp = int32_t(threadIdx.x) / 32;
#pragma unroll
        for (int32_t warp = 0; warp < choose_warps; ++warp) {
            if (warp != own_warp) merge(lists[32 * warp + 31 - lane]);
        }
        __syncthreads();
    }
};

template <typename L>
FLEXDRAFT_INLINE void choose(const FlexdraftChooseParams& p, unsigned char* shared) {
    uint64_t* const lists = reinterpret_cast<uint64_t*>(shared);
    const int32_t row = int32_t(blockIdx.x), thread = int32_t(threadIdx.x), lane = thread % 32;
    wait_for_earlier_launches();
    const int32_t index = p.logit_index == nullptr ? row : p.logit_index[row];
    int32_t* const ids = p.ids + int64_t(row) * p.count;
    float* const chosen = p.chosen + int64_t(row) * p.count;
    if (index < 0 || index >= p.logit_rows) {
        if (thread < p.count) ids[thread] = thread, chosen[thread] = -infinity;
        if (thread == 0 && index != -1 && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_ROW));
        return;
    }

    const float* const maxima = p.partials + int64_t(row) * FLEXDRAFT_PARTIAL_FIELDS * p.chunks;
    WarpBest chunks;
    for (int32_t base = thread - lane; base < p.chunks; base += choose_threads) {
        const int32_t chunk = base + lane;
        chunks.add(chunk < p.chunks ? rank_of(maxima[chunk], chunk) : 0u, p.count);
    }
    chunks.merge_warps(lists);

    constexpr int32_t loads_in_flight = 4;
    const L* const logits = static_cast<const L*>(p.logits) + int64_t(index) * p.logit_stride;
    const int32_t fours = p.chunk_ids / 4; // loads of four logits per chunk
    const int32_t loads = min(p.count, p.chunks) * fours;
    WarpBest best;
    for (int32_t base = thread - lane; base < loads; base += loads_in_flight * choose_threads) {
        float v[loads_in_flight][4];
        int32_t first[loads_in_flight];
#pragma unroll
        for (int32_t i = 0; i < loads_in_flight; ++i) {
            const int32_t load = base + i * choose_threads + lane;
            const int32_t chunk = id_of_rank(__shfl_sync(0xffffffffu, chunks.rank, load / fours));
            // The stride of rows is a multiple of 8, so four logits from an id below the size of the vocabulary are
            // within the row.
            first[i] = load < loads ? chunk * p.chunk_ids + load % fours * 4 : p.vocab;
            if (first[i] < p.vocab) load_logits(v[i], logits + first[i]);
        }
#pragma unroll
        for (int32_t i = 0; i < loads_in_flight; ++i) {
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) {
                const int32_t id = first[i] + j;
                best.add(id < p.vocab ? rank_of(counted(v[i][j]), id) : 0u, p.count);
            }
        }
    }
    best.merge_warps(lists);
    if (thread < p.count) ids[thread] = id_of_rank(best.rank), chosen[thread] = value_of_rank(best.rank);
}
