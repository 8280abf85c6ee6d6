// Rows of bf16 or f16 in global memory, which kernels read and write in chunks of eight elements (16 bytes).
#pragma once

#include "element.cuh"
#include "params.h"
#include "shapes.h"

constexpr int32_t row_threads = FLEXDRAFT_ROW_THREADS;

struct Eight {
    float x[8];
};

// Returns the eight elements of a chunk.
template <typename Element>
FLEXDRAFT_INLINE Eight unpack(uint4 bits) {
    return Eight{{Element::low(bits.x), Element::high(bits.x), Element::low(bits.y), Element::high(bits.y),
                  Element::low(bits.z), Element::high(bits.z), Element::low(bits.w), Element::high(bits.w)}};
}

// Returns the chunk of eight elements.
template <typename Element>
FLEXDRAFT_INLINE uint4 pack(const Eight& values) {
    return make_uint4(Element::pack(values.x[0], values.x[1]), Element::pack(values.x[2], values.x[3]),
                      Element::pack(values.x[4], values.x[5]), Element::pack(values.x[6], values.x[7]));
}

FLEXDRAFT_INLINE const uint4* chunks(const uint16_t* row) { return reinterpret_cast<const uint4*>(row); }
FLEXDRAFT_INLINE uint4* chunks(uint16_t* row) { return reinterpret_cast<uint4*>(row); }

// Returns the sum of `value` over the lanes of a warp, in every lane. The order of additions is fixed, so the bits are
// always the same.
FLEXDRAFT_INLINE float warp_sum(float value) {
#pragma unroll
    for (int32_t lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}

// Returns whether `index` is one of `rows` row indices. Indices are in device memory, so the host cannot check them; an
// index that is neither a row nor -1 is reported in `error`.
FLEXDRAFT_INLINE bool row_exists(int32_t index, int32_t rows, uint32_t* error) {
    const bool exists = index >= 0 && index < rows;
    if (!exists && index != -1 && threadIdx.x == 0 && error != nullptr) {
        atomicOr(error, uint32_t(FLEXDRAFT_ERROR_ROW));
    }
    return exists;
}
