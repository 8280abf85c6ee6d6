// Joint draft-and-verify attention over a paged KV cache, on the matrix units.
//
// joint_attention gives each CTA items: a block of packed rows (rows.cuh) of one sequence and KV head, and
// one split of its keys, or the slots of the block's own groups. K and V tiles of 64 keys flow through a ring
// of stages, filled ahead by cp.async and shared by all the block's rows. An item leaves, for every row and
// head, the state (state.cuh) of an online softmax over its keys; attention_merge adds up a row's states.
//
// A row's bits depend on nothing but what it sees: tiles and splits begin at absolute positions, keys beyond
// a row's limit have weight exactly 0 and V exactly 0 where no row of the block sees it, states merge in the
// binary tree over the absolute index of the split, and a group's own slots last.
#include "params.h"
#include "rows.cuh"
#include "state.cuh"
#include "tiles.cuh"

namespace {

// A sequence's items: per split, and once for the slots, each KV head with each block of rows.
template <int Rows>
FLEXDRAFT_INLINE int32_t blocks_of(const Sequence& q, int32_t ratio) {
    return (q.rows * ratio + Rows - 1) / Rows;
}

template <int Rows>
FLEXDRAFT_INLINE int32_t items_of(const FlexdraftAttentionParams& p, int32_t s) {
    const Sequence q = sequence_of(p.pass, s);
    const int32_t splits = (q.length + p.split - 1) / p.split;
    if (splits > p.max_splits) {
        if (p.error != nullptr) atomicOr(p.error, unsigned(FLEXDRAFT_ERROR_PLAN));
        return 0;
    }
    return blocks_of<Rows>(q, p.q_heads / p.kv_heads) * p.kv_heads * (splits + (q.groups != 0 ? 1 : 0));
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

// Where an item's keys come from: the cache, or the rows of a group's slots.
struct Keys {
    int32_t first, end; // positions, or slots of the group
    int32_t group_row;  // the first row of the group in the operands; -1: the cache
};

template <int HeadDim, int Warps, int Stages>
struct Joint {
    static constexpr int threads = 32 * Warps;
    static constexpr int rows = 16 * Warps;
    static constexpr int tile_bytes = tile_keys * HeadDim * 2;
    static constexpr int q_bytes = rows * HeadDim * 2;
    static constexpr int chunks = HeadDim / 8; // of 16 bytes in a row

    const FlexdraftAttentionParams& p;
    uint32_t shared_q, shared_kv;
    int32_t ratio;
    int lane, warp;
    // The item.
    Sequence sequence;
    int32_t sequence_index, kv_head, block;

    // The packed rows of the block, as a tile; those beyond the sequence's are zeros.
    FLEXDRAFT_METHOD void load_q() const {
#pragma unroll 1
        for (int c = int(threadIdx.x); c < rows * chunks; c += threads) {
            const int m = c / chunks, packed = block * rows + m;
            const AttentionRow row = attention_row(sequence, packed / ratio);
            const int64_t head = kv_head * ratio + packed % ratio;
            const uint16_t* from = p.q;
            if (row.index >= 0) from += row.index * p.q_stride + head * HeadDim + c % chunks * 8;
            cp_async_16(shared_q + swizzled<HeadDim>(m, c % chunks), from, row.index >= 0 ? 16 : 0);
        }
    }

    // Keys first..first + 64 of `keys` into a stage; those from the end on are zeros.
    FLEXDRAFT_METHOD void load_tile(const Keys& keys, int32_t first, int stage) const {
        const uint32_t to = shared_kv + uint32_t(stage * 2 * tile_bytes);
        const FlexdraftPagedKv& cache = p.cache;
#pragma unroll 1
        for (int c = int(threadIdx.x); c < tile_keys * chunks; c += threads) {
            const int key = c / chunks;
            const int32_t position = first + key;
            const uint16_t *k = p.q, *v = p.q;
            bool valid = position < keys.end;
            if (valid && keys.group_row >= 0) {
                const int64_t offset =
                    (keys.group_row + position) * p.mask_stride + int64_t(kv_head) * HeadDim + c % chunks * 8;
                k = p.mask_k + offset;
                v = p.mask_v + offset;
            } else if (valid) {
                const int32_t page = __ldg(cache.page_table + sequence_index * cache.page_table_stride +
                                           position / cache.page_size);
                valid = page >= 0 && page < cache.pages;
                if (valid) {
                    const int64_t token = position % cache.page_size;
                    k = static_cast<const uint16_t*>(cache.k) + page * cache.k_page_stride +
                        token * cache.k_token_stride + kv_head * cache.k_head_stride + c % chunks * 8;
                    v = static_cast<const uint16_t*>(cache.v) + page * cache.v_page_stride +
                        token * cache.v_token_stride + kv_head * cache.v_head_stride + c % chunks * 8;
                } else if (p.error != nullptr) {
                    atomicOr(p.error, unsigned(FLEXDRAFT_ERROR_PAGE));
                }
            }
            const uint32_t at = to + swizzled<HeadDim>(key, c % chunks);
            cp_async_16(at, k, valid ? 16 : 0);
            cp_async_16(at + tile_bytes, v, valid ? 16 : 0);
        }
    }

    // Two rows of the warp's sixteen: lane / 4 and lane / 4 + 8.
    struct Softmax {
        float maximum[2], sum[2];
        float out[HeadDim / 8][4];

        FLEXDRAFT_METHOD void reset() {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                maximum[r] = -INFINITY;
                sum[r] = 0.0f;
            }
#pragma unroll
            for (int n = 0; n < HeadDim / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) out[n][i] = 0.0f;
            }
        }

        // One tile: keys first..; a row sees those up to its `last`.
        FLEXDRAFT_METHOD void add(uint32_t q, uint32_t k, float scale, int32_t first, const int32_t (&last)[2],
                                  int lane) {
            float scores[8][4];
            multiply_qk<HeadDim>(scores, q, k, lane);
            uint32_t weights[8][2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float most = maximum[r];
#pragma unroll
                for (int n = 0; n < 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int32_t key = first + 8 * n + lane % 4 * 2 + i;
                        float& score = scores[n][2 * r + i];
                        score = key <= last[r] ? score * scale : -INFINITY;
                        most = fmaxf(most, score);
                    }
                }
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                const float before = rescale(maximum[r], most);
                const float base = most == -INFINITY ? 0.0f : most;
                float added = 0.0f;
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    weights[n][r] =
                        pack_bf16(exp2_approx(scores[n][2 * r] - base), exp2_approx(scores[n][2 * r + 1] - base));
                    // What is divided by is the sum of the weights as V was multiplied with them.
                    added += bf16_low(weights[n][r]) + bf16_high(weights[n][r]);
                }
                sum[r] = fmaf(sum[r], before, added);
                maximum[r] = most;
#pragma unroll
                for (int n = 0; n < HeadDim / 8; ++n) {
                    out[n][2 * r] *= before;
                    out[n][2 * r + 1] *= before;
                }
            }
            multiply_pv<HeadDim>(out, weights, k + tile_bytes, lane);
        }
    };

    // The state of one row of the softmax, to its place among the row's partial results.
    FLEXDRAFT_METHOD void store(Softmax& softmax, int r, const AttentionRow& row, int32_t head, int32_t split) const {
        // The four lanes of a row have a quarter of the sum each.
        float sum = softmax.sum[r];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (row.index < 0) return;
        const int64_t place = (int64_t(row.index) * p.q_heads + head) * (p.max_splits + 1) + split;
        if (lane % 4 == 0) reinterpret_cast<float2*>(p.partial_stats)[place] = make_float2(softmax.maximum[r], sum);
        float* const out = p.partial_out + place * HeadDim + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < HeadDim / 8; ++n) {
            *reinterpret_cast<float2*>(out + 8 * n) = make_float2(softmax.out[n][2 * r], softmax.out[n][2 * r + 1]);
        }
    }

    // The keys of one split, or of one group's slots, for all rows of the block. `last[r]`: the last key that
    // the row sees, -1 if none.
    FLEXDRAFT_METHOD void run(Softmax& softmax, const Keys& keys, const int32_t (&last)[2]) const {
        const int32_t tiles = (keys.end - keys.first + tile_keys - 1) / tile_keys;
        int32_t warp_last = max(last[0], last[1]);
#pragma unroll
        for (int lanes = 16; lanes >= 4; lanes /= 2) {
            warp_last = max(warp_last, __shfl_xor_sync(0xffffffffu, warp_last, lanes));
        }
#pragma unroll 1
        for (int32_t t = 0; t < Stages - 1; ++t) {
            if (t < tiles) load_tile(keys, keys.first + t * tile_keys, t);
            cp_async_commit();
        }
#pragma unroll 1
        for (int32_t t = 0; t < tiles; ++t) {
            cp_async_wait<Stages - 2>();
            __syncthreads();
            // The stage that everybody has read by now.
            const int32_t next = t + Stages - 1;
            if (next < tiles) load_tile(keys, keys.first + next * tile_keys, next % Stages);
            cp_async_commit();
            const int32_t first = keys.first + t * tile_keys;
            // A tile that none of the warp's rows sees would change nothing.
            if (first <= warp_last) {
                const uint32_t k = shared_kv + uint32_t(t % Stages * 2 * tile_bytes);
                softmax.add(shared_q + uint32_t(warp * 16 * HeadDim * 2), k, p.scale_log2, first, last, lane);
            }
        }
        cp_async_wait<0>();
        __syncthreads();
    }

    FLEXDRAFT_METHOD void item(int32_t split, int32_t splits) const {
        const int32_t first_packed = block * rows;
        const int32_t last_packed = min(first_packed + rows, sequence.rows * ratio) - 1;
        AttentionRow mine[2];
        int32_t heads[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int32_t packed = first_packed + warp * 16 + lane / 4 + 8 * r;
            mine[r] = attention_row(sequence, packed / ratio);
            heads[r] = kv_head * ratio + packed % ratio;
        }
        load_q();
        Softmax softmax;
        softmax.reset();
        if (split < splits) {
            const int32_t limit = largest_limit(sequence, first_packed / ratio, last_packed / ratio);
            const Keys keys = {split * p.split, min((split + 1) * p.split, limit + 1), -1};
            const int32_t last[2] = {mine[0].limit, mine[1].limit};
            run(softmax, keys, last);
            // A row whose limit is before this split has no such partial result.
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (mine[r].limit < keys.first) mine[r].index = -1;
                store(softmax, r, mine[r], heads[r], split);
            }
            return;
        }
        if (last_packed / ratio < sequence.candidates) return;
        // Each group of the block in turn: the rows of the others see nothing of it.
        const int32_t first_group = max(first_packed / ratio - sequence.candidates, 0) / sequence.slots;
        const int32_t last_group = (last_packed / ratio - sequence.candidates) / sequence.slots;
