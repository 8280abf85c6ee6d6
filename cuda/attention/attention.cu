// Joint draft-and-verify attention over a paged KV cache, on the tensor cores.
//
// The grid has exactly the number of CTAs that run concurrently. Each CTA takes items (work_items.cuh): a block of
// packed rows of one sequence and KV head, with a range of keys. The keys are a split or a span of splits of the cache,
// or the slots of one group. For each row and head, an item leaves the state (state.cuh) of an online softmax over its
// keys, and attention_merge (merge.cuh) merges a row's states. An item that has all cached keys of its sequence adds
// the slots of its rows' groups as well, and leaves the result.
//
// K and V tiles of 64 keys go through a ring of stages in shared memory (shared_plan.cuh), and all rows of the block
// read each tile. An item with a split of five tiles and three stages, time downwards; a copy without a tile continues:
//
//   barrier      stage 0        stage 1        stage 2        registers
//   item         copy tile 0    copy tile 1                               (and copy Q)
//   tile 0       read tile 0    copy           copy tile 2    softmax of tile 0
//   tile 1       copy tile 3    read tile 1    copy           softmax of tile 1
//   tile 2       copy           copy tile 4    read tile 2    softmax of tile 2
//   tile 3       read tile 3    copy                          softmax of tile 3
//   tile 4                      read tile 4                   softmax of tile 4, merge_split
//   drain                                                     the item's state or result is written
//   item end
//
// A row's bits depend only on the keys that the row sees. Tiles, splits and spans begin at absolute positions; keys
// beyond a row's limit have weight exactly 0, and V is exactly 0 if no row of the block sees it. The splits of a span
// merge one after the other, so a CTA needs one state besides the state of the split (accumulator.cuh). Spans merge in
// the binary tree over their absolute index, and a group's own slots come last. The number of splits in an item, and
// the order in which CTAs take items, change no bit.
#include "../ptx/griddepcontrol.cuh"
#include "mainloop.cuh"
#include "merge.cuh"

namespace {

// The kernel's shared memory is SharedBytes, which the launch asks for, and the plan of work items behind it.
template <typename Element, int32_t HeadDim, int32_t Warps, int32_t Parts, int32_t Stages, int32_t SharedBytes>
FLEXDRAFT_INLINE void joint_attention(const FlexdraftAttentionParams& p) {
    FLEXDRAFT_SHARED(memory);
    using Shape = JointShape<Element, HeadDim, Warps, Parts, Stages>;
    using Shared = typename Shape::Shared;
    static_assert(sizeof(Shared) == SharedBytes, "what the launch asks for");
    auto* const first = reinterpret_cast<int32_t*>(memory + sizeof(Shared));
    const uint32_t base = shared_address(memory);
    // The plan reads only the tables of the pass. If only copies write these tables, the CTA plans while earlier
    // launches run.
    if (p.tables_change != 0) wait_for_earlier_launches();
    const bool left_out = plan_items<Shape::rows>(p, first);
    wait_for_earlier_launches();
    if (left_out && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_PLAN));
    const JointCta<Shape> cta = {
        .p = p,
        .shared = *reinterpret_cast<Shared*>(memory),
        .shared_q = base,
        .shared_kv = base + uint32_t(sizeof(Shared::q)),
        .lane = int32_t(threadIdx.x % 32),
        .warp = int32_t(threadIdx.x / 32),
    };
    const int32_t pairs = plan_pairs(p.pass.batch);
#pragma unroll 1
    for (int32_t i = int32_t(blockIdx.x); i < first[2 * pairs]; i += int32_t(gridDim.x)) {
        const int32_t entry = entry_of(first, pairs, i);
        const bool full = entry < pairs;
        int32_t s = 2 * (full ? entry : entry - pairs), index = i - first[entry];
        SequenceRows sequence;
        SequenceItems items;
        // Each entry of the plan has the items of two sequences, and the item belongs to the first or to the second.
#pragma unroll 1
        for (;; ++s) {
            sequence = sequence_rows(p.pass, s);
            items = items_of<Shape::rows>(p, sequence);
            const int32_t own = full ? full_items(p, items) : other_items(p, items);
            if (index < own) break;
            index -= own;
        }
        ItemPlace place = item_place<Shape::rows>(p, sequence, items, full, index);
        place.sequence = s;
        if (place.block >= 0) work_item(cta, sequence, items, place);
    }
}

} // namespace

