#!/usr/bin/env python3
"""check_device_code.py refuses what it should: kernels with one fault each, compiled by nvcc."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

CUDA = pathlib.Path(__file__).resolve().parent
SCRIPT = CUDA / "check_device_code.py"

PRELUDE = f"""
#include "{CUDA}/common/platform.cuh"
#include "{CUDA}/ptx/cp_async.cuh"
#include "{CUDA}/ptx/mma.cuh"
struct Params {{ const uint32_t* in; float* out; int n; }};
"""

SOUND = """
FLEXDRAFT_KERNEL(joint_attention_d64, Params, 128, 1) {
    FLEXDRAFT_SHARED(shared);
    cp_async_16(shared_address(shared) + threadIdx.x * 16, p.in + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    const uint32_t* words = reinterpret_cast<const uint32_t*>(shared) + threadIdx.x;
    const uint32_t a[4] = {words[0], words[1], words[2], words[3]};
    float d[4] = {};
    mma_m16n8k16(d, a, a[0], a[1]);
    for (int i = 0; i < 4; ++i) p.out[threadIdx.x * 4 + i] = d[i];
}
"""

WITHOUT_MATRIX_UNITS = "FLEXDRAFT_KERNEL(joint_attention_d64, Params, 128, 1) { p.out[threadIdx.x] = p.in[threadIdx.x]; }"

# An array with computed indices, which registers cannot have.
STACK = """
FLEXDRAFT_KERNEL(other, Params, 128, 1) {
    float values[64] = {};
    for (int i = 0; i < p.n; ++i) values[p.in[i] % 64] += i;
    p.out[threadIdx.x] = values[p.in[threadIdx.x] % 64];
}
"""
# More live values than the 32 registers that two CTAs of 1024 threads leave each thread.
SPILL = """
FLEXDRAFT_KERNEL(other, Params, 1024, 2) {
    float values[64];
    #pragma unroll
    for (int i = 0; i < 64; ++i) values[i] = p.in[threadIdx.x + i * p.n];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 64; ++i) p.out[threadIdx.x + i * p.n] = values[i] * values[63 - i];
}
"""
STATIC_SHARED = """
FLEXDRAFT_KERNEL(other, Params, 128, 1) {
    __shared__ float values[128];
    values[threadIdx.x] = p.in[threadIdx.x];
    __syncthreads();
    p.out[threadIdx.x] = values[127 - threadIdx.x];
}
"""
FLOAT_ATOMIC = "FLEXDRAFT_KERNEL(other, Params, 128, 1) { atomicAdd(p.out, float(p.in[threadIdx.x])); }"
INTEGER_ATOMIC = "FLEXDRAFT_KERNEL(other, Params, 128, 1) { atomicOr((unsigned*)p.out, p.in[threadIdx.x]); }"


def check(family, source, *kernels):
    """The script's exit status and output for one source."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, family, f"{family}.cu")
        path.parent.mkdir()
        path.write_text(f"{PRELUDE}{source}\nFLEXDRAFT_KERNEL_TABLE({', '.join([family, *kernels])})\n")
        output = pathlib.Path(folder, "results", "table.md")
        result = subprocess.run(
            [sys.executable, SCRIPT, "--cuda", folder, "--output", output],
            capture_output=True,
            text=True,
            check=False,
        )
        written = output.read_text() if output.exists() else ""
    return result.returncode, result.stderr, written


class Refusals(unittest.TestCase):
    def refused(self, text, family, source, *kernels):
        status, errors, _ = check(family, source, *kernels)
        self.assertEqual(status, 1, errors)
        for architecture in ["sm_80", "sm_90a"]:
            lines = [line for line in errors.splitlines() if architecture in line and text in line]
            self.assertTrue(lines, f"no {text!r} for {architecture} in:\n{errors}")

    def test_sound_code_passes(self):
        status, errors, written = check("attention", SOUND, "joint_attention_d64")
        self.assertEqual(status, 0, errors)
        self.assertRegex(written, r"\| `joint_attention_d64` \| [1-9]\d* \| 0 \| 0 \| 0 \| [1-9]\d* \| 1 \|")
        status, errors, _ = check("glue", INTEGER_ATOMIC, "other")
        self.assertEqual(status, 0, errors)

    def test_attention_without_matrix_units(self):
        self.refused("no HMMA and no LDGSTS", "attention", WITHOUT_MATRIX_UNITS, "joint_attention_d64")

    def test_matrix_products_under_another_name(self):
        for family in ["attention", "sampling"]:
            status, errors, _ = check(family, INTEGER_ATOMIC, "other")
            self.assertEqual(status, 1)
            self.assertIn(f"no kernel of {family} is named like", errors)

    def test_stack_frames(self):
        self.refused("256 bytes of stack frame", "glue", STACK, "other")

    def test_spills(self):
        self.refused("bytes of spills", "acceptance", SPILL, "other")

    def test_static_shared_memory(self):
        self.refused("512 bytes of static shared memory", "glue", STATIC_SHARED, "other")

    def test_float_atomics(self):
        self.refused("1 float atomics", "glue", FLOAT_ATOMIC, "other")

    def test_tables_that_differ_from_the_code(self):
        self.refused("other is in the code but not in the table", "glue", INTEGER_ATOMIC, "missing")
        self.refused("missing is in the table but not in the code", "glue", INTEGER_ATOMIC, "missing", "other")

    def test_sources_that_do_not_compile(self):
        status, errors, _ = check("glue", "int x = ;", "other")
        self.assertEqual(status, 1)
        self.assertIn("expected an expression", errors)


if __name__ == "__main__":
    unittest.main()
