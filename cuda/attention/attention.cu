// Joint draft-and-verify attention over a paged KV cache, on the matrix units.
//
// The grid has as many CTAs as run at once. Each takes items (items.cuh): a block of packed rows (rows.cuh) of one
// sequence and KV head, with some of its keys: a split or a span of splits of the cache, or the slots of one group. An
// item leaves, for each row and head, the state (state.cuh) of an online softmax over its keys, and attention_merge
// (merge.cuh) adds up a row's states. An item that has all cached keys of its sequence adds the slots of its rows'
// groups as well, and leaves the result.
//
// K and V tiles of 64 keys go through a ring of stages, and all rows of the block read each tile. With three stages:
//
//   step              prologue                             0              1              2             ...
//   wait, barrier                                       |  tile 0      |  tile 1      |  tile 2      |
//   cp.async          tile 0 -> stage 0, Q, tile 1 -> 1 |  tile 2 -> 2 |  tile 3 -> 0 |  tile 4 -> 1 |
//   products                                            |  tile 0      |  tile 1      |  tile 2      |
//   merge_split                                                  after the last tile of each split
//
// In step t a thread waits for its own copies of tile t, and the barrier makes the copies of all threads visible. The
// barrier also ends step t - 1, so the copies that follow it may overwrite the stage that step t - 1 has read.
//
// A row's bits depend on nothing but what the row sees: tiles, splits and spans begin at absolute positions, keys
// beyond a row's limit have weight exactly 0, and V is exactly 0 where no row of the block sees it. The splits of a
// span merge one after the other, so a CTA needs one state besides the state it works on: in registers or, if it has
// many rows, at its place in the workspace. Spans merge in the binary tree over their absolute index, and a group's own
// slots last. How many splits an item has, and which CTA takes an item when, changes nothing.
#include "items.cuh"
#include "merge.cuh"
#include "params.h"
#include "rows.cuh"
#include "state.cuh"
#include "tiles.cuh"

namespace {

// Where keys come from: the cache, or the rows of a group's slots.
struct Keys {
    int32_t first, end; // positions, or slots of the group
    int32_t group_row;  // the first row of the group in the operands; -1: the cache
    int32_t group;      // its index among the sequence's
};

// What a CTA works on. It is in shared memory, because sums need the registers.
struct Item {
    int32_t sequence, kv_head;
    int32_t state_place;        // of the item's state, among the places of a row in the workspace
    int32_t whole;              // whether the item leaves results, not a state
    int32_t first_key, end_key; // cached keys
    // Groups begin_group..end_group are added in turn; group first_group - 1 stands for the cached keys.
    int32_t begin_group, first_group, end_group;
    int32_t slots, first_mask; // of the sequence
};
static_assert(sizeof(Item) == FLEXDRAFT_ITEM_BYTES, "what the launch asks for");

// The shared memory of a CTA.
template <int32_t HeadDim, int32_t Rows, int32_t Stages>
struct SharedPlan {
    uint16_t q[Rows][HeadDim];                  // swizzled (tiles.cuh); copied behind the first tile of an item
    uint16_t kv[Stages][2][tile_keys][HeadDim]; // swizzled K and V; tile t is in stage t % Stages
    // The block's packed rows and the item are written at the beginning of an item, before a barrier, and read until
    // the barrier at its end.
    int32_t row_index[Rows];  // in the operands; -1: the row has no part in the item
    int32_t row_limit[Rows];  // the last cached position that the row sees
    uint16_t row_place[Rows]; // 256 * (the row's group + 1) + the row's head among the KV head's query heads
    Item work;
    // The plan of items follows: its int32_t are written once.
};

template <int32_t HeadDim, int32_t Warps, int32_t Parts, int32_t Stages>
struct Joint {
    static constexpr int32_t threads = 32 * Warps;
    // A warp has parts of 16 rows, which share what it reads of K and V: shared memory brings keys for one part just
    // about as fast as the matrix units use them up.
    static constexpr int32_t warp_rows = 16 * Parts;
    static constexpr int32_t rows = warp_rows * Warps;
    using Shared = SharedPlan<HeadDim, rows, Stages>;
    // If a part's sums fill half of the registers, the sums of earlier splits wait in the workspace.
    static constexpr bool waits_in_memory = Parts > 1;
    static constexpr int32_t tile_bytes = tile_keys * HeadDim * 2;
    static constexpr int32_t chunks = HeadDim / 8; // of 16 bytes in a row
    // Keys of a tile that a warp copies, all in one page, and the keys that it copies at once.
    static constexpr int32_t warp_keys = tile_keys / Warps;
    static constexpr int32_t keys_at_once = 32 / chunks;
    static_assert(warp_keys <= 16 && warp_keys % keys_at_once == 0, "a warp's keys lie in one page");
    static_assert(threads % chunks == 0, "a thread copies the same chunk of its rows");