// Registers per thread, at most 255; two CTAs share a multiprocessor:
//
//   kernel                            sm_80   sm_90a
//   joint_attention_d64_r64_s2          190      182
//   joint_attention_d64_r64_s3          196      187
//   joint_attention_d64_r128_s2         227      231
//   joint_attention_d64_r128_s3         229      233
//   joint_attention_d128_r64_s2         243      245
//   joint_attention_d128_r64_s3         246      245
//   joint_attention_d128_r128_s2        255      255
//   joint_attention_d64_r64_s2_f16      190      182
//   joint_attention_d64_r64_s3_f16      196      187
//   joint_attention_d64_r128_s2_f16     227      230
//   joint_attention_d64_r128_s3_f16     229      232
//   joint_attention_d128_r64_s2_f16     245      245
//   joint_attention_d128_r64_s3_f16     247      247
//   joint_attention_d128_r128_s2_f16    255      255
#define FLEXDRAFT_JOINT(Element, suffix, head_dim, rows, parts, stages)                                   \
    FLEXDRAFT_KERNEL(joint_attention_d##head_dim##_r##rows##_s##stages##suffix, FlexdraftAttentionParams, \
                     FLEXDRAFT_ATTENTION_THREADS, 2) {                                                    \
        static_assert(rows == FLEXDRAFT_ATTENTION_THREADS / 2 * parts, "16 rows per part and warp");      \
        joint_attention<Element, head_dim, FLEXDRAFT_ATTENTION_THREADS / 32, parts, stages,               \
                        FLEXDRAFT_D##head_dim##_R##rows##_S##stages##_SHARED>(p);                         \
    }
#define FLEXDRAFT_JOINT_BF16(head_dim, rows, parts, stages) FLEXDRAFT_JOINT(bf16, , head_dim, rows, parts, stages)
#define FLEXDRAFT_JOINT_F16(head_dim, rows, parts, stages) FLEXDRAFT_JOINT(f16, _f16, head_dim, rows, parts, stages)
FLEXDRAFT_ATTENTION_TILES(FLEXDRAFT_JOINT_BF16)
FLEXDRAFT_ATTENTION_TILES(FLEXDRAFT_JOINT_F16)

// The registers that hold the tree of attention_merge decide how many warps run at once and hide each other's waits, so
// one kernel has only a few levels. Registers per thread:
//
//   kernel                            sm_80   sm_90a
//   attention_merge_d64_l5               72       72
//   attention_merge_d64_l12             128      128
//   attention_merge_d128_l5              96       96
//   attention_merge_d128_l12            184      184
//   attention_merge_d64_l5_f16           72       72
//   attention_merge_d64_l12_f16         128      128
//   attention_merge_d128_l5_f16          96       96
//   attention_merge_d128_l12_f16        184      184
#define FLEXDRAFT_MERGE(Element, suffix, head_dim, levels)                                      \
    FLEXDRAFT_KERNEL(attention_merge_d##head_dim##_l##levels##suffix, FlexdraftAttentionParams, \
                     32 * FLEXDRAFT_MERGE_WARPS, 1) {                                           \
        attention_merge<Element, head_dim, levels>(p);                                          \
    }
static_assert(FLEXDRAFT_FEW_LEVELS == 5 && FLEXDRAFT_MERGE_LEVELS == 12, "the kernels' names");
FLEXDRAFT_MERGE(bf16, , 64, 5)
FLEXDRAFT_MERGE(bf16, , 64, 12)
FLEXDRAFT_MERGE(bf16, , 128, 5)
FLEXDRAFT_MERGE(bf16, , 128, 12)
FLEXDRAFT_MERGE(f16, _f16, 64, 5)
FLEXDRAFT_MERGE(f16, _f16, 64, 12)
FLEXDRAFT_MERGE(f16, _f16, 128, 5)
FLEXDRAFT_MERGE(f16, _f16, 128, 12)

FLEXDRAFT_KERNEL_TABLE(attention, joint_attention_d64_r64_s2, joint_attention_d64_r64_s3, joint_attention_d64_r128_s2,
                       joint_attention_d64_r128_s3, joint_attention_d128_r64_s2, joint_attention_d128_r64_s3,
                       joint_attention_d128_r128_s2, attention_merge_d64_l5, attention_merge_d64_l12,
                       attention_merge_d128_l5, attention_merge_d128_l12, joint_attention_d64_r64_s2_f16,
                       joint_attention_d64_r64_s3_f16, joint_attention_d64_r128_s2_f16, joint_attention_d64_r128_s3_f16,
                       joint_attention_d128_r64_s2_f16, joint_attention_d128_r64_s3_f16,
                       joint_attention_d128_r128_s2_f16, attention_merge_d64_l5_f16, attention_merge_d64_l12_f16,
                       attention_merge_d128_l5_f16, attention_merge_d128_l12_f16)
