// The shape of joint_attention at compile time, and the values that every thread of a CTA holds.
#pragma once

#include "params.h"
#include "shared_plan.cuh"
#include "work_items.cuh"

template <typename Type, int32_t HeadDim, int32_t Warps, int32_t Parts, int32_t Stages>
struct JointShape {
    using Element = Type; // of Q, K, V, the weights and the output: bf16 or f16
    static constexpr int32_t head_dim = HeadDim;
    static constexpr int32_t threads = 32 * Warps;
    // A warp has `parts` parts of 16 rows, which share the K and V that the warp reads: for one part, shared memory
    // delivers keys only about as fast as the tensor cores consume them.
    static constexpr int32_t parts = Parts;
    static constexpr int32_t warp_rows = 16 * Parts;
    static constexpr int32_t rows = warp_rows * Warps;
    static constexpr int32_t stages = Stages;
    using Shared = SharedPlan<HeadDim, rows, Stages>;
    // If the sums of a split fill half of the registers, the sums of earlier splits wait in the workspace.
    static constexpr bool waits_in_memory = Parts > 1;
    static constexpr int32_t tile_bytes = tile_keys * HeadDim * 2;
    static constexpr int32_t row_chunks = HeadDim / 8; // chunks of 16 bytes in a row
    // The keys of a tile that one warp copies, which are all in one page unless pages are smaller, and the keys that a warp
    // copies with one instruction.
    static constexpr int32_t warp_keys = tile_keys / Warps;
    static constexpr int32_t keys_at_once = 32 / row_chunks;
    static_assert(warp_keys <= 16 && warp_keys % keys_at_once == 0, "a warp's keys lie in one page");
    static_assert(threads % row_chunks == 0, "a thread copies the same chunk of its rows");
};

// A range of keys that attention goes through: cached positions, or the slots of one mask group.
struct KeyRange {
    int32_t first, end; // `first` is the first key of a tile, at or before the first key that a row of the block sees
    int32_t group_row;  // the group's slot 0, counted in mask rows; -1: cached positions
    int32_t group;      // the rank of the group among the groups of the sequence
};

template <typename Shape>
struct JointCta {
    const FlexdraftAttentionParams& p;
    typename Shape::Shared& shared;
    uint32_t shared_q, shared_kv; // shared addresses of `q` and `kv`
    int32_t lane, warp;

    // Returns `value` through an opaque operation, so that the compiler recomputes everything that depends on the
    // result at each use. If the compiler kept such values in registers from tile to tile, it would spill sums to local
    // memory.
    static FLEXDRAFT_METHOD int32_t compiler_barrier(int32_t value) {
#if defined(__CUDACC__)
        if constexpr (Shape::waits_in_memory) asm volatile("" : "+r"(value));
#endif
        return value;
    }

    // Returns the place of a cached position's page in the page table of its sequence.
    FLEXDRAFT_METHOD int32_t page_place(int32_t position) const {
        return int32_t(uint64_t(uint32_t(position)) * p.page_magic >> p.page_shift);
    }

    // Returns whether the keys that a warp copies have pages of their own.
    FLEXDRAFT_METHOD bool has_small_pages() const { return p.cache.page_size < Shape::warp_keys; }

    // Returns the row of the block that this thread has as its row `r` (0 or 1) of a part: lane / 4 or lane / 4 + 8 of
    // the part's 16 rows.
    FLEXDRAFT_METHOD int32_t row_of(int32_t part, int32_t r) const {
        return compiler_barrier(warp) * Shape::warp_rows + 16 * part + compiler_barrier(lane) / 4 + 8 * r;
    }

    // Returns the rank of the mask group to which row `m` of the block belongs; -1 for a candidate row.
    FLEXDRAFT_METHOD int32_t group_of(int32_t m) const { return shared.row_place[m] / 256 - 1; }

    // Returns the index of row `m` of the block, with its head, in arrays [rows, q_heads].
    FLEXDRAFT_METHOD int64_t head_row_of(int32_t m) const {
        return int64_t(shared.row_index[m]) * p.q_heads + shared.item.kv_head * p.head_ratio +
               shared.row_place[m] % 256;
    }

    // Returns the first key of a range of keys that a row of the block sees, from shared memory.
    FLEXDRAFT_METHOD int32_t begin_of(const KeyRange& keys) const {
        return keys.group_row < 0 ? compiler_barrier(shared.item.begin_key) : 0;
    }

    // Returns the last key of a range of keys that the row sees; -1 if the row sees none of them.
    FLEXDRAFT_METHOD int32_t last_of(const KeyRange& keys, int32_t part, int32_t r) const {
        const int32_t m = row_of(part, r);
        return keys.group_row < 0 ? shared.row_limit[m] : group_of(m) == keys.group ? keys.end - 1 : -1;
    }

    // Returns the first cached position that the row sees, if the row has a part in the item; otherwise 0.
    FLEXDRAFT_METHOD int32_t begin_of_row(int32_t part, int32_t r) const {
        const int32_t m = row_of(part, r), index = shared.row_index[m], group = group_of(m);
        if (index < 0) return 0;
        const int32_t slot = index - p.candidates - shared.item.first_mask - group * shared.item.slots;
        return window_begin(p, shared.row_limit[m] + (group < 0 ? 0 : 1 + slot));
    }
};