    const FlexdraftAttentionParams& p;
    Shared& shared;
    uint32_t shared_q, shared_kv; // addresses of q and kv
    int32_t page_shift;
    int32_t lane, warp;

    // Returns `value`, in a form about which the compiler knows nothing. It computes everything that depends on the
    // result again at each use; kept in registers from tile to tile, such values would push sums into local memory.
    static FLEXDRAFT_METHOD int32_t compiler_barrier(int32_t value) {
#if defined(__CUDACC__)
        if constexpr (waits_in_memory) asm volatile("" : "+r"(value));
#endif
        return value;
    }

    // The rows that have a part in an item: rows that see its first cached key, or the rows of its group.
    FLEXDRAFT_METHOD void describe_rows(const Sequence& sequence, const ItemPlace& place, int32_t first_key) const {
        const int32_t ratio = p.head_ratio;
        for (int32_t m = int32_t(threadIdx.x); m < rows; m += threads) {
            const int32_t packed = place.block * rows + m;
            const AttentionRow row = attention_row(sequence, packed / ratio);
            const bool has_part = place.state < 0 ? row.group == place.group : row.limit >= first_key;
            shared.row_index[m] = has_part ? row.index : -1;
            shared.row_limit[m] = row.limit;
            shared.row_place[m] = uint16_t((row.group + 1) * 256 + packed % ratio);
        }
    }

    // The row of the block that `r` of one of the warp's parts is.
    FLEXDRAFT_METHOD int32_t row_of(int32_t part, int32_t r) const {
        return compiler_barrier(warp) * warp_rows + 16 * part + compiler_barrier(lane) / 4 + 8 * r;
    }
    FLEXDRAFT_METHOD int32_t group_of(int32_t m) const { return shared.row_place[m] / 256 - 1; }
    FLEXDRAFT_METHOD int64_t head_row_of(int32_t m) const {
        return int64_t(shared.row_index[m]) * p.q_heads + shared.work.kv_head * p.head_ratio +
               shared.row_place[m] % 256;
    }

    // The packed rows of the block, as a tile; rows that have no part in the item are zeros.
    FLEXDRAFT_METHOD void load_q() const {
        const int32_t chunk = int32_t(threadIdx.x) % chunks;
#pragma unroll 1
        for (int32_t m = int32_t(threadIdx.x) / chunks; m < rows; m += threads / chunks) {
            const int32_t index = shared.row_index[m];
            const uint16_t* from = p.q;
            if (index >= 0) {
                const int64_t head = head_row_of(m) - int64_t(index) * p.q_heads;
                from += index * p.q_stride + head * HeadDim + chunk * 8;
            }
            cp_async_16(shared_q + swizzled<HeadDim>(m, chunk), from, index >= 0 ? 16 : 0);
        }
    }

    // The page of the warp's keys of the tile that begins at `first`, if they have one.
    FLEXDRAFT_METHOD int32_t page_of(const Keys& keys, int32_t first) const {
        const int32_t position = first + compiler_barrier(warp) * warp_keys;
        if (keys.group_row >= 0 || position >= keys.end) return 0;
        return __ldg(p.cache.page_table + shared.work.sequence * p.cache.page_table_stride + (position >> page_shift));
    }

