// Kernels for golden recordings: one kernel per instruction that the SIMT emulator models, and one for CUDA's math
// functions. A GPU's results for given inputs are recorded, and the models are compared with them
// (tests/golden_vectors). A CTA runs one case, with one warp (for wgmma, which has no model yet, with a warpgroup).
// Shapes are in 32-bit words. Part of test builds only.
#include "../common/element.cuh"
#include "../common/trigonometry.cuh"
#include "../ptx/cp_async.cuh"
#include "../ptx/ldmatrix.cuh"
#include "../ptx/math.cuh"
#include "golden.h"
#include "wgmma.cuh"

namespace {

constexpr uint32_t full = 0xffffffffu;

// Runs ldmatrix: in, 64 rows of 4 words, then a row number for each lane; out [32, 4].
template <bool Transposed>
FLEXDRAFT_INLINE void load_matrices(const FlexdraftGoldenParams& p) {
    FLEXDRAFT_SHARED(shared);
    auto* staged = reinterpret_cast<uint32_t*>(shared);
    const uint32_t* const in = p.in + blockIdx.x * 288;
    const uint32_t lane = threadIdx.x;
    for (uint32_t i = lane; i < 256; i += 32) staged[i] = in[i];
    __syncwarp();
    uint32_t r[4];
    const uint32_t row_address = shared_address(shared) + in[256 + lane] * 16;
    if (Transposed) {
        ldmatrix_x4_trans(r, row_address);
    } else {
        ldmatrix_x4(r, row_address);
    }
    for (uint32_t i = 0; i < 4; ++i) p.out[blockIdx.x * 128 + 4 * lane + i] = r[i];
}

// Runs mma.sync on the registers of a warp's lanes: in [32, sums 4, a 4, b 2], out [32, 4].
template <typename Element>
FLEXDRAFT_INLINE void multiply(const FlexdraftGoldenParams& p) {
    const uint32_t* const in = p.in + (blockIdx.x * 32 + threadIdx.x) * 10;
    float d[4];
    for (uint32_t i = 0; i < 4; ++i) d[i] = __uint_as_float(in[i]);
    const uint32_t a[4] = {in[4], in[5], in[6], in[7]};
    Element::mma(d, a, in[8], in[9]);
    for (uint32_t i = 0; i < 4; ++i) p.out[(blockIdx.x * 32 + threadIdx.x) * 4 + i] = __float_as_uint(d[i]);
}

} // namespace

FLEXDRAFT_KERNEL(golden_ldmatrix_x4, FlexdraftGoldenParams, 32, 1) { load_matrices<false>(p); }
FLEXDRAFT_KERNEL(golden_ldmatrix_x4_trans, FlexdraftGoldenParams, 32, 1) { load_matrices<true>(p); }

FLEXDRAFT_KERNEL(golden_mma_m16n8k16, FlexdraftGoldenParams, 32, 1) { multiply<bf16>(p); }
FLEXDRAFT_KERNEL(golden_mma_m16n8k16_f16, FlexdraftGoldenParams, 32, 1) { multiply<f16>(p); }

// Runs cp.async: in, 4 words for each of 32 lanes, then the number of bytes that each lane copies; out [32, 4]. Bytes
// that are not copied must become zero.
FLEXDRAFT_KERNEL(golden_cp_async_16, FlexdraftGoldenParams, 32, 1) {
    FLEXDRAFT_SHARED(shared);
    auto* staged = reinterpret_cast<uint32_t*>(shared);
    const uint32_t* const in = p.in + blockIdx.x * 160;
    const uint32_t lane = threadIdx.x;
    for (uint32_t i = 0; i < 4; ++i) staged[4 * lane + i] = 0xa5a5a5a5u;
    cp_async_16(shared_address(staged + 4 * lane), in + 4 * lane, in[128 + lane]);
    cp_async_commit();
    cp_async_wait<0>();
    for (uint32_t i = 0; i < 4; ++i) p.out[blockIdx.x * 128 + 4 * lane + i] = staged[4 * lane + i];
}

// Runs ex2.approx: in [32], out [32].
FLEXDRAFT_KERNEL(golden_exp2_approx, FlexdraftGoldenParams, 32, 1) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    p.out[i] = __float_as_uint(exp2_approx(__uint_as_float(p.in[i])));
}

// Converts f32 to bf16: in [32, 2], out [32, 2], with the conversion of the first word alone, then of both words.
FLEXDRAFT_KERNEL(golden_cvt_rn_bf16, FlexdraftGoldenParams, 32, 1) {
    const uint32_t i = (blockIdx.x * 32 + threadIdx.x) * 2;
    const float low = __uint_as_float(p.in[i]), high = __uint_as_float(p.in[i + 1]);
    p.out[i] = cvt_rn_bf16(low);
    p.out[i + 1] = cvt_rn_bf16x2(low, high);
}

// Converts f32 to f16 and back: in [32, 2], out [32, 4], with the conversion of the first word alone, of both words, and
// the numbers that the second result has.
FLEXDRAFT_KERNEL(golden_cvt_f16, FlexdraftGoldenParams, 32, 1) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    const float low = __uint_as_float(p.in[2 * i]), high = __uint_as_float(p.in[2 * i + 1]);
    const uint32_t packed = cvt_rn_f16x2(low, high);
    p.out[4 * i] = cvt_rn_f16(low);
    p.out[4 * i + 1] = packed;
    p.out[4 * i + 2] = __float_as_uint(cvt_f32_f16(uint16_t(packed)));
    p.out[4 * i + 3] = __float_as_uint(cvt_f32_f16(uint16_t(packed >> 16)));
}

