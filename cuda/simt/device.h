// The part of CUDA's built-in names that kernel files use, for a C++ compiler: on the host they include this header in
// place of nvcc's built-ins.
//
// The names have the meaning of the CUDA C++ Programming Guide. Every operation that involves other threads is a call
// into the host (emulator.h).
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "emulator.h"
#include "ptx.h"

#define FLEXDRAFT_INLINE static inline __attribute__((always_inline))
// Marks a member function that is always inlined.
#define FLEXDRAFT_METHOD inline __attribute__((always_inline))
#define __restrict__ __restrict

// Defines a kernel, the function by which launches call it, and its entry in the table of kernels, which has the
// kernel's name.
#define FLEXDRAFT_KERNEL(name, Params, threads, ctas)                                          \
    static void name##_body(const Params& p);                                                  \
    static void name##_entry(const void* p) { name##_body(*static_cast<const Params*>(p)); }   \
    static const simt::Kernel name = {#name, name##_entry, uint32_t(sizeof(Params)), threads}; \
    static void name##_body([[maybe_unused]] const Params& p)

#define FLEXDRAFT_SHARED(name) unsigned char* const name = simt::shared_memory()

// The name of the table of a file's kernels, made of the kernel family and the variant (with or without checks).
#define FLEXDRAFT_TABLE_NAME(variant, family) FLEXDRAFT_TABLE_NAME_(variant, family)
#define FLEXDRAFT_TABLE_NAME_(variant, family) flexdraft_simt_##variant##_##family
#define FLEXDRAFT_KERNEL_TABLE(family, ...)                                                   \
    extern "C" {                                                                              \
    extern const simt::Kernel FLEXDRAFT_TABLE_NAME(FLEXDRAFT_VARIANT, family)[];              \
    const simt::Kernel FLEXDRAFT_TABLE_NAME(FLEXDRAFT_VARIANT, family)[] = {__VA_ARGS__, {}}; \
    }

#define threadIdx (simt::coordinates.thread)
#define blockIdx (simt::coordinates.block)
#define blockDim (simt::coordinates.block_dim)
#define gridDim (simt::coordinates.grid_dim)

struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

FLEXDRAFT_INLINE int2 make_int2(int x, int y) { return {x, y}; }
FLEXDRAFT_INLINE int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
FLEXDRAFT_INLINE uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
FLEXDRAFT_INLINE uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
FLEXDRAFT_INLINE float2 make_float2(float x, float y) { return {x, y}; }
FLEXDRAFT_INLINE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// --- Integer and bit functions --------------------------------------------------------------------------

FLEXDRAFT_INLINE int min(int a, int b) { return a < b ? a : b; }
FLEXDRAFT_INLINE int max(int a, int b) { return a > b ? a : b; }
FLEXDRAFT_INLINE unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
FLEXDRAFT_INLINE unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
FLEXDRAFT_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
FLEXDRAFT_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
FLEXDRAFT_INLINE uint64_t min(uint64_t a, uint64_t b) { return a < b ? a : b; }
FLEXDRAFT_INLINE uint64_t max(uint64_t a, uint64_t b) { return a > b ? a : b; }
FLEXDRAFT_INLINE float min(float a, float b) { return fminf(a, b); }
FLEXDRAFT_INLINE float max(float a, float b) { return fmaxf(a, b); }

FLEXDRAFT_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
FLEXDRAFT_INLINE int __popcll(uint64_t x) { return __builtin_popcountll(x); }
FLEXDRAFT_INLINE int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
FLEXDRAFT_INLINE int __clzll(int64_t x) { return x == 0 ? 64 : __builtin_clzll(uint64_t(x)); }
FLEXDRAFT_INLINE int __ffs(int x) { return __builtin_ffs(x); }
FLEXDRAFT_INLINE int __ffsll(int64_t x) { return __builtin_ffsll(x); }
FLEXDRAFT_INLINE unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
FLEXDRAFT_INLINE uint64_t __umul64hi(uint64_t a, uint64_t b) {
    __extension__ typedef unsigned __int128 wide;
    return uint64_t(wide(a) * b >> 64);
}

// --- Floating point -------------------------------------------------------------------------------------

template <class To, class From>
FLEXDRAFT_INLINE To simt_bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same number of bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
FLEXDRAFT_INLINE unsigned __float_as_uint(float x) { return simt_bit_cast<unsigned>(x); }
FLEXDRAFT_INLINE float __uint_as_float(unsigned x) { return simt_bit_cast<float>(x); }
FLEXDRAFT_INLINE int __float_as_int(float x) { return simt_bit_cast<int>(x); }
FLEXDRAFT_INLINE float __int_as_float(int x) { return simt_bit_cast<float>(x); }
FLEXDRAFT_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
FLEXDRAFT_INLINE float __fadd_rn(float a, float b) { return a + b; }
FLEXDRAFT_INLINE float __fsub_rn(float a, float b) { return a - b; }
FLEXDRAFT_INLINE float __fmul_rn(float a, float b) { return a * b; }
FLEXDRAFT_INLINE float __fdiv_rn(float a, float b) { return a / b; }
// On a GPU, the result of __fdividef is within 2 units in the last place.
FLEXDRAFT_INLINE float __fdividef(float a, float b) { return a / b; }
FLEXDRAFT_INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
FLEXDRAFT_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
FLEXDRAFT_INLINE int __float2int_rn(float x) { return int(nearbyintf(x)); }
FLEXDRAFT_INLINE float __int2float_rn(int x) { return float(x); }
FLEXDRAFT_INLINE float __uint2float_rn(unsigned x) { return float(x); }

template <class T>
FLEXDRAFT_INLINE T __ldg(const T* at) {
    return *at;
}

// --- Barriers and fences --------------------------------------------------------------------------------

FLEXDRAFT_INLINE void __syncthreads() { simt::barrier(false); }
FLEXDRAFT_INLINE int __syncthreads_count(int predicate) { return int(simt::barrier(predicate != 0)); }
FLEXDRAFT_INLINE int __syncthreads_or(int predicate) { return simt::barrier(predicate != 0) != 0; }
FLEXDRAFT_INLINE int __syncthreads_and(int predicate) { return simt::barrier(predicate == 0) == 0; }
FLEXDRAFT_INLINE void __syncwarp(unsigned mask = 0xffffffffu) { simt::sync_warp(mask); }
FLEXDRAFT_INLINE void __threadfence() { simt::fence(); }
// Within a CTA, the emulator orders two threads only by a barrier or __syncwarp, so this fence adds nothing.
FLEXDRAFT_INLINE void __threadfence_block() {}

// --- Warp-wide operations -------------------------------------------------------------------------------

#define FLEXDRAFT_SHUFFLES(T)                                                                     \
    FLEXDRAFT_INLINE T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {            \
        return simt_narrow<T>(simt::shuffle(mask, simt_widen(value), lane, width));               \
    }                                                                                             \
    FLEXDRAFT_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {   \
        return simt_narrow<T>(simt::shuffle_up(mask, simt_widen(value), delta, width));           \
    }                                                                                             \
    FLEXDRAFT_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) { \
        return simt_narrow<T>(simt::shuffle_down(mask, simt_widen(value), delta, width));         \
    }                                                                                             \
    FLEXDRAFT_INLINE T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {       \
        return simt_narrow<T>(simt::shuffle_xor(mask, simt_widen(value), lanes, width));          \
    }