    // Keys first..first + 64 of `keys` into a stage, the warp's from `page`; those from the end on are zeros.
    FLEXDRAFT_METHOD void load_tile(const Keys& keys, int32_t first, int32_t page, int32_t stage) const {
        const FlexdraftPagedKv& cache = p.cache;
        // What follows from these is worked out for every tile, not kept from one to the next.
        const int32_t lane = compiler_barrier(this->lane), at_once = compiler_barrier(keys_at_once);
        const int32_t key = compiler_barrier(warp) * warp_keys + lane / chunks, chunk = lane % chunks;
        const int32_t position = first + key;
        int32_t end = keys.end;
        const int32_t kv_head = shared.work.kv_head;
        const uint16_t *k, *v;
        int64_t k_step, v_step;
        if (keys.group_row >= 0) {
            const int64_t offset = (keys.group_row + position) * p.mask_stride + int64_t(kv_head) * HeadDim + chunk * 8;
            k = p.mask_k + offset;
            v = p.mask_v + offset;
            k_step = v_step = at_once * p.mask_stride;
        } else {
            if (page < 0 || page >= cache.pages) {
                if (position < end && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_PAGE));
                page = end = 0;
            }
            const int64_t token = position & (cache.page_size - 1);
            k = static_cast<const uint16_t*>(cache.k) + page * cache.k_page_stride + token * cache.k_token_stride +
                kv_head * cache.k_head_stride + chunk * 8;
            v = static_cast<const uint16_t*>(cache.v) + page * cache.v_page_stride + token * cache.v_token_stride +
                kv_head * cache.v_head_stride + chunk * 8;
            k_step = at_once * cache.k_token_stride;
            v_step = at_once * cache.v_token_stride;
        }
        const uint32_t to = shared_kv + uint32_t(stage * 2 * tile_bytes) + swizzled<HeadDim>(key, chunk);
#pragma unroll
        for (int32_t i = 0; i < warp_keys; i += keys_at_once) {
            const uint32_t bytes = position + i < end ? 16 : 0;
            const uint32_t at = swizzled_step(to, i % 8) + uint32_t(i * HeadDim * 2);
            cp_async_16(at, k, bytes);
            cp_async_16(at + tile_bytes, v, bytes);
            k += k_step;
            v += v_step;
        }
    }

    // Two rows of each sixteen of the warp: lane / 4 and lane / 4 + 8.
    struct Softmax {
        float maximum[Parts][2], sum[Parts][2];
        float out[Parts][HeadDim / 8][4];

        FLEXDRAFT_METHOD void reset() {
#pragma unroll
            for (int32_t part = 0; part < Parts; ++part) {
#pragma unroll
                for (int32_t r = 0; r < 2; ++r) {
                    maximum[part][r] = -INFINITY;
                    sum[part][r] = 0.0f;
                }
#pragma unroll
                for (int32_t n = 0; n < HeadDim / 8; ++n) {
#pragma unroll
                    for (int32_t i = 0; i < 4; ++i) out[part][n][i] = 0.0f;
                }
            }
        }

        // One tile: keys first..; where it is `cut`, a row sees those up to its last one only. Each of a row's four
        // lanes has the sum of a quarter of the keys.
        FLEXDRAFT_METHOD void add(const Joint& joint, const Keys& keys, uint32_t q, uint32_t k, int32_t first,
                                  bool cut) {
            const float scale = joint.p.scale_log2;
            const int32_t lane = compiler_barrier(joint.lane);
            float scores[Parts][8][4];
            multiply_qk<HeadDim, Parts>(scores, q, k, lane);
            if (cut) {
#pragma unroll
                for (int32_t part = 0; part < Parts; ++part) {
                    const int32_t last[2] = {joint.last_of(keys, part, 0), joint.last_of(keys, part, 1)};
#pragma unroll
                    for (int32_t n = 0; n < 8; ++n) {
#pragma unroll
                        for (int32_t i = 0; i < 4; ++i) {
                            const int32_t key = first + 8 * n + lane % 4 * 2 + i % 2;
                            if (key > last[i / 2]) scores[part][n][i] = -INFINITY;
                        }
                    }
                }
            }
            uint32_t weights[Parts][8][2];
#pragma unroll
            for (int32_t part = 0; part < Parts; ++part) {
                float before[2];
#pragma unroll
                for (int32_t r = 0; r < 2; ++r) {
                    float most = fmaxf(scores[part][0][2 * r], scores[part][0][2 * r + 1]);
#pragma unroll
                    for (int32_t n = 1; n < 8; ++n) {
                        most = fmaxf(most, fmaxf(scores[part][n][2 * r], scores[part][n][2 * r + 1]));
                    }
                    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                    most = fmaxf(maximum[part][r], most * scale);
                    before[r] = rescale(maximum[part][r], most);
                    const float base = most == -INFINITY ? 0.0f : most;
                    float added = 0.0f;
#pragma unroll
                    for (int32_t n = 0; n < 8; ++n) {
                        weights[part][n][r] = pack_bf16(exp2_approx(fmaf(scores[part][n][2 * r], scale, -base)),
                                                        exp2_approx(fmaf(scores[part][n][2 * r + 1], scale, -base)));
                        // What is divided by is the sum of the weights as V was multiplied with them.
                        added += bf16_low(weights[part][n][r]) + bf16_high(weights[part][n][r]);
                    }
                    sum[part][r] = fmaf(sum[part][r], before[r], added);
                    maximum[part][r] = most;
                }
                // Most tiles bring no new maximum to any row of the warp.
                if (__any_sync(0xffffffffu, before[0] != 1.0f || before[1] != 1.0f)) {
#pragma unroll
                    for (int32_t n = 0; n < HeadDim / 8; ++n) {
#pragma unroll
                        for (int32_t i = 0; i < 4; ++i) out[part][n][i] *= before[i / 2];
                    }
                }
            }
            multiply_pv<HeadDim, Parts>(out, weights, k + tile_bytes, lane);
        }

