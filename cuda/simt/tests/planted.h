/* Parameters of the kernels in planted.cu. */
#pragma once

#include <stdint.h>

struct PlantedParams {
    const uint32_t* in;
    uint32_t* out;
    uint32_t* counter;
    uint32_t argument;
};
