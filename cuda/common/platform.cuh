// Definitions that every kernel source may rely on. nvcc compiles the sources for a GPU, and a C++ compiler compiles
// the same sources for the SIMT emulator (cuda/simt), which runs them without a GPU.
//
// A kernel is declared with FLEXDRAFT_KERNEL, takes one parameter struct `p`, and uses dynamic shared memory only.
// Nothing here or in a kernel may use <<<>>>, static __shared__ variables, textures, cooperative groups or the bf16 and
// f16 types of the CUDA headers.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)

// Declares extern "C" __global__ void name(Params p), with at most `threads` threads per CTA and at least `ctas` CTAs
// per SM.
#define FLEXDRAFT_KERNEL(name, Params, threads, ctas) \
    extern "C" __global__ void __launch_bounds__(threads, ctas) name(const __grid_constant__ Params p)

// Declares the CTA's dynamic shared memory, aligned to 1024 bytes, the period of the widest swizzle.
#define FLEXDRAFT_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

#define FLEXDRAFT_INLINE __device__ __forceinline__
#define FLEXDRAFT_METHOD __device__ __forceinline__

// Lists the kernels of a file, for the build script and the SIMT emulator.
#define FLEXDRAFT_KERNEL_TABLE(family, ...)

#else

#include "../simt/device.h"

#endif