        // Here every lane has the whole sum of its rows.
        FLEXDRAFT_METHOD void gather_sums() {
#pragma unroll
            for (int32_t part = 0; part < Parts; ++part) {
#pragma unroll
                for (int32_t r = 0; r < 2; ++r) {
                    sum[part][r] += __shfl_xor_sync(0xffffffffu, sum[part][r], 1);
                    sum[part][r] += __shfl_xor_sync(0xffffffffu, sum[part][r], 2);
                }
            }
        }
    };

    // The splits of an item so far: in registers, or from the first split on at the item's places of the workspace.
    struct Total {
        float maximum[waits_in_memory ? 1 : Parts][2], sum[waits_in_memory ? 1 : Parts][2];
        float out[waits_in_memory ? 1 : Parts][HeadDim / 8][4];
        bool fresh;

        FLEXDRAFT_METHOD void reset() {
            fresh = true;
            if constexpr (!waits_in_memory) {
#pragma unroll
                for (int32_t part = 0; part < Parts; ++part) {
#pragma unroll
                    for (int32_t r = 0; r < 2; ++r) {
                        maximum[part][r] = -INFINITY;
                        sum[part][r] = 0.0f;
                    }
#pragma unroll
                    for (int32_t n = 0; n < HeadDim / 8; ++n) {
#pragma unroll
                        for (int32_t i = 0; i < 4; ++i) out[part][n][i] = 0.0f;
                    }
                }
            }
        }
    };

    // The maximum and the sum of a row's state at its place, for all of its four lanes; one of them loads both. All
    // lanes of the warp call this together.
    FLEXDRAFT_METHOD float2 waiting_stats(int32_t m, bool waits) const {
        float2 stats = make_float2(-INFINITY, 0.0f);
        if (waits && lane % 4 == 0) stats = *stats_of(m);
        stats.x = __shfl_sync(0xffffffffu, stats.x, lane & ~3);
        stats.y = __shfl_sync(0xffffffffu, stats.y, lane & ~3);
        return stats;
    }

    // This lane's elements of a row's state at its place, zeros if none waits there. All loads are issued before the
    // first is used: a load takes longer than everything that is computed with it.
    FLEXDRAFT_METHOD void waiting_pairs(float2 (&pairs)[HeadDim / 8], int32_t m, bool waits) const {
        const float2* const from = reinterpret_cast<const float2*>(waiting(m));
        if (waits) {
#pragma unroll
            for (int32_t n = 0; n < HeadDim / 8; ++n) pairs[n] = from[4 * n];
        } else {
#pragma unroll
            for (int32_t n = 0; n < HeadDim / 8; ++n) pairs[n] = make_float2(0.0f, 0.0f);
        }
    }

