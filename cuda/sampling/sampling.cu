// Sampling: from logits to tokens, probabilities and confidences.
//
// A name has the type of the logits, and ends in _f16 if the calibrator is f16 instead of bf16.
//
// A launch of sample_rows_* or calibrated_sample_* reads the logits once and leaves a partial result per row and chunk
// of the vocabulary. sample_finish_* makes one FlexdraftRowStats per row of the partial results.
//
// Registers per thread:
//
//   kernel                            sm_80   sm_90a
//   sample_rows_f32                      84       84
//   sample_rows_bf16                     84       84
//   sample_rows_f16                      84       84
//   calibrated_sample_f32_64x16          88       89
//   calibrated_sample_bf16_64x16         88       90
//   calibrated_sample_f32_64x16_f16      88       89
//   calibrated_sample_f16_64x16_f16      88       90
//   calibrated_sample_f32_128x64        189      189
//   calibrated_sample_bf16_128x64       189      189
//   calibrated_sample_f32_128x64_f16    189      189
//   calibrated_sample_f16_128x64_f16    189      189
//   sample_finish_f32                   120      124
//   sample_finish_bf16                  122      124
//   sample_finish_f16                   122      124
#include "calibrated.cuh"
#include "finish.cuh"
#include "plain.cuh"

using SmallShape = CalibratedShape<FLEXDRAFT_SMALL_TILE, FLEXDRAFT_SMALL_ROW_BLOCK, FLEXDRAFT_SMALL_WARPS_ACROSS_TILE,
                                   FLEXDRAFT_SMALL_WARPS_ACROSS_ROWS, FLEXDRAFT_SMALL_STAGES>;
using LargeShape = CalibratedShape<FLEXDRAFT_LARGE_TILE, FLEXDRAFT_LARGE_ROW_BLOCK, FLEXDRAFT_LARGE_WARPS_ACROSS_TILE,
                                   FLEXDRAFT_LARGE_WARPS_ACROSS_ROWS, FLEXDRAFT_LARGE_STAGES>;

FLEXDRAFT_KERNEL(sample_rows_f32, FlexdraftSampleParams, 32 * plain_warps, 2) { sample_rows<float>(p); }
FLEXDRAFT_KERNEL(sample_rows_bf16, FlexdraftSampleParams, 32 * plain_warps, 2) { sample_rows<bf16>(p); }
FLEXDRAFT_KERNEL(sample_rows_f16, FlexdraftSampleParams, 32 * plain_warps, 2) { sample_rows<f16>(p); }

FLEXDRAFT_KERNEL(calibrated_sample_f32_64x16, FlexdraftSampleParams, SmallShape::threads, 2) {
    FLEXDRAFT_SHARED(shared);
    calibrated_sample<float, bf16, SmallShape>(p, shared);
}
FLEXDRAFT_KERNEL(calibrated_sample_bf16_64x16, FlexdraftSampleParams, SmallShape::threads, 2) {
    FLEXDRAFT_SHARED(shared);
    calibrated_sample<bf16, bf16, SmallShape>(p, shared);
}
FLEXDRAFT_KERNEL(calibrated_sample_f32_128x64, FlexdraftSampleParams, LargeShape::threads, 1) {
    FLEXDRAFT_SHARED(shared);
    calibrated_sample<float, bf16, LargeShape>(p, shared);
}
FLEXDRAFT_KERNEL(calibrated_sample_bf16_128x64, FlexdraftSampleParams, LargeShape::threads, 1) {
    FLEXDRAFT_SHARED(shared);
    calibrated_sample<bf16, bf16, LargeShape>(p, shared);
}
FLEXDRAFT_KERNEL(calibrated_sample_f32_64x16_f16, FlexdraftSampleParams, SmallShape::threads, 2) {
    FLEXDRAFT_SHARED(shared);
    calibrated_sample<float, f16, SmallShape>(p, shared);
}
FLEXDRAFT_KERNEL(calibrated_sample_f16_64x16_f16, FlexdraftSampleParams, SmallShape::threads, 2) {
    FLEXDRAFT_SHARED(shared);
    calibrated_sample<f16, f16, SmallShape>(p, shared);
}
FLEXDRAFT_KERNEL(calibrated_sample_f32_128x64_f16, FlexdraftSampleParams, LargeShape::threads, 1) {
    FLEXDRAFT_SHARED(shared);
    calibrated_sample<float, f16, LargeShape>(p, shared);
}
FLEXDRAFT_KERNEL(calibrated_sample_f16_128x64_f16, FlexdraftSampleParams, LargeShape::threads, 1) {
    FLEXDRAFT_SHARED(shared);
    calibrated_sample<f16, f16, LargeShape>(p, shared);
}

FLEXDRAFT_KERNEL(sample_finish_f32, FlexdraftSampleParams, finish_threads, 1) {
    FLEXDRAFT_SHARED(shared);
    sample_finish<float>(p, shared);
}
FLEXDRAFT_KERNEL(sample_finish_bf16, FlexdraftSampleParams, finish_threads, 1) {
    FLEXDRAFT_SHARED(shared);
    sample_finish<bf16>(p, shared);
}
FLEXDRAFT_KERNEL(sample_finish_f16, FlexdraftSampleParams, finish_threads, 1) {
    FLEXDRAFT_SHARED(shared);
    sample_finish<f16>(p, shared);
}

FLEXDRAFT_KERNEL_TABLE(sampling, sample_rows_f32, sample_rows_bf16, sample_rows_f16, calibrated_sample_f32_64x16,
                       calibrated_sample_bf16_64x16, calibrated_sample_f32_64x16_f16, calibrated_sample_f16_64x16_f16,
                       calibrated_sample_f32_128x64, calibrated_sample_bf16_128x64, calibrated_sample_f32_128x64_f16,
                       calibrated_sample_f16_128x64_f16, sample_finish_f32, sample_finish_bf16, sample_finish_f16)
