// The shared memory of a CTA of joint_attention: its parts, and the barrier that guards each part.
//
//   part                          written                             read                  guarded by
//   q                             cp.async, behind an item's tile 0   products              "tile"
//   kv, a ring of stages          cp.async, Stages - 1 tiles ahead    products              "tile"
//   row_index, _limit, _place     at the start of an item             until the item ends   "item", "item end"
//   item                          at the start of an item             until the item ends   "item", "item end"
//   plan of items (work_items)    once, by plan_items                 between items         "plan"
//
// The barriers, each a __syncthreads():
//   "plan"       the plan is complete
//   "item"       the item and its rows are complete
//   "tile"       all threads' copies of tile t are complete, because each thread waited for its own copies before; and
//                all threads have read the stage of tile t - 1, so the copies that follow may overwrite that stage
//   "drain"      as "tile", after the last tile of a range of keys: the next range may overwrite every stage
//   "item end"   all threads have read the item and its rows
#pragma once

#include "../common/shapes.h"
#include "tiles.cuh"

// The work item that a CTA computes. An item is in shared memory, because sums need the registers.
struct WorkItem {
    int32_t sequence, kv_head;
    int32_t state_place;        // the place of the item's state among the places that a row has in the workspace
    int32_t whole;              // 1: the item leaves results; 0: it leaves a state per row
    int32_t begin_key, end_key; // the item's range of cached keys
    // The mask groups from `begin_group` to `end_group` are added one after the other; group first_group - 1 stands for
    // the cached keys.
    int32_t begin_group, first_group, end_group;
    int32_t slots, first_mask; // of the sequence: slots per group, and its first row among the mask rows of the pass
};
static_assert(sizeof(WorkItem) == FLEXDRAFT_ITEM_BYTES, "what the launch asks for");

template <int32_t HeadDim, int32_t Rows, int32_t Stages>
struct SharedPlan {
    uint16_t q[Rows][HeadDim];                  // swizzled (tiles.cuh)
    uint16_t kv[Stages][2][tile_keys][HeadDim]; // swizzled K and V; tile t is in stage t % Stages
    // The packed rows of the CTA's block.
    int32_t row_index[Rows];  // in the operands; -1: the row has no part in the item
    int32_t row_limit[Rows];  // the last cached position that the row sees; -1: the row has no part in the item
    uint16_t row_place[Rows]; // 256 * (rank of the row's group + 1) + index of the row's head in its KV head's heads
    WorkItem item;
    // The integers of the plan of work items follow in shared memory.
};