    // Adds a split to a total, and empties it.
    FLEXDRAFT_METHOD void merge_split(Total& total, Softmax& split) const {
        split.gather_sums();
#pragma unroll
        for (int32_t part = 0; part < Parts; ++part) {
#pragma unroll
            for (int32_t r = 0; r < 2; ++r) {
                if constexpr (waits_in_memory) {
                    const int32_t m = row_of(part, r);
                    const bool exists = shared.row_index[m] >= 0, waits = exists && !total.fresh;
                    float2 pairs[HeadDim / 8];
                    waiting_pairs(pairs, m, waits);
                    float2 before = waiting_stats(m, waits);
                    const Factors factors = merge_sums(before.x, before.y, split.maximum[part][r], split.sum[part][r]);
                    if (!exists) continue;
                    if (lane % 4 == 0) *stats_of(m) = before;
                    float2* const to = reinterpret_cast<float2*>(waiting(m));
#pragma unroll
                    for (int32_t n = 0; n < HeadDim / 8; ++n) {
                        to[4 * n] = make_float2(factors.merged(pairs[n].x, split.out[part][n][2 * r]),
                                                factors.merged(pairs[n].y, split.out[part][n][2 * r + 1]));
                    }
                } else {
                    const Factors factors = merge_sums(total.maximum[part][r], total.sum[part][r],
                                                       split.maximum[part][r], split.sum[part][r]);
#pragma unroll
                    for (int32_t n = 0; n < HeadDim / 8; ++n) {
                        float(&out)[4] = total.out[part][n];
                        out[2 * r] = factors.merged(out[2 * r], split.out[part][n][2 * r]);
                        out[2 * r + 1] = factors.merged(out[2 * r + 1], split.out[part][n][2 * r + 1]);
                    }
                }
            }
        }
        total.fresh = false;
        split.reset();
    }

    // The last of the keys that a row sees, -1 if it sees none.
    FLEXDRAFT_METHOD int32_t last_of(const Keys& keys, int32_t part, int32_t r) const {
        const int32_t m = row_of(part, r);
        return keys.group_row < 0 ? shared.row_limit[m] : group_of(m) == keys.group ? keys.end - 1 : -1;
    }

    // Adds keys to the states of the warp's rows. With the first keys of an item Q is copied, behind the first tile.
    FLEXDRAFT_METHOD void mainloop(Total& total, const Keys& keys, bool is_first) const {
        const int32_t tiles = (keys.end - keys.first + tile_keys - 1) / tile_keys;
        int32_t most = -1, least = INT32_MAX;
#pragma unroll
        for (int32_t part = 0; part < Parts; ++part) {
#pragma unroll
            for (int32_t r = 0; r < 2; ++r) {
                const int32_t last = last_of(keys, part, r);
                most = max(most, last);
                least = min(least, last);
            }
        }
#pragma unroll
        for (int32_t lanes = 16; lanes >= 4; lanes /= 2) {
            most = max(most, __shfl_xor_sync(0xffffffffu, most, lanes));
            least = min(least, __shfl_xor_sync(0xffffffffu, least, lanes));
        }
        // A page is looked up a tile before its keys are copied.
        int32_t page = page_of(keys, keys.first);
#pragma unroll 1
        for (int32_t t = 0; t < Stages - 1; ++t) {
            const int32_t first = keys.first + t * tile_keys;
            if (t < tiles) load_tile(keys, first, page, t);
            if (t == 0 && is_first) load_q();
            page = page_of(keys, first + tile_keys);
            cp_async_commit();
        }
        Softmax split;
        split.reset();
        const int32_t tiles_a_split = p.split / tile_keys;
        int32_t left = tiles_a_split;
#pragma unroll 1
        for (int32_t t = 0; t < tiles; ++t) {
            cp_async_wait<Stages - 2>();
            __syncthreads();
            // Into the stage that all warps have read by now.
            const int32_t next = t + Stages - 1;
            const int32_t next_first = keys.first + next * tile_keys;
            if (next < tiles) load_tile(keys, next_first, page, next % Stages);
            page = page_of(keys, next_first + tile_keys);
            cp_async_commit();
            const int32_t first = keys.first + t * tile_keys;
            // A tile that none of the warp's rows sees would change nothing.
            if (first <= most) {
                const uint32_t q = shared_q + uint32_t(compiler_barrier(warp) * warp_rows * HeadDim * 2);
                const uint32_t k = shared_kv + uint32_t(t % Stages * 2 * tile_bytes);
                split.add(*this, keys, q, k, first, first + tile_keys - 1 > least);
            }
            if (--left == 0 || t + 1 == tiles) {
                merge_split(total, split);
                left = tiles_a_split;
            }
        }
        cp_async_wait<0>();
        __syncthreads();
    }

    // Where the workspace has a row's state: its maximum and sum, and this lane's elements.
    FLEXDRAFT_METHOD int64_t place_of(int32_t m) const {
        return head_row_of(m) * p.places + compiler_barrier(shared.work.state_place);
    }
    FLEXDRAFT_METHOD float2* stats_of(int32_t m) const {
        return reinterpret_cast<float2*>(p.partial_stats) + place_of(m);
    }
    FLEXDRAFT_METHOD float* waiting(int32_t m) const { return p.partial_out + place_of(m) * HeadDim + lane % 4 * 2; }