template <class T>
FLEXDRAFT_INLINE uint64_t simt_widen(T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T>
FLEXDRAFT_INLINE T simt_narrow(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
FLEXDRAFT_SHUFFLES(int)
FLEXDRAFT_SHUFFLES(unsigned)
FLEXDRAFT_SHUFFLES(int64_t)
FLEXDRAFT_SHUFFLES(uint64_t)
FLEXDRAFT_SHUFFLES(long long)
FLEXDRAFT_SHUFFLES(unsigned long long)
FLEXDRAFT_SHUFFLES(float)
FLEXDRAFT_SHUFFLES(double)
#undef FLEXDRAFT_SHUFFLES

FLEXDRAFT_INLINE unsigned __ballot_sync(unsigned mask, int predicate) { return simt::ballot(mask, predicate != 0); }
FLEXDRAFT_INLINE int __any_sync(unsigned mask, int predicate) { return simt::ballot(mask, predicate != 0) != 0; }
FLEXDRAFT_INLINE int __all_sync(unsigned mask, int predicate) { return simt::ballot(mask, predicate == 0) == 0; }
FLEXDRAFT_INLINE unsigned __match_any_sync(unsigned mask, unsigned value) { return simt::match_any(mask, value); }
FLEXDRAFT_INLINE unsigned __reduce_add_sync(unsigned mask, unsigned value) { return simt::reduce_add(mask, value); }
FLEXDRAFT_INLINE unsigned __reduce_max_sync(unsigned mask, unsigned value) { return simt::reduce_max(mask, value); }
FLEXDRAFT_INLINE unsigned __reduce_min_sync(unsigned mask, unsigned value) { return simt::reduce_min(mask, value); }

// --- Atomics, for integers only: the result of float sums would depend on their order --------------------

#define FLEXDRAFT_ATOMIC(name, T, expression)                                      \
    FLEXDRAFT_INLINE T name(T* at, T value) {                                      \
        const T old = simt_narrow<T>(simt::atomic_load(at, sizeof(T)));            \
        simt::atomic_store(at, simt_widen(static_cast<T>(expression)), sizeof(T)); \
        return old;                                                                \
    }
#define FLEXDRAFT_ATOMICS(T)                                                         \
    FLEXDRAFT_ATOMIC(atomicAdd, T, old + value)                                      \
    FLEXDRAFT_ATOMIC(atomicMax, T, old > value ? old : value)                        \
    FLEXDRAFT_ATOMIC(atomicMin, T, old < value ? old : value)                        \
    FLEXDRAFT_ATOMIC(atomicOr, T, old | value)                                       \
    FLEXDRAFT_ATOMIC(atomicAnd, T, (old & value))                                    \
    FLEXDRAFT_ATOMIC(atomicExch, T, value)                                           \
    FLEXDRAFT_INLINE T atomicCAS(T* at, T compare, T value) {                        \
        const T old = simt_narrow<T>(simt::atomic_load(at, sizeof(T)));              \
        simt::atomic_store(at, simt_widen(old == compare ? value : old), sizeof(T)); \
        return old;                                                                  \
    }
FLEXDRAFT_ATOMICS(int)
FLEXDRAFT_ATOMICS(unsigned)
FLEXDRAFT_ATOMICS(unsigned long)
FLEXDRAFT_ATOMICS(unsigned long long)
#undef FLEXDRAFT_ATOMIC
#undef FLEXDRAFT_ATOMICS
