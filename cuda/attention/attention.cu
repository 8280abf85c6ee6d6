// Joint draft-and-verify attention over a paged KV cache, on the matrix units.
//
// joint_attention gives each CTA items: a block of packed rows (rows.cuh) of one sequence and KV head, and
// some of its keys: one split or a span of them, or the slots of the block's own groups. K and V tiles of 64
// keys flow through a ring of stages, filled ahead by cp.async and shared by all the block's rows. An item
// leaves, for every row and head, the state (state.cuh) of an online softmax over its keys, and
// attention_merge (merge.cuh) adds up a row's states; where one item has all the keys of a sequence it has the
// slots too, and leaves the result.
//
// A row's bits depend on nothing but what it sees: tiles, splits and spans begin at absolute positions, keys
// beyond a row's limit have weight exactly 0 and V exactly 0 where no row of the block sees it. The splits of
// a span merge one after the other, so that a CTA needs only one state besides the one it works on, in registers or,
// where its rows are many, at its place in the workspace; spans
// merge in the binary tree over their absolute index, and a group's own slots last. Who takes how many splits
// changes nothing.
#include "merge.cuh"
#include "params.h"
#include "rows.cuh"
#include "state.cuh"
#include "tiles.cuh"

namespace {

template <int Rows>
FLEXDRAFT_INLINE int32_t blocks_of(const Sequence& q, int32_t ratio) {
    return (q.rows * ratio + Rows - 1) / Rows;
}

// A sequence's items: per state, and once for the slots unless one item has everything, each KV head with each
// block of rows. Of a sequence that the workspace has too few states for, once, which makes its rows zeros.
template <int Rows>
FLEXDRAFT_INLINE int32_t items_of(const FlexdraftAttentionParams& p, int32_t s) {
    const Sequence q = sequence_of(p.pass, s);
    const int32_t states = states_of(p, q);
    const int32_t blocks = blocks_of<Rows>(q, p.q_heads / p.kv_heads) * p.kv_heads;
    if (states > p.max_states) {
        if (p.error != nullptr) atomicOr(p.error, unsigned(FLEXDRAFT_ERROR_PLAN));
        return blocks;
    }
    const int32_t slots = q.groups != 0 && states > 1 ? 1 : 0;
    return blocks * (states + slots);
}

// first[s] = items of the sequences before s. Every CTA works it out: the lengths are on the device only.
template <int Rows>
FLEXDRAFT_INLINE void plan(const FlexdraftAttentionParams& p, int32_t* first) {
    for (int32_t s = int32_t(threadIdx.x); s < p.pass.batch; s += int32_t(blockDim.x)) first[s + 1] = items_of<Rows>(p, s);
    __syncthreads();
    if (threadIdx.x == 0) {
        first[0] = 0;
        for (int32_t s = 0; s < p.pass.batch; ++s) first[s + 1] += first[s];
    }
    __syncthreads();
}

// Where keys come from: the cache, or the rows of a group's slots.
struct Keys {
    int32_t first, end; // positions, or slots of the group
    int32_t group_row;  // the first row of the group in the operands; -1: the cache
    int32_t group;      // its index among the sequence's
};

// What a CTA works on, in shared memory: what threads keep in registers they lack for sums.
struct Item {
    int32_t sequence, kv_head;
    int32_t state, cached, whole; // which of the sequence's states; whether of cached keys; whether of everything
    int32_t first_key;            // of the cached ones
    int32_t begin_group, first_group, end_group; // see Joint::item
    int32_t slots, first_mask;    // of the sequence
};
static_assert(sizeof(Item) == FLEXDRAFT_ITEM_BYTES, "what the launch asks for");

template <int HeadDim, int Warps, int Parts, int Stages>
struct Joint {
    static constexpr int threads = 32 * Warps;
    // A warp has parts of 16 rows, which share what it reads of K and V: shared memory brings keys for one part just
    // about as fast as the matrix units use them up.
    static constexpr int warp_rows = 16 * Parts;
    static constexpr int rows = warp_rows * Warps;
    // Where a part's sums are half of the registers, those of the splits before wait in the workspace.
    static constexpr bool waits_in_memory = Parts > 1;
    static constexpr int tile_bytes = tile_keys * HeadDim * 2;
    static constexpr int q_bytes = rows * HeadDim * 2;
    static constexpr int chunks = HeadDim / 8; // of 16 bytes in a row
    // A warp copies so many keys of a tile, which lie in one page, and a few of them at once.
    static constexpr int warp_keys = tile_keys / Warps;
    static constexpr int keys_at_once = 32 / chunks;
    static_assert(warp_keys <= 16 && warp_keys % keys_at_once == 0, "a warp's keys lie in one page");
    static_assert(threads % chunks == 0, "a thread copies the same chunk of its rows");