    // Stores the state of a row at its place, unless it waits there already.
    FLEXDRAFT_METHOD void store_partial(const Total& total, int32_t part, int32_t r) const {
        if constexpr (!waits_in_memory) {
            const int32_t m = row_of(part, r);
            if (lane % 4 == 0) *stats_of(m) = make_float2(total.maximum[part][r], total.sum[part][r]);
            float* const out = waiting(m);
#pragma unroll
            for (int32_t n = 0; n < HeadDim / 8; ++n) {
                *reinterpret_cast<float2*>(out + 8 * n) =
                    make_float2(total.out[part][n][2 * r], total.out[part][n][2 * r + 1]);
            }
        }
    }

    // Writes the result of a row, if the row has a part in the item. All lanes of the warp call this together.
    FLEXDRAFT_METHOD void epilogue(const Total& total, int32_t part, int32_t r) const {
        const int32_t m = row_of(part, r);
        const bool exists = shared.row_index[m] >= 0;
        float2 stats, pairs[HeadDim / 8];
        if constexpr (waits_in_memory) {
            waiting_pairs(pairs, m, exists && !total.fresh);
            stats = waiting_stats(m, exists && !total.fresh);
        } else {
            stats = make_float2(total.maximum[part][r], total.sum[part][r]);
#pragma unroll
            for (int32_t n = 0; n < HeadDim / 8; ++n) {
                pairs[n] = make_float2(total.out[part][n][2 * r], total.out[part][n][2 * r + 1]);
            }
        }
        if (!exists) return;
        const int64_t head_row = head_row_of(m);
        uint16_t* const out = p.out + head_row * HeadDim + lane % 4 * 2;
#pragma unroll
        for (int32_t n = 0; n < HeadDim / 8; ++n) {
            *reinterpret_cast<uint32_t*>(out + 8 * n) = divided(pairs[n].x, pairs[n].y, stats.y);
        }
        if (p.lse != nullptr && lane % 4 == 0) p.lse[head_row] = log_sum_exp(stats.x, stats.y);
    }

    FLEXDRAFT_METHOD void work_item(const Sequence& sequence, const SequenceItems& items,
                                    const ItemPlace& place) const {
        Item& work = shared.work;
        const int32_t ratio = p.head_ratio, item_keys = p.split * p.item_splits;
        const int32_t first_row = place.block * rows / ratio;
        const int32_t last_row = (min(place.block * rows + rows, sequence.rows * ratio) - 1) / ratio;
        const int32_t first_key = max(place.state, 0) * item_keys;
        const int32_t seen = largest_limit(sequence, first_row, last_row) + 1;
        const int32_t end_key = seen - first_key < item_keys ? seen : first_key + item_keys;
        // The block's rows may all end before the last keys of the sequence.
        if (end_key <= first_key) return;
        describe_rows(sequence, place, first_key);
        if (threadIdx.x == 0) {
            Item item;
            item.sequence = place.sequence;
            item.kv_head = place.kv_head;
            item.state_place = place.state < 0 ? p.places - 1 : place.state;
            item.whole = items.whole;
            item.first_key = first_key;
            item.end_key = end_key;
            item.slots = sequence.slots;
            item.first_mask = sequence.first_mask;
            if (place.state < 0) {
                item.begin_group = item.first_group = place.group;
                item.end_group = place.group + 1;
            } else {
                const bool has_slots = items.whole && last_row >= sequence.candidates;
                item.first_group = has_slots ? max(first_row - sequence.candidates, 0) / sequence.slots : 0;
                item.begin_group = item.first_group - 1;
                item.end_group = has_slots ? (last_row - sequence.candidates) / sequence.slots + 1 : item.first_group;
                if (items.left_out) item.end_group = item.begin_group;
            }
            work = item;
        }
        __syncthreads();
        Total total;
        total.reset();
#pragma unroll 1
        for (int32_t group = work.begin_group; group < work.end_group; ++group) {
            Keys keys = {work.first_key, work.end_key, -1, -1};
            if (group >= work.first_group) keys = {0, work.slots, work.first_mask + group * work.slots, group};
            mainloop(total, keys, group == work.begin_group);
        }
#pragma unroll
        for (int32_t part = 0; part < Parts; ++part) {
#pragma unroll
            for (int32_t r = 0; r < 2; ++r) {
                if (work.whole) {
                    epilogue(total, part, r);
                } else if (shared.row_index[row_of(part, r)] >= 0) {
                    store_partial(total, part, r);
                }
            }
        }
        __syncthreads();
    }
};

