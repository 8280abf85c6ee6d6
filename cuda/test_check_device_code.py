#!/usr/bin/env python3
"""check_device_code.py refuses what it should: kernels with one fault each, compiled by nvcc."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

# The build watches this folder.
sys.dont_write_bytecode = True
import check_device_code  # noqa: E402

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


class SharedMemory(unittest.TestCase):
    def test_what_launches_ask_for(self):
        constants = check_device_code.shapes()
        expected = {
            "joint_attention_d64_r64_s2": 40960 + 684 + 8,
            "joint_attention_d128_r128_s2": 98304 + 1324 + 8,
            "attention_merge_d64_l5": 0,
            "sample_rows_f32": 0,
            "calibrated_sample_f32_64x16": 84736,
            "calibrated_sample_bf16_128x64": 203776,
            "sample_finish_bf16": 24768,
            "accept_f32": 1024,
            "accept_block_sums_bf16": 1024,
            "rms_norm": 32,
            "add": 0,
        }
        for name, shared in expected.items():
            self.assertEqual(check_device_code.launch_shared(name, constants), shared, name)

    def test_no_size_is_left_out(self):
        named = {constant for sizes, _ in check_device_code.SHARED.values() for constant in sizes}
        for constant in check_device_code.shapes():
            if constant.endswith("_SHARED") and not constant.startswith("FLEXDRAFT_D"):
                self.assertIn(constant, named)

    def test_tiles_that_the_table_does_not_have(self):
        with self.assertRaisesRegex(check_device_code.Failure, "FLEXDRAFT_D96_R64_S3_SHARED"):
            check_device_code.launch_shared("joint_attention_d96_r64_s3", check_device_code.shapes())


class Refusals(unittest.TestCase):
    def refused(self, text, family, source, *kernels):
        status, errors, _ = check(family, source, *kernels)
        self.assertEqual(status, 1, errors)
        for architecture in ["sm_80", "sm_90a"]:
            lines = [line for line in errors.splitlines() if architecture in line and text in line]
            self.assertTrue(lines, f"no {text!r} for {architecture} in:\n{errors}")

    def test_sound_code_passes(self):
        name = "joint_attention_d64_r64_s3"
        status, errors, written = check("attention", SOUND.replace("joint_attention_d64", name), name)
        self.assertEqual(status, 0, errors)
        self.assertRegex(written, rf"\| `{name}` \| [1-9]\d* \| 0 \| 0 \| 58036 \| [1-9]\d* \| 1 \|")
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