    const FlexdraftAttentionParams& p;
    uint32_t shared_q, shared_kv;
    // The block's packed rows: the row's index in the operands (-1: there is none), its limit, and 256 · (its group + 1)
    // + the head of the KV head's. Worked out once an item: what every thread would keep of a sequence to do so takes
    // registers that sums need.
    int32_t *row_index, *row_limit;
    uint16_t* row_place;
    Item& work;
    int32_t page_shift;
    int lane, warp;

    // A value that the compiler knows nothing of, where registers are scarce: it would keep what can be computed from it.
    static FLEXDRAFT_METHOD int short_lived(int value) {
#if defined(__CUDACC__)
        if constexpr (waits_in_memory) asm volatile("" : "+r"(value));
#endif
        return value;
    }

    FLEXDRAFT_METHOD void describe_rows(const Sequence& sequence, int32_t block, int32_t ratio) const {
        for (int m = int(threadIdx.x); m < rows; m += threads) {
            const int32_t packed = block * rows + m;
            const AttentionRow row = attention_row(sequence, packed / ratio);
            row_index[m] = row.index;
            row_limit[m] = row.limit;
            row_place[m] = uint16_t((row.group + 1) * 256 + packed % ratio);
        }
        __syncthreads();
    }

    // The row of the block that `r` of one of the warp's parts is.
    FLEXDRAFT_METHOD int row_of(int part, int r) const {
        return short_lived(warp) * warp_rows + 16 * part + short_lived(lane) / 4 + 8 * r;
    }
    FLEXDRAFT_METHOD int32_t group_of(int m) const { return row_place[m] / 256 - 1; }
    FLEXDRAFT_METHOD int64_t head_row_of(int m) const {
        const int32_t ratio = p.q_heads / p.kv_heads;
        return int64_t(row_index[m]) * p.q_heads + work.kv_head * ratio + row_place[m] % 256;
    }