#pragma unroll 1
        for (int32_t group = first_group; group <= last_group; ++group) {
            const Keys keys = {0, sequence.slots, sequence.first_mask + group * sequence.slots};
            const int32_t last[2] = {mine[0].group == group ? sequence.slots - 1 : -1,
                                     mine[1].group == group ? sequence.slots - 1 : -1};
            run(softmax, keys, last);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (mine[r].group < 0) mine[r].index = -1;
            store(softmax, r, mine[r], heads[r], p.max_splits);
        }
    }
};

template <int HeadDim, int Warps, int Stages>
FLEXDRAFT_INLINE void joint_attention(const FlexdraftAttentionParams& p) {
    FLEXDRAFT_SHARED(shared);
    using Kernel = Joint<HeadDim, Warps, Stages>;
    auto* const first = reinterpret_cast<int32_t*>(shared + Kernel::q_bytes + Stages * 2 * Kernel::tile_bytes);
    const uint32_t base = shared_address(shared);
    plan<Kernel::rows>(p, first);
    Kernel kernel = {p,
                     base,
                     base + uint32_t(Kernel::q_bytes),
                     p.q_heads / p.kv_heads,
                     int(threadIdx.x % 32),
                     int(threadIdx.x / 32),
                     {},
                     0,
                     0,
                     0};
    for (int32_t i = int32_t(blockIdx.x); i < first[p.pass.batch]; i += int32_t(gridDim.x)) {
        // The last sequence that begins at or before the item has it.
        int32_t s = 0;
        for (int32_t step = 1 << (31 - __clz(p.pass.batch)); step > 0; step /= 2) {
            if (s + step < p.pass.batch && first[s + step] <= i) s += step;
        }
        kernel.sequence = sequence_of(p.pass, s);
        kernel.sequence_index = s;
        const int32_t blocks = blocks_of<Kernel::rows>(kernel.sequence, kernel.ratio);
        const int32_t place = i - first[s];
        // Blocks that read the same keys follow each other.
        kernel.block = place % blocks;
        kernel.kv_head = place / blocks % p.kv_heads;
        const int32_t splits = (kernel.sequence.length + p.split - 1) / p.split;
        kernel.item(place / blocks / p.kv_heads, splits);
        __syncthreads();
    }
}