// CUDA's math functions, which the SIMT emulator takes from the C library: in [32, one argument per function], out
// [32, one result per function].
FLEXDRAFT_KERNEL(golden_math, FlexdraftGoldenParams, 32, 1) {
    const uint32_t first = (blockIdx.x * 32 + threadIdx.x) * 7;
    float x[7];
    for (uint32_t i = 0; i < 7; ++i) x[i] = __uint_as_float(p.in[first + i]);
    const float results[7] = {expf(x[0]),   logf(x[1]),   log1pf(x[2]),      log2f(x[3]),
                              cos_pi(x[4]), sin_pi(x[5]), 1.0f / sqrtf(x[6])};
    for (uint32_t i = 0; i < 7; ++i) p.out[first + i] = __float_as_uint(results[i]);
}

// Runs warp-wide operations: in [32], out [32, 10].
FLEXDRAFT_KERNEL(golden_collectives, FlexdraftGoldenParams, 32, 1) {
    const uint32_t value = p.in[blockIdx.x * 32 + threadIdx.x];
    uint32_t* const out = p.out + (blockIdx.x * 32 + threadIdx.x) * 10;
    out[0] = __shfl_sync(full, value, int32_t(value % 32));
    out[1] = __shfl_sync(full, value, int32_t(value % 32), 8);
    out[2] = __shfl_up_sync(full, value, 3, 16);
    out[3] = __shfl_down_sync(full, value, 5);
    out[4] = __shfl_xor_sync(full, value, 9, 16);
    out[5] = __ballot_sync(full, int32_t(value & 1));
    out[6] = __match_any_sync(full, value % 3);
    out[7] = __reduce_add_sync(full, value);
    out[8] = __reduce_max_sync(full, value);
    out[9] = __reduce_min_sync(full, value);
}

// One product of a warpgroup, computed by mma.sync and by wgmma: four warps with 16 rows each share one B of 8 columns.
// Registers of a lane: in [128, sums 4, a 4, b 2], with b used from the first warp only; out [128, 3, 4]: by mma.sync,
// by wgmma with A in shared memory, by wgmma with A in registers. Processors without wgmma leave its results unwritten.
FLEXDRAFT_KERNEL(golden_wgmma_m64n8k16, FlexdraftGoldenParams, 128, 1) {
    const uint32_t* const in = p.in + blockIdx.x * 128 * 10;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t* const own = in + threadIdx.x * 10;
    uint32_t* const out = p.out + (blockIdx.x * 128 + threadIdx.x) * 12;
    const uint32_t a[4] = {own[4], own[5], own[6], own[7]};
    const uint32_t b[2] = {in[lane * 10 + 8], in[lane * 10 + 9]};
    float sums[4];
    for (uint32_t i = 0; i < 4; ++i) sums[i] = __uint_as_float(own[i]);
    float d[4] = {sums[0], sums[1], sums[2], sums[3]};
    mma_m16n8k16_bf16(d, a, b[0], b[1]);
    for (uint32_t i = 0; i < 4; ++i) out[i] = __float_as_uint(d[i]);
#if defined(FLEXDRAFT_HAS_WGMMA)
    // The operands A [64, 16] and B [8, 16] of wgmma as matrices, both by rows of K, in core matrices of 8 rows and 16
    // bytes. Register i of A has 8 rows from 8 (i % 2) and 8 columns from 8 (i / 2); register i of B has 8 columns from
    // 8 i.
    FLEXDRAFT_SHARED(shared);
    auto* const staged = reinterpret_cast<uint32_t*>(shared);
    const uint32_t warp = threadIdx.x / 32;
    for (uint32_t i = 0; i < 4; ++i) staged[core_matrix_word(2 * warp + i % 2, i / 2) + lane] = a[i];
    uint32_t* const staged_b = staged + core_matrix_word(8, 0);
    if (warp == 0) {
        for (uint32_t i = 0; i < 2; ++i) staged_b[core_matrix_word(0, i) + lane] = b[i];
    }
    fence_proxy_async();
    __syncthreads();
    const uint64_t b_descriptor = core_matrix_descriptor(shared_address(staged_b));
    for (uint32_t i = 0; i < 4; ++i) d[i] = sums[i];
    wgmma_m64n8k16_shared(d, core_matrix_descriptor(shared_address(staged)), b_descriptor);
    for (uint32_t i = 0; i < 4; ++i) out[4 + i] = __float_as_uint(d[i]);
    for (uint32_t i = 0; i < 4; ++i) d[i] = sums[i];
    wgmma_m64n8k16_registers(d, a, b_descriptor);
    for (uint32_t i = 0; i < 4; ++i) out[8 + i] = __float_as_uint(d[i]);
#endif
}

FLEXDRAFT_KERNEL_TABLE(golden, golden_ldmatrix_x4, golden_ldmatrix_x4_trans, golden_mma_m16n8k16, golden_cp_async_16,
                       golden_exp2_approx, golden_cvt_rn_bf16, golden_math, golden_collectives, golden_wgmma_m64n8k16,
                       golden_mma_m16n8k16_f16, golden_cvt_f16)