    // The packed rows of the block, as a tile; those beyond the sequence's are zeros.
    FLEXDRAFT_METHOD void load_q() const {
        const int chunk = int(threadIdx.x) % chunks;
#pragma unroll 1
        for (int m = int(threadIdx.x) / chunks; m < rows; m += threads / chunks) {
            const int32_t index = row_index[m];
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
        const int32_t position = first + short_lived(warp) * warp_keys;
        if (keys.group_row >= 0 || position >= keys.end) return 0;
        return __ldg(p.cache.page_table + work.sequence * p.cache.page_table_stride + (position >> page_shift));
    }

    // Keys first..first + 64 of `keys` into a stage, the warp's from `page`; those from the end on are zeros.
    FLEXDRAFT_METHOD void load_tile(const Keys& keys, int32_t first, int32_t page, int stage) const {
        const FlexdraftPagedKv& cache = p.cache;
        // What follows from these is worked out for every tile, not kept from one to the next.
        const int lane = short_lived(this->lane), at_once = short_lived(keys_at_once);
        const int key = short_lived(warp) * warp_keys + lane / chunks, chunk = lane % chunks;
        const int32_t position = first + key;
        int32_t end = keys.end;
        const int32_t kv_head = work.kv_head;
        const uint16_t *k, *v;
        int64_t k_step, v_step;
        if (keys.group_row >= 0) {
            const int64_t offset =
                (keys.group_row + position) * p.mask_stride + int64_t(kv_head) * HeadDim + chunk * 8;
            k = p.mask_k + offset;
            v = p.mask_v + offset;
            k_step = v_step = at_once * p.mask_stride;
        } else {
            if (page < 0 || page >= cache.pages) {
                if (position < end && p.error != nullptr) atomicOr(p.error, unsigned(FLEXDRAFT_ERROR_PAGE));
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
        for (int i = 0; i < warp_keys; i += keys_at_once) {
            const uint32_t bytes = position + i < end ? 16 : 0;
            const uint32_t at = further(to, i % 8) + uint32_t(i * HeadDim * 2);
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
            for (int part = 0; part < Parts; ++part) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    maximum[part][r] = -INFINITY;
                    sum[part][r] = 0.0f;
                }
#pragma unroll
                for (int n = 0; n < HeadDim / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) out[part][n][i] = 0.0f;
                }
            }
        }

        // One tile: keys first..; where it is `cut`, a row sees those up to its last one only. Each of a row's four
        // lanes has the sum of a quarter of the keys.
        FLEXDRAFT_METHOD void add(const Joint& joint, const Keys& keys, uint32_t q, uint32_t k, int32_t first, bool cut) {
            const float scale = joint.p.scale_log2;
            const int lane = short_lived(joint.lane);
            float scores[Parts][8][4];
            multiply_qk<HeadDim, Parts>(scores, q, k, lane);
            if (cut) {
#pragma unroll
                for (int part = 0; part < Parts; ++part) {
                    const int32_t last[2] = {joint.last_of(keys, part, 0), joint.last_of(keys, part, 1)};
#pragma unroll
                    for (int n = 0; n < 8; ++n) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const int32_t key = first + 8 * n + lane % 4 * 2 + i % 2;
                            if (key > last[i / 2]) scores[part][n][i] = -INFINITY;
                        }
                    }
                }
            }
            uint32_t weights[Parts][8][2];
#pragma unroll
            for (int part = 0; part < Parts; ++part) {
                float before[2];
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float most = fmaxf(scores[part][0][2 * r], scores[part][0][2 * r + 1]);
#pragma unroll
                    for (int n = 1; n < 8; ++n) {
                        most = fmaxf(most, fmaxf(scores[part][n][2 * r], scores[part][n][2 * r + 1]));
                    }
                    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                    most = fmaxf(maximum[part][r], most * scale);
                    before[r] = rescale(maximum[part][r], most);
                    const float base = most == -INFINITY ? 0.0f : most;
                    float added = 0.0f;
#pragma unroll
                    for (int n = 0; n < 8; ++n) {
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
                    for (int n = 0; n < HeadDim / 8; ++n) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) out[part][n][i] *= before[i / 2];
                    }
                }
            }
            multiply_pv<HeadDim, Parts>(out, weights, k + tile_bytes, lane);
        }

        // Here every lane has the whole sum of its rows.
        FLEXDRAFT_METHOD void gather_sums() {
#pragma unroll
            for (int part = 0; part < Parts; ++part) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
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
                for (int part = 0; part < Parts; ++part) {
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        maximum[part][r] = -INFINITY;
                        sum[part][r] = 0.0f;
                    }
#pragma unroll
                    for (int n = 0; n < HeadDim / 8; ++n) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) out[part][n][i] = 0.0f;
                    }
                }
            }
        }
    };

    // What a row's state at its place is scaled by, for all of its four lanes; one of them has it. All lanes of the
    // warp call this together.
    FLEXDRAFT_METHOD float2 waiting_stats(int m, bool exists) const {
        float2 stats = make_float2(-INFINITY, 0.0f);
        if (exists && lane % 4 == 0) stats = *stats_of(m);
        stats.x = __shfl_sync(0xffffffffu, stats.x, lane & ~3);
        stats.y = __shfl_sync(0xffffffffu, stats.y, lane & ~3);
        return stats;
    }

    // Adds a split to a total, and empties it.
    FLEXDRAFT_METHOD void take(Total& total, Softmax& split) const {
        split.gather_sums();
#pragma unroll
        for (int part = 0; part < Parts; ++part) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if constexpr (waits_in_memory) {
                    const int m = row_of(part, r);
                    const bool exists = row_index[m] >= 0;
                    float2 before = waiting_stats(m, exists && !total.fresh);
                    const Factors factors =
                        merge_sums(before.x, before.y, split.maximum[part][r], split.sum[part][r]);
                    if (exists && lane % 4 == 0) *stats_of(m) = before;
                    if (!exists) continue;
                    float* const out = waiting(m);
#pragma unroll
                    for (int n = 0; n < HeadDim / 8; ++n) {
                        float2* const at = reinterpret_cast<float2*>(out + 8 * n);
                        const float2 pair = total.fresh ? make_float2(0.0f, 0.0f) : *at;
                        *at = make_float2(factors.merged(pair.x, split.out[part][n][2 * r]),
                                          factors.merged(pair.y, split.out[part][n][2 * r + 1]));
                    }
                } else {
                    const Factors factors = merge_sums(total.maximum[part][r], total.sum[part][r],
                                                       split.maximum[part][r], split.sum[part][r]);
#pragma unroll
                    for (int n = 0; n < HeadDim / 8; ++n) {
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

    // The last of the keys that a row sees, -1 if none.
    FLEXDRAFT_METHOD int32_t last_of(const Keys& keys, int part, int r) const {
        const int m = row_of(part, r);
        return keys.group_row < 0 ? row_limit[m] : group_of(m) == keys.group ? keys.end - 1 : -1;
    }

    // Adds keys to the states of the warp's rows. The rows themselves are fetched behind the first keys where those
    // are the first of an item.
    FLEXDRAFT_METHOD void run(Total& total, const Keys& keys, bool is_first) const {
        const int32_t tiles = (keys.end - keys.first + tile_keys - 1) / tile_keys;
        int32_t most = -1, least = INT32_MAX;
#pragma unroll
        for (int part = 0; part < Parts; ++part) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int32_t last = last_of(keys, part, r);
                most = max(most, last);
                least = min(least, last);
            }
        }
#pragma unroll
        for (int lanes = 16; lanes >= 4; lanes /= 2) {
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
            // Into the stage that everybody has read by now.
            const int32_t next = t + Stages - 1;
            const int32_t next_first = keys.first + next * tile_keys;
            if (next < tiles) load_tile(keys, next_first, page, next % Stages);
            page = page_of(keys, next_first + tile_keys);
            cp_async_commit();
            const int32_t first = keys.first + t * tile_keys;
            // A tile that none of the warp's rows sees would change nothing.
            if (first <= most) {
                const uint32_t q = shared_q + uint32_t(short_lived(warp) * warp_rows * HeadDim * 2);
                const uint32_t k = shared_kv + uint32_t(t % Stages * 2 * tile_bytes);
                split.add(*this, keys, q, k, first, first + tile_keys - 1 > least);
            }
            if (--left == 0 || t + 1 == tiles) {
                take(total, split);
                left = tiles_a_split;
            }
        }
        cp_async_wait<0>();
        __syncthreads();
    }

    // A row's state among its partial results: what it is scaled by, and this lane's elements.
    FLEXDRAFT_METHOD int64_t place_of(int m) const { return head_row_of(m) * (p.max_states + 1) + short_lived(work.state); }
    FLEXDRAFT_METHOD float2* stats_of(int m) const {
        return reinterpret_cast<float2*>(p.partial_stats) + place_of(m);
    }
    FLEXDRAFT_METHOD float* waiting(int m) const {
        return p.partial_out + place_of(m) * HeadDim + lane % 4 * 2;
    }

    // The state of a row to its place, if it does not wait there.
    FLEXDRAFT_METHOD void store(const Total& total, int part, int r) const {
        if constexpr (!waits_in_memory) {
            const int m = row_of(part, r);
            if (lane % 4 == 0) *stats_of(m) = make_float2(total.maximum[part][r], total.sum[part][r]);
            float* const out = waiting(m);
#pragma unroll
            for (int n = 0; n < HeadDim / 8; ++n) {
                *reinterpret_cast<float2*>(out + 8 * n) =
                    make_float2(total.out[part][n][2 * r], total.out[part][n][2 * r + 1]);
            }
        }
    }

    // The result of a row, if there is one. All lanes of the warp call this together.
    FLEXDRAFT_METHOD void finish(const Total& total, int part, int r) const {
        const int m = row_of(part, r);
        float2 stats;
        if constexpr (waits_in_memory) {
            stats = waiting_stats(m, row_index[m] >= 0 && !total.fresh);
        } else {
            stats = make_float2(total.maximum[part][r], total.sum[part][r]);
        }
        if (row_index[m] < 0) return;
        const int64_t head_row = head_row_of(m);
        const float* const from = waiting(m);
        uint16_t* const out = p.out + head_row * HeadDim + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < HeadDim / 8; ++n) {
            float2 pair;
            if constexpr (waits_in_memory) {
                pair = total.fresh ? make_float2(0.0f, 0.0f) : *reinterpret_cast<const float2*>(from + 8 * n);
            } else {
                pair = make_float2(total.out[part][n][2 * r], total.out[part][n][2 * r + 1]);
            }
            *reinterpret_cast<uint32_t*>(out + 8 * n) = divided(pair.x, pair.y, stats.y);
        }
        if (p.lse != nullptr && lane % 4 == 0) p.lse[head_row] = log_sum_exp(stats.x, stats.y);
    }

    // Item `state` of the `states` of a block's cached keys; behind them comes that of its slots.
    FLEXDRAFT_METHOD void item(const Sequence& sequence, int32_t index, int32_t kv_head, int32_t block, int32_t state,
                               int32_t states) const {
        const int32_t ratio = p.q_heads / p.kv_heads;
        const int32_t first_packed = block * rows;
        const int32_t last_row = (min(first_packed + rows, sequence.rows * ratio) - 1) / ratio;
        const bool has_slots = last_row >= sequence.candidates;
        const bool left_out = states > p.max_states;
        const bool cached = state < states, whole = states == 1 || left_out;
        if (!cached && !has_slots) return;
        describe_rows(sequence, block, ratio);
        const int32_t item_keys = p.split * p.item_splits;
        const int32_t first_key = cached ? state * item_keys : 0;
        if (threadIdx.x == 0) {
            // The cached keys, as a group before the first, then the slots of each group of the block: the rows of
            // the others see nothing of them.
            const int32_t first_group = max(first_packed / ratio - sequence.candidates, 0) / max(sequence.slots, 1);
            int32_t end_group = first_group;
            if (has_slots && (whole || !cached)) end_group = (last_row - sequence.candidates) / sequence.slots + 1;
            if (left_out) end_group = first_group - 1;
            work = {index, kv_head, cached ? state : p.max_states, cached, whole, first_key,
                    cached ? first_group - 1 : first_group, first_group, end_group, sequence.slots,
                    sequence.first_mask};
        }
        __syncthreads();
        Total total;
        total.reset();
        const int32_t end = largest_limit(sequence, first_packed / ratio, last_row) + 1;
        const int32_t end_key = end - first_key < item_keys ? end : first_key + item_keys;
#pragma unroll 1
        for (int32_t group = work.begin_group; group < work.end_group; ++group) {
            Keys keys = {first_key, end_key, -1, -1};
            if (group >= work.first_group) keys = {0, work.slots, work.first_mask + group * work.slots, group};
            run(total, keys, group == work.begin_group);
        }
#pragma unroll
        for (int part = 0; part < Parts; ++part) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int m = row_of(part, r);
                if (work.whole) {
                    finish(total, part, r);
                } else if (row_index[m] >= 0 && (work.cached ? row_limit[m] >= work.first_key : group_of(m) >= 0)) {
                    // A row that ends before these keys, or has no slots, has no such state.
                    store(total, part, r);
                }
            }
        }
    }
};