// The states of one head of one row, by a warp: each lane has 1/32 of the elements.
template <int HeadDim>
FLEXDRAFT_INLINE void attention_merge(const FlexdraftAttentionParams& p) {
    constexpr int elements = HeadDim / 32;
    constexpr int levels = 13;
    const int64_t head_row = int64_t(blockIdx.x) * 4 + threadIdx.x / 32;
    const int lane = int(threadIdx.x % 32);
    if (head_row >= int64_t(p.pass.rows) * p.q_heads) return;
    const PassRow row = pass_row(p.pass, int32_t(head_row / p.q_heads));
    const int64_t first = head_row * (p.max_splits + 1);
    const auto load = [&](int32_t split) {
        State<elements> state;
        const float2 stats = reinterpret_cast<const float2*>(p.partial_stats)[first + split];
        state.maximum = stats.x;
        state.sum = stats.y;
#pragma unroll
        for (int i = 0; i < elements; ++i) {
            state.out[i] = p.partial_out[(first + split) * HeadDim + lane * elements + i];
        }
        return state;
    };
    State<elements> empty;
    empty.maximum = -INFINITY;
    empty.sum = 0.0f;
#pragma unroll
    for (int i = 0; i < elements; ++i) empty.out[i] = 0.0f;

    // tree[l]: a complete subtree of 2^l splits that waits for its right sibling, where bit l of the number
    // of splits so far is set.
    State<elements> tree[levels];
#pragma unroll
    for (int l = 0; l < levels; ++l) tree[l] = empty;
    const int32_t splits = row.sequence < 0 ? 0 : row.limit / p.split + 1;
    for (int32_t s = 0; s < min(splits, p.max_splits); ++s) {
        State<elements> state = load(s);
        bool carried = true;
#pragma unroll
        for (int l = 0; l < levels; ++l) {
            if (!carried) continue;
            if ((s >> l & 1) != 0) {
                merge(tree[l], state);
                state = tree[l];
                tree[l] = empty;
            } else {
                tree[l] = state;
                carried = false;
            }
        }
    }
    // What the tree has where splits are missing changes nothing, so smaller subtrees merge first.
    State<elements> total = empty;
#pragma unroll
    for (int l = 0; l < levels; ++l) {
        merge(tree[l], total);
        total = tree[l];
    }
    if (row.mask) merge(total, load(p.max_splits));

    const bool seen = total.sum != 0.0f;
    const float scale = seen ? 1.0f / total.sum : 0.0f;
    uint16_t* const out = p.out + head_row * HeadDim + lane * elements;
#pragma unroll
    for (int i = 0; i < elements; i += 2) {
        *reinterpret_cast<uint32_t*>(out + i) = pack_bf16(total.out[i] * scale, total.out[i + 1] * scale);
    }
    if (p.lse != nullptr && lane == 0) {
        p.lse[head_row] = seen ? (total.maximum + log2f(total.sum)) * 0.69314718f : -INFINITY;
    }
}

}  // namespace

