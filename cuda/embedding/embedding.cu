// Copies of rows by index: the embeddings of token ids, and rows that are gathered from other rows. Grid [rows], one
// CTA per row. Indices are in device memory, so only the kernels can check them.
//
// Registers per thread:
//
//   kernel                    sm_80   sm_90a
//   embed                        28       28
//   gather                       28       28
#include "../common/vectors.cuh"
#include "../ptx/griddepcontrol.cuh"
#include "params.h"

namespace {

// Copies a row from `from` to `out`, or writes zeros if `from` is null.
FLEXDRAFT_INLINE void copy_row(const uint16_t* from, uint16_t* out, int64_t cols) {
    for (int64_t c = threadIdx.x; c < cols / 8; c += row_threads) {
        chunks(out)[c] = from != nullptr ? chunks(from)[c] : make_uint4(0, 0, 0, 0);
    }
}

} // namespace

FLEXDRAFT_KERNEL(embed, FlexdraftEmbedParams, row_threads, 4) {
    const int64_t row = blockIdx.x;
    wait_for_earlier_launches();
    const int32_t id = p.ids[row];
    const bool valid = id >= 0 && id < p.vocab;
    if (!valid && threadIdx.x == 0 && p.error != nullptr) atomicOr(p.error, uint32_t(FLEXDRAFT_ERROR_TOKEN));
    copy_row(valid ? p.table + id * p.cols : nullptr, p.out + row * p.cols, p.cols);
}

FLEXDRAFT_KERNEL(gather, FlexdraftGatherParams, row_threads, 4) {
    const int64_t row = blockIdx.x;
    wait_for_earlier_launches();
    const int32_t index = p.indices[row];
    const bool valid = row_exists(index, p.x_rows, p.error);
    copy_row(valid ? p.x + index * p.cols : nullptr, p.out + row * p.cols, p.cols);
}

FLEXDRAFT_KERNEL_TABLE(embedding, embed, gather)
