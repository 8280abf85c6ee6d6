#!/usr/bin/env python3
"""Tests that check_device_code.py refuses kernels with one fault each, compiled by nvcc."""

import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

# The build watches this folder, so no bytecode may be written to it.
sys.dont_write_bytecode = True
import check_device_code  # noqa: E402
import serial_loads  # noqa: E402

CUDA = pathlib.Path(__file__).resolve().parent
SCRIPT = CUDA / "check_device_code.py"

PRELUDE = f"""
#include "{CUDA}/common/platform.cuh"
#include "{CUDA}/ptx/cp_async.cuh"
#include "{CUDA}/ptx/griddepcontrol.cuh"
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
    mma_m16n8k16_bf16(d, a, a[0], a[1]);
    for (int i = 0; i < 4; ++i) p.out[threadIdx.x * 4 + i] = d[i];
}
"""

WITHOUT_MATRIX_UNITS = "FLEXDRAFT_KERNEL(joint_attention_d64, Params, 128, 1) { p.out[threadIdx.x] = p.in[threadIdx.x]; }"

# A kernel with an array that cannot be in registers, because its indices are computed.
STACK = """
FLEXDRAFT_KERNEL(other, Params, 128, 1) {
    float values[64] = {};
    for (int i = 0; i < p.n; ++i) values[p.in[i] % 64] += i;
    p.out[threadIdx.x] = values[p.in[threadIdx.x] % 64];
}
"""
# A kernel that spills: it has more live values than the 32 registers that two CTAs of 1024 threads leave each thread.
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


# Kernels with one batch of loads and with two serial loads: two parallel loads, and a load whose address another load
# gives.
TWO_LOADS = "FLEXDRAFT_KERNEL(other, Params, 128, 1) { p.out[threadIdx.x] = p.in[threadIdx.x] + p.in[p.n]; }"
CHASE = "FLEXDRAFT_KERNEL(other, Params, 128, 1) { p.out[threadIdx.x] = p.in[p.in[threadIdx.x]]; }"


# A load through the read-only cache, which nvcc may move in front of the wait.
CONSTANT_LOAD = "FLEXDRAFT_KERNEL(other, Params, 128, 1) { p.out[threadIdx.x] = __ldg(p.in + threadIdx.x); }"