#define FLEXDRAFT_JOINT(head_dim, warps, stages)                                                               \
    FLEXDRAFT_KERNEL(joint_attention_d##head_dim##_w##warps##_s##stages, FlexdraftAttentionParams, 32 * warps, 1) { \
        joint_attention<head_dim, warps, stages>(p);                                                            \
    }
FLEXDRAFT_JOINT(64, 4, 2)
FLEXDRAFT_JOINT(64, 4, 3)
FLEXDRAFT_JOINT(64, 8, 2)
FLEXDRAFT_JOINT(64, 8, 3)
FLEXDRAFT_JOINT(128, 4, 2)
FLEXDRAFT_JOINT(128, 4, 3)
FLEXDRAFT_JOINT(128, 8, 2)
FLEXDRAFT_JOINT(128, 8, 3)

FLEXDRAFT_KERNEL(attention_merge_d64, FlexdraftAttentionParams, 128, 1) { attention_merge<64>(p); }
FLEXDRAFT_KERNEL(attention_merge_d128, FlexdraftAttentionParams, 128, 1) { attention_merge<128>(p); }

FLEXDRAFT_KERNEL_TABLE(attention, joint_attention_d64_w4_s2, joint_attention_d64_w4_s3, joint_attention_d64_w8_s2,
                       joint_attention_d64_w8_s3, joint_attention_d128_w4_s2, joint_attention_d128_w4_s3,
                       joint_attention_d128_w8_s2, joint_attention_d128_w8_s3, attention_merge_d64,
                       attention_merge_d128)