// SharedBytes: what the launch asks for without the plan.
template <int32_t HeadDim, int32_t Warps, int32_t Parts, int32_t Stages, int32_t SharedBytes>
FLEXDRAFT_INLINE void joint_attention(const FlexdraftAttentionParams& p) {
    FLEXDRAFT_SHARED(memory);
    using Kernel = Joint<HeadDim, Warps, Parts, Stages>;
    using Shared = typename Kernel::Shared;
    static_assert(sizeof(Shared) == SharedBytes, "what the launch asks for");
    auto* const first = reinterpret_cast<int32_t*>(memory + sizeof(Shared));
    const uint32_t base = shared_address(memory);
    plan_items<Kernel::rows>(p, first);
    const Kernel kernel = {p,
                           *reinterpret_cast<Shared*>(memory),
                           base,
                           base + uint32_t(sizeof(Shared::q)),
                           31 - __clz(p.cache.page_size),
                           int32_t(threadIdx.x % 32),
                           int32_t(threadIdx.x / 32)};
    const int32_t pairs = plan_pairs(p.pass.batch);
#pragma unroll 1
    for (int32_t i = int32_t(blockIdx.x); i < first[2 * pairs]; i += int32_t(gridDim.x)) {
        const int32_t entry = entry_of(first, pairs, i);
        const bool full = entry < pairs;
        int32_t s = 2 * (full ? entry : entry - pairs), index = i - first[entry];
        Sequence sequence;
        SequenceItems items;
        // The first or the second sequence of the entry.
#pragma unroll 1
        for (;; ++s) {
            sequence = sequence_of(p.pass, s);
            items = items_of<Kernel::rows>(p, sequence);
            const int32_t own = full ? full_items(p, items) : other_items(p, items);
            if (index < own) break;
            index -= own;
        }
        ItemPlace place = item_place<Kernel::rows>(p, sequence, items, full, index);
        place.sequence = s;
        if (place.block >= 0) kernel.work_item(sequence, items, place);
    }
}

} // namespace

#define FLEXDRAFT_JOINT(head_dim, rows, parts, stages)                                             \
    FLEXDRAFT_KERNEL(joint_attention_d##head_dim##_r##rows##_s##stages, FlexdraftAttentionParams,  \
                     FLEXDRAFT_ATTENTION_THREADS, 2) {                                             \
        static_assert(rows == FLEXDRAFT_ATTENTION_THREADS / 2 * parts, "16 rows a part and warp"); \
        joint_attention<head_dim, FLEXDRAFT_ATTENTION_THREADS / 32, parts, stages,                 \
                        FLEXDRAFT_D##head_dim##_R##rows##_S##stages##_SHARED>(p);                  \
    }
FLEXDRAFT_ATTENTION_TILES(FLEXDRAFT_JOINT)

// Registers of the tree decide how many warps hide each other's waits, so there is a kernel for few groups.
#define FLEXDRAFT_MERGE(head_dim, levels)                                                                           \
    FLEXDRAFT_KERNEL(attention_merge_d##head_dim##_l##levels, FlexdraftAttentionParams, 32 * FLEXDRAFT_MERGE_WARPS, \
                     1) {                                                                                           \
        attention_merge<head_dim, levels>(p);                                                                       \
    }
static_assert(FLEXDRAFT_FEW_LEVELS == 5 && FLEXDRAFT_MERGE_LEVELS == 12, "the kernels' names");
FLEXDRAFT_MERGE(64, 5)
FLEXDRAFT_MERGE(64, 12)
FLEXDRAFT_MERGE(128, 5)
FLEXDRAFT_MERGE(128, 12)

FLEXDRAFT_KERNEL_TABLE(attention, joint_attention_d64_r64_s2, joint_attention_d64_r64_s3, joint_attention_d64_r128_s2,
                       joint_attention_d64_r128_s3, joint_attention_d128_r64_s2, joint_attention_d128_r64_s3,
                       joint_attention_d128_r128_s2, attention_merge_d64_l5, attention_merge_d64_l12,
                       attention_merge_d128_l5, attention_merge_d128_l12)