def check(family, source, *kernels, committed=None, accept=False, waits=True):
    """Returns the script's exit status and output for one source with the given committed table."""
    if waits:
        source = re.sub(r"(FLEXDRAFT_KERNEL\([^)]*\) {)", r"\1 wait_for_earlier_launches();", source)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, family, f"{family}.cu")
        path.parent.mkdir()
        path.write_text(f"{PRELUDE}{source}\nFLEXDRAFT_KERNEL_TABLE({', '.join([family, *kernels])})\n")
        output = pathlib.Path(folder, "results", "table.md")
        before = pathlib.Path(folder, "committed.md")
        if committed is not None:
            before.write_text(committed)
        options = ["--accept-rise"] if accept else []
        result = subprocess.run(
            [sys.executable, SCRIPT, "--cuda", folder, "--output", output, "--committed", before, *options],
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
            "joint_attention_d64_r64_s2": 40960 + 684 + 12,
            "joint_attention_d128_r128_s2": 98304 + 1324 + 12,
            "attention_merge_d64_l5": 0,
            "sample_rows_f32": 0,
            "calibrated_sample_f32_64x16": 84736,
            "calibrated_sample_bf16_128x64": 203776,
            "sample_finish_bf16": 24768,
            "accept_f32": 1024,
            "accept_block_sums_bf16": 1024,
            "rms_norm": 32,
            "rms_norm_f16": 32,
            "joint_attention_d64_r64_s2_f16": 40960 + 684 + 12,
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


def sass(code):
    """Returns the instructions of a text in cuobjdump's format: one `address: instruction` per line."""
    lines = [line.split(":", 1) for line in code.strip().splitlines()]
    return [serial_loads.parse(f"        /*{at.strip()}*/   {text.strip()} ;   /* 0x0 */") for at, text in lines]


class SerialLoads(unittest.TestCase):
    def counted(self, expected, code):
        self.assertEqual(serial_loads.count(sass(code)), expected, code)

    def test_each_load_used_before_the_next(self):
        # Four of the sixteen pairs of loads in an attention kernel, for which the count of serial loads was written.
        self.counted(4, """
            0000: LDG.E.64 R54, desc[UR16][R46.64]
            0010: FMUL R58, R55, R35.reuse
            0020: FFMA R143, R143, R50.reuse, R58
            0030: STG.E.64 desc[UR16][R46.64], R142
            0040: @P4 BRA 0x0060
            0050: LDG.E.64 R54, desc[UR16][R46.64+0x20]
            0060: BSYNC B3
            0070: FMUL R43, R54, R35
            0080: LDG.E.64 R62, [R46.64+0x40]
            0090: FADD R1, R2, -R63
            00a0: @!P1 LDG.E R66, [R46.64+0x60]
            00b0: FADD R1, R2, |R66|
            00c0: EXIT
        """)

    def test_a_batch_counts_once(self):
        self.counted(1, """
            0000: LDG.E.64 R4, desc[UR16][R46.64]
            0010: LDG.E.64 R6, desc[UR16][R46.64+0x20]
            0020: IADD3 R1, P0, R2, R3, RZ
            0030: LDG.E.128.CONSTANT R8, desc[UR16][R46.64+0x40]
            0040: FMUL R43, R4, R35
            0050: FMUL R43, R7, R11
            0060: EXIT
        """)

    def test_the_use_of_any_load_ends_a_batch(self):
        # The code uses the first of two loads before it issues the third; the batch of the two is complete then.
        self.counted(2, """
            0000: LDG.E R4, [R2.64]
            0010: LDG.E R5, [R2.64+0x4]
            0020: FADD R1, R4, R1
            0030: LDG.E R6, [R2.64+0x8]
            0040: FADD R1, R5, R6
            0050: EXIT
        """)

    def test_an_address_that_was_loaded(self):
        # The second load waits for the high half of its address, the third for a factor of its address.
        self.counted(3, """
            0000: LDG.E R7, [R2.64]
            0010: LDG.E R8, [R6.64]
            0020: IMAD.WIDE R10, R8, 0x4, R12
            0030: LDG.E R14, [R10.64]
            0040: STG.E [R2.64], R14
            0050: EXIT
        """)

    def test_wide_operands(self):
        self.counted(1, "0000: LDG.E R7, [R2.64]\n0010: STG.E.128 [R2.64], R4\n0020: EXIT")
        self.counted(0, "0000: LDG.E R7, [R2.64]\n0010: STG.E.64 [R2.64], R4\n0020: EXIT")
        self.counted(1, "0000: LDG.E R7, [R2.64]\n0010: HMMA.16816.F32.BF16 R20, R4, R8, R20\n0020: EXIT")
        self.counted(1, "0000: LDG.E R7, [R2.64]\n0010: IMAD.WIDE.U32 R20, R1, R2, R6\n0020: EXIT")

    def test_what_is_not_a_use(self):
        # Code without serial loads, because the loaded register is overwritten, compared in another register, copied
        # without a register, or used after the end.
        self.counted(0, """
            0000: LDG.E R7, [R2.64]
            0010: ISETP.GE.AND P0, PT, R70, UR7, PT
            0020: LDGSTS.E.BYPASS.128 [R9+0x8000], [R10.64], !P5
            0030: SHFL.IDX PT, R7, R1, R3, 0x1f
            0040: FADD R1, R7, R7
            0050: LDG.E R8, [R2.64]
            0060: EXIT
            0070: FADD R1, R8, R8
        """)
        self.counted(1, "0000: LDG.E R7, [R2.64]\n0010: ISETP.GE.AND P0, PT, R7, R1, PT\n0020: EXIT")

    def test_jumps_are_followed_and_loops_end(self):
        self.counted(1, """
            0000: LDG.E R7, [R2.64]
            0010: BRA 0x0030
            0020: LDG.E R8, [R2.64]
            0030: FADD R1, R7, R7
            0040: BRA 0x0040
        """)


class Rises(unittest.TestCase):
    def test_more_serial_loads_than_committed(self):
        status, errors, once = check("norm", TWO_LOADS, "other")
        self.assertEqual(status, 0, errors)
        self.assertEqual(set(check_device_code.committed_serial_loads(once).values()), {1})
        status, errors, same = check("norm", TWO_LOADS, "other", committed=once)
        self.assertEqual((status, same), (0, once), errors)
        status, errors, written = check("norm", CHASE, "other", committed=once)
        self.assertEqual((status, written), (1, ""), "written, it would be what the next run compares with")
        for architecture in ["sm_80", "sm_90a"]:
            self.assertIn(f"other for {architecture}: 2 serial loads instead of 1", errors)
        status, errors, written = check("norm", CHASE, "other", committed=once, accept=True)
        self.assertEqual(status, 0, errors)
        self.assertEqual(set(check_device_code.committed_serial_loads(written).values()), {2})
        status, errors, _ = check("norm", TWO_LOADS, "other", committed=written)
        self.assertEqual(status, 0, errors)

    def test_kernels_that_the_committed_table_does_not_have(self):
        for committed in ["", "## norm, sm_80\n\n| kernel | registers |\n| --- | ---: |\n| `other` | 8 |\n"]:
            status, errors, _ = check("norm", CHASE, "other", committed=committed)
            self.assertEqual(status, 0, errors)

    def test_every_committed_kernel_has_a_count(self):
        committed = check_device_code.committed_serial_loads(check_device_code.COMMITTED.read_text())
        for family in check_device_code.FAMILIES:
            source = (CUDA / family / f"{family}.cu").read_text()
            for name in check_device_code.kernel_table(source):
                for architecture in check_device_code.ARCHITECTURES:
                    self.assertIn((name, architecture), committed)


class Registers(unittest.TestCase):
    SOURCE = "//   kernel   sm_80   sm_90a\n//   other       8       10\n" + INTEGER_ATOMIC

    def kernels(self, *registers):
        kernels = zip(check_device_code.ARCHITECTURES, registers)
        return {("other", target): check_device_code.Kernel("other", target, count) for target, count in kernels}

    def test_registers_that_a_comment_names(self):
        self.assertEqual(check_device_code.register_table(self.SOURCE), {"other": [8, 10]})
        self.assertEqual(check_device_code.register_problems(self.SOURCE, self.kernels(8, 10)), [])
        self.assertEqual(check_device_code.register_problems(INTEGER_ATOMIC, self.kernels(8, 10)), [])
        found = check_device_code.register_problems(self.SOURCE, self.kernels(8, 12))
        self.assertEqual(found, ["other: the comments name registers [8, 10], the code has [8, 12]"])

    def test_a_kernel_that_the_comments_leave_out(self):
        kernels = {**self.kernels(8, 10), ("more", "sm_80"): check_device_code.Kernel("more", "sm_80", 9)}
        found = check_device_code.register_problems(self.SOURCE, kernels)
        self.assertEqual(found, ["more: the comments name registers None, the code has [9]"])

    def test_every_kernel_has_its_registers_beside_it(self):
        for family in check_device_code.FAMILIES:
            source = (CUDA / family / f"{family}.cu").read_text()
            kernels = check_device_code.kernel_table(source)
            self.assertEqual(sorted(check_device_code.register_table(source)), sorted(kernels), family)


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
        self.assertRegex(written, rf"\| `{name}` \| [1-9]\d* \| 0 \| 0 \| 0 \| 58040 \| [1-9]\d* \| 1 \|")
        status, errors, _ = check("norm", INTEGER_ATOMIC, "other")
        self.assertEqual(status, 0, errors)

    def test_attention_without_matrix_units(self):
        self.refused("no HMMA and no LDGSTS", "attention", WITHOUT_MATRIX_UNITS, "joint_attention_d64")

    def test_matrix_products_under_another_name(self):
        for family in ["attention", "sampling"]:
            status, errors, _ = check(family, INTEGER_ATOMIC, "other")
            self.assertEqual(status, 1)
            self.assertIn(f"no kernel of {family} is named like", errors)

    def test_stack_frames(self):
        self.refused("256 bytes of stack frame", "norm", STACK, "other")

    def test_spills(self):
        self.refused("bytes of spills", "acceptance", SPILL, "other")

    def test_static_shared_memory(self):
        self.refused("512 bytes of static shared memory", "norm", STATIC_SHARED, "other")

    def test_float_atomics(self):
        self.refused("1 float atomics", "norm", FLOAT_ATOMIC, "other")

    def test_kernels_that_do_not_wait_for_earlier_launches(self):
        status, errors, _ = check("norm", INTEGER_ATOMIC, "other", waits=False)
        self.assertEqual((status, "other for sm_90a: no ACQBULK and no PREEXIT" in errors), (1, True), errors)

    def test_loads_that_move_across_the_wait(self):
        status, errors, _ = check("norm", CONSTANT_LOAD, "other")
        self.assertEqual((status, "other for sm_90a: loads that may move across the wait" in errors), (1, True), errors)

    def test_tables_that_differ_from_the_code(self):
        self.refused("other is in the code but not in the table", "norm", INTEGER_ATOMIC, "missing")
        self.refused("missing is in the table but not in the code", "norm", INTEGER_ATOMIC, "missing", "other")

    def test_instructions_that_are_recorded(self):
        kernels = check_device_code.compile_source(check_device_code.find_nvcc(), CUDA / "golden" / "golden.cu")
        self.assertEqual(check_device_code.golden_problems(kernels), [])
        kernels["golden_wgmma_m64n8k16", "sm_90a"].instructions.clear()
        expected = ["golden_wgmma_m64n8k16 (sm_90a): 0 HGMMA, not 2"]
        self.assertEqual(check_device_code.golden_problems(kernels), expected)

    def test_sources_that_do_not_compile(self):
        status, errors, _ = check("norm", "int x = ;", "other")
        self.assertEqual(status, 1)
        self.assertIn("expected an expression", errors)


if __name__ == "__main__":
    unittest.main()
