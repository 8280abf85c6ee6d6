// Activation functions: silu(gate) · up of the MLP, and silu of the calibrator's hidden layer.
//
// Registers per thread:
//
//   kernel                    sm_80   sm_90a
//   silu_mul                     30       30
//   silu_mul_f16                 30       30
//   silu_add                     36       34
//   silu_add_f16                 36       34
#include "../common/vectors.cuh"
#include "../ptx/griddepcontrol.cuh"
#include "params.h"

namespace {

FLEXDRAFT_INLINE float silu(float x) { return x / (1.0f + expf(-x)); }

// The grid is [rows, chunks of a row / row_threads], because a decode step has few rows with many columns.
template <typename Element>
FLEXDRAFT_INLINE void silu_mul_of(const FlexdraftSiluMulParams& p) {
    const int64_t row = blockIdx.x, c = int64_t(blockIdx.y) * row_threads + threadIdx.x;
    wait_for_earlier_launches();
    if (c >= p.cols / 8) return;
    const uint16_t* const x = p.x + row * 2 * p.cols;
    const Eight gate = unpack<Element>(chunks(x)[c]), up = unpack<Element>(chunks(x + p.cols)[c]);
    Eight out;
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) out.x[i] = silu(gate.x[i]) * up.x[i];
    chunks(p.out + row * p.cols)[c] = pack<Element>(out);
}

// The grid is [rows]: one CTA computes one row.
template <typename Element>
FLEXDRAFT_INLINE void silu_add_of(const FlexdraftSiluAddParams& p) {
    const int64_t row = blockIdx.x;
    wait_for_earlier_launches();
    const int32_t owner = p.owner[row];
    if (!row_exists(owner, p.bonus_rows, p.error)) return;
    uint4* const x = chunks(p.x + row * p.cols);
    const uint4* const bonus = chunks(p.bonus + owner * p.cols);
    for (int64_t c = threadIdx.x; c < p.cols / 8; c += row_threads) {
        Eight values = unpack<Element>(x[c]);
        const Eight more = unpack<Element>(bonus[c]);
#pragma unroll
        for (int32_t i = 0; i < 8; ++i) values.x[i] = silu(values.x[i] + more.x[i]);
        x[c] = pack<Element>(values);
    }
}

} // namespace

FLEXDRAFT_KERNEL(silu_mul, FlexdraftSiluMulParams, row_threads, 4) { silu_mul_of<bf16>(p); }
FLEXDRAFT_KERNEL(silu_mul_f16, FlexdraftSiluMulParams, row_threads, 4) { silu_mul_of<f16>(p); }
FLEXDRAFT_KERNEL(silu_add, FlexdraftSiluAddParams, row_threads, 4) { silu_add_of<bf16>(p); }
FLEXDRAFT_KERNEL(silu_add_f16, FlexdraftSiluAddParams, row_threads, 4) { silu_add_of<f16>(p); }

FLEXDRAFT_KERNEL_TABLE(activation, silu_mul, silu_add, silu_mul_f16, silu_add_f16)
