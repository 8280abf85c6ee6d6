/* Parameters of the kernels in golden.cu. */
#pragma once

#include <stdint.h>

struct FlexdraftGoldenParams {
    const uint32_t* in; /* [cases, words a case] */
    uint32_t* out;      /* [cases, words a case] */
};
