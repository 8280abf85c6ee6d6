// Models of warp-wide operations and PTX instructions, as the PTX ISA describes them; each comment gives the
// instruction and the title of its section. The models of cvt from f32 need no host state and are in cuda/ptx/cvt.cuh.
#pragma once

#include <stdint.h>
#include <string.h>

#include "emulator.h"

namespace simt {

// Model of "bar.warp.sync" (Parallel Synchronization and Communication Instructions: bar.warp.sync): also orders memory
// among the lanes of the mask.
void sync_warp(uint32_t mask);
// Model of "fence.acq_rel.gpu" / "membar.gl" (Parallel Synchronization and Communication Instructions: membar / fence).
void fence();

// Model of "shfl.sync" (Data Movement and Conversion Instructions: shfl.sync): within segments of `width` lanes; a lane
// without a source gets its own value back.
uint64_t shuffle(uint32_t mask, uint64_t value, int lane, int width);
uint64_t shuffle_up(uint32_t mask, uint64_t value, uint32_t delta, int width);
uint64_t shuffle_down(uint32_t mask, uint64_t value, uint32_t delta, int width);
uint64_t shuffle_xor(uint32_t mask, uint64_t value, int lanes, int width);

// Models of "vote.sync.ballot", "match.any.sync" and "redux.sync" (Parallel Synchronization and Communication
// Instructions: vote.sync, match.sync, redux.sync).
uint32_t ballot(uint32_t mask, bool predicate);
uint32_t match_any(uint32_t mask, uint32_t value);
uint32_t reduce_add(uint32_t mask, uint32_t value);
uint32_t reduce_max(uint32_t mask, uint32_t value);
uint32_t reduce_min(uint32_t mask, uint32_t value);

// Model of "atom" (Parallel Synchronization and Communication Instructions: atom): no other thread runs between the
// load and the store.
uint64_t atomic_load(const void* at, uint32_t bytes);
void atomic_store(void* at, uint64_t value, uint32_t bytes);

// Models of "cp.async.cg", "cp.async.commit_group" and "cp.async.wait_group" (Data Movement and Conversion
// Instructions: cp.async, cp.async.commit_group, cp.async.wait_group / cp.async.wait_all).
inline void cp_async_16(uint32_t shared, const void* global, uint32_t source_bytes) {
    copy_async(shared, global, source_bytes);
}
inline void cp_async_commit() { copy_commit(); }
inline void cp_async_wait(int pending) { copy_wait(pending); }

// Model of "ldmatrix.m8n8.x4" (Warp-level matrix load instruction: ldmatrix): lane l passes the address of row l % 8 of
// matrix l / 8. It receives elements 2·(l % 4) and 2·(l % 4) + 1 of row l / 4 of each matrix (with `transposed`, of
// column l / 4).
void ldmatrix_x4(uint32_t (&r)[4], uint32_t row_address, bool transposed);

// Models of "mma.m16n8k16" (Matrix Fragments for mma.m16n8k16 with floating point type) with factors of 16 bits and f32
// sums. The hardware's order of summation is not documented; the models sum with k ascending, each product exact and
// each sum rounded to f32.
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// Model of "cvt.f32.f16" (Data Movement and Conversion Instructions: cvt).
inline float f16_value(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    // The exponent's bias is 15 in f16 and 127 in f32. The product corrects the bias of subnormal numbers as well;
    // infinity and NaN have the largest exponent in each type.
    const uint32_t shifted = magnitude << 13 | (magnitude >= 0x7c00u ? 0x7f800000u : 0u);
    float value;
    memcpy(&value, &shifted, 4);
    if (magnitude < 0x7c00u) value *= 0x1p112f;
    uint32_t word;
    memcpy(&word, &value, 4);
    word |= sign;
    memcpy(&value, &word, 4);
    return value;
}

// Model of "ex2.approx.ftz.f32" (Floating Point Instructions: ex2), which approximates 2^x.
float exp2_approx(float x);

} // namespace simt