// SharedBytes: Q, the stages, the rows and the item; the plan comes after them.
template <int HeadDim, int Warps, int Parts, int Stages, int SharedBytes>
FLEXDRAFT_INLINE void joint_attention(const FlexdraftAttentionParams& p) {
    FLEXDRAFT_SHARED(shared);
    using Kernel = Joint<HeadDim, Warps, Parts, Stages>;
    auto* const table = reinterpret_cast<int32_t*>(shared + Kernel::q_bytes + Stages * 2 * Kernel::tile_bytes);
    auto* const places = reinterpret_cast<uint16_t*>(table + 2 * Kernel::rows);
    auto* const work = reinterpret_cast<Item*>(places + Kernel::rows);
    static_assert(SharedBytes == Kernel::q_bytes + Stages * 2 * Kernel::tile_bytes +
                                     Kernel::rows * int(2 * sizeof(*table) + sizeof(*places)) + int(sizeof(Item)),
                  "what the launch asks for");
    auto* const first = reinterpret_cast<int32_t*>(work + 1);
    const uint32_t base = shared_address(shared);
    plan<Kernel::rows>(p, first);
    const Kernel kernel = {p,
                           base,
                           base + uint32_t(Kernel::q_bytes),
                           table,
                           table + Kernel::rows,
                           places,
                           *work,
                           31 - __clz(p.cache.page_size),
                           int(threadIdx.x % 32),
                           int(threadIdx.x / 32)};
#pragma unroll 1
    for (int32_t i = int32_t(blockIdx.x); i < first[p.pass.batch]; i += int32_t(gridDim.x)) {
        // The last sequence that begins at or before the item has it.
        int32_t s = 0;
        for (int32_t step = 1 << (31 - __clz(p.pass.batch)); step > 0; step /= 2) {
            if (s + step < p.pass.batch && first[s + step] <= i) s += step;
        }
        const Sequence sequence = sequence_of(p.pass, s);
        const int32_t blocks = blocks_of<Kernel::rows>(sequence, p.q_heads / p.kv_heads);
        const int32_t place = i - first[s];
        // Blocks that read the same keys follow each other.
        kernel.item(sequence, s, place / blocks % p.kv_heads, place % blocks, place / blocks / p.kv_heads,
                    states_of(p, sequence));
        __syncthreads();
    }
}

}  // namespace

#define FLEXDRAFT_JOINT(head_dim, rows, parts, stages)                                                          \
    FLEXDRAFT_KERNEL(joint_attention_d##head_dim##_r##rows##_s##stages, FlexdraftAttentionParams,               \
                     FLEXDRAFT_ATTENTION_THREADS, 2) {                                                          \
        static_assert(rows == FLEXDRAFT_ATTENTION_THREADS / 2 * parts, "16 rows a part and warp");              \
        joint_attention<head_dim, FLEXDRAFT_ATTENTION_THREADS / 32, parts, stages,                              \
                        FLEXDRAFT_D##head_dim##_R##rows##_S##stages##_SHARED>(p);                               \
    }
FLEXDRAFT_ATTENTION_TILES(FLEXDRAFT_JOINT)

// Registers of the tree decide how many warps hide each other's waits, so there is a kernel for few groups.
#define FLEXDRAFT_MERGE(head_dim, levels)                                                                       \
    FLEXDRAFT_KERNEL(attention_merge_d##head_dim##_l##levels, FlexdraftAttentionParams,                         \
                     32 * FLEXDRAFT_MERGE_WARPS, 1) {                                                           \
        attention_merge<head_dim, levels>(p);                                                                   \
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
