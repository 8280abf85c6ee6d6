#!/usr/bin/env python3
"""What nvcc makes of the kernels: resources and instruction mix of each, as the build embeds them.

    cuda/check_device_code.py [--output benches/results/device_code.md] [--accept-rise]

Compiles every family with the options of the build (nvcc.args), prints a table a family and architecture,
and fails where the machine code is not what the kernels were written for:

- a register spill or a stack frame: both are local memory, that is, global memory traffic;
- static shared memory: the SIMT host knows only the dynamic kind;
- a float atomic: the order of its additions, and so the result's bits, would change from run to run;
- a kernel that is a matrix product (attention over keys and values, the calibrator's W2) without HMMA
  (matrix units) or LDGSTS (asynchronous copies), or a family that has no such kernel any more;
- more serial loads (serial_loads.py) than the committed table has for the kernel: a thread that waits for one load
  after the other is what instruction counts do not show. A rise that is meant is written with --accept-rise;
- kernels that differ from the FLEXDRAFT_KERNEL_TABLE of their file;
- golden/golden.cu (which has no table) without HGMMA in the kernel that multiplies by wgmma.

Needs nvcc (NVCC, or .cuda as cuda/install_nvcc.sh makes it, or PATH) with cuobjdump beside it.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import serial_loads

CUDA = pathlib.Path(__file__).resolve().parent
# common/shapes.h with all sums done, as the crate in bindings generates it.
SHAPES = CUDA.parent / "src" / "kernels" / "params" / "shapes.rs"
# What is committed of the tables that this script writes.
COMMITTED = CUDA.parent / "benches" / "results" / "device_code.md"
FAMILIES = ["attention", "sampling", "acceptance", "glue"]
ARCHITECTURES = ["sm_80", "sm_90a"]

# The kernels of a family that are matrix products, and what these are built from.
MATRIX_KERNELS = {"attention": r"(joint|mask_block)_attention", "sampling": r"calibrated_sample"}
MATRIX_INSTRUCTIONS = ["HMMA", "LDGSTS"]

# Columns: an opcode, or several that do the same.
MIX = {
    "HMMA": ["HMMA"],
    "LDSM": ["LDSM"],
    "LDGSTS": ["LDGSTS"],
    "LDG": ["LDG"],
    "STG": ["STG"],
    "LDS": ["LDS"],
    "STS": ["STS"],
    "FFMA": ["FFMA"],
    "FADD/FMUL": ["FADD", "FMUL"],
    "MUFU": ["MUFU"],
    "SHFL": ["SHFL", "REDUX"],
    "BAR": ["BAR"],
    "atomics": ["ATOM", "ATOMG", "ATOMS", "RED", "REDG"],
}
ATOMICS = MIX["atomics"]
# The kernel of golden/golden.cu that uses wgmma where there is one.
WGMMA_KERNEL = "golden_wgmma_m64n8k16"
LOCAL_MEMORY = ["LDL", "STL"]


# What a launch asks for of shared memory, by kernel: constants of common/shapes.h, added up as often as here.
# Attention has two int32_t for two sequences of the batch, and one more; the calibrator of the released drafters is of
# rank 512, eight slices.
SHARED = {
    r"joint_attention_d(\d+)_r(\d+)_s(\d+)": ({r"FLEXDRAFT_D\1_R\2_S\3_SHARED": 1}, 3 * 4),
    r"calibrated_sample_\w+_64x16": ({"FLEXDRAFT_SMALL_SHARED": 1, "FLEXDRAFT_SMALL_SLICE_SHARED": 8}, 0),
    r"calibrated_sample_\w+_128x64": ({"FLEXDRAFT_LARGE_SHARED": 1, "FLEXDRAFT_LARGE_SLICE_SHARED": 8}, 0),
    r"sample_finish_\w+": ({"FLEXDRAFT_FINISH_SHARED": 1}, 0),
    r"accept_\w+": ({"FLEXDRAFT_ACCEPT_SHARED": 1}, 0),
    r"rms_norm": ({"FLEXDRAFT_NORM_SHARED": 1}, 0),
}


class Failure(Exception):
    """A kernel source or a tool that does not work: nothing can be said about the code."""


@dataclasses.dataclass
class Kernel:
    """The machine code of one kernel for one architecture."""

    name: str
    architecture: str
    registers: int = 0
    static_shared: int = 0
    stack: int = 0
    spills: int = 0
    # Global loads that are consumed before the next one is issued.
    serial_loads: int = 0
    # Whole opcodes with modifiers, such as HMMA.16816.F32.BF16.
    instructions: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def count(self, *opcodes):
        return sum(n for full, n in self.instructions.items() if full.split(".")[0] in opcodes)


def find_nvcc():
    named = os.environ.get("NVCC")
    if named:
        return pathlib.Path(named)
    installed = sorted(CUDA.parent.glob(".cuda/lib/python3*/site-packages/nvidia/cu13/bin/nvcc"))
    found = installed[-1] if installed else shutil.which("nvcc")
    if not found:
        raise Failure("no nvcc: run cuda/install_nvcc.sh, or set NVCC")
    return pathlib.Path(found)


def run(command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failure(f"{command[0]} failed on {command[-1]}:\n{result.stdout}{result.stderr}")
    return result


def kernel_table(source):
    """The kernels that a source lists in FLEXDRAFT_KERNEL_TABLE(family, kernel, ...)."""
    code = re.sub(r"//[^\n]*", "", source)
    tables = re.findall(r"FLEXDRAFT_KERNEL_TABLE\(([^)]*)\)", code)
    if len(tables) != 1:
        raise Failure(f"{len(tables)} FLEXDRAFT_KERNEL_TABLE(...) in a file, not one")
    return [name.strip() for name in tables[0].split(",")][1:]


def parse_resources(report):
    """The kernels of ptxas's verbose report, which is all that tells spills from other local memory."""
    kernels = {}
    kernel = None
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernel = Kernel(*match.groups())
            kernels[kernel.name, kernel.architecture] = kernel
        elif kernel is None:
            continue
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line):
            stack, stores, loads = map(int, match.groups())
            # A function that was not inlined has lines of its own.
            kernel.stack += stack
            kernel.spills += stores + loads
        elif match := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernel.static_shared = int(shared[1]) if shared else 0
    return kernels


def count_instructions(kernels, disassembly):
    """Adds the instructions of `cuobjdump -sass` to `kernels`, and counts their serial loads."""
    architecture = kernel = None
    code = collections.defaultdict(list)
    for line in disassembly.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\w+)", line):
            # Device functions that were called rather than inlined count as no kernel's.
            kernel = kernels.get((match[1], architecture))
        elif kernel and (instruction := serial_loads.parse(line)):
            code[kernel.name, architecture].append(instruction)
            if instruction.name not in ("NOP", "BRA.END"):
                kernel.instructions[instruction.name] += 1
    for key, instructions in code.items():
        kernels[key].serial_loads = serial_loads.count(instructions)
    empty = [" for ".join(key) for key, kernel in kernels.items() if not kernel.instructions]
    if empty:
        raise Failure(f"no instructions were disassembled of {', '.join(empty)}")


def compile_source(nvcc, source):
    """The kernels of one source, by name and architecture."""
    with tempfile.TemporaryDirectory() as folder:
        fatbin = pathlib.Path(folder, "kernels.fatbin")
        options = ["-optf", CUDA / "nvcc.args", "-Xptxas", "-v"]
        report = run([nvcc, *options, "-o", fatbin, source]).stderr
        kernels = parse_resources(report)
        disassembly = run([nvcc.with_name("cuobjdump"), "-sass", fatbin]).stdout
    count_instructions(kernels, disassembly)
    return kernels


def committed_serial_loads(text):
    """Serial loads by kernel and architecture, of a text that this script has written."""
    committed = {}
    architecture, column = None, None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if match := re.match(r"## \w+, (\w+)", line):
            architecture, column = match[1], None
        elif cells[0] == "kernel":
            column = cells.index("serial loads") if "serial loads" in cells else None
        elif column is not None and cells[0].startswith("`"):
            committed[cells[0].strip("`"), architecture] = int(cells[column])
    return committed


def rises(kernels, committed):
    """The kernels with more serial loads than the committed table has for them."""
    return [
        f"{name} for {architecture}: {kernel.serial_loads} serial loads instead of {committed[name, architecture]}"
        for (name, architecture), kernel in kernels.items()
        if kernel.serial_loads > committed.get((name, architecture), kernel.serial_loads)
    ]


def problems(family, table, kernels):
    """Why the code of a family is refused."""
    found = []
    for architecture in ARCHITECTURES:
        compiled = {name for name, target in kernels if target == architecture}
        for name in sorted(compiled ^ set(table)):
            where = "the table but not in the code" if name in table else "the code but not in the table"
            found.append(f"{name} is in {where} for {architecture}")
    products = MATRIX_KERNELS.get(family)
    if products and not any(re.match(products, name) for name in table):
        found.append(f"no kernel of {family} is named like {products}")
    for kernel in kernels.values():
        label = f"{kernel.name} for {kernel.architecture}"
        local = kernel.count(*LOCAL_MEMORY)
        if kernel.spills or kernel.stack or local:
            found.append(
                f"{label}: {kernel.spills} bytes of spills, {kernel.stack} bytes of stack frame, "
                f"{local} accesses to local memory"
            )
        if kernel.static_shared:
            found.append(f"{label}: {kernel.static_shared} bytes of static shared memory")
        for full, count in kernel.instructions.items():
            opcode, *modifiers = full.split(".")
            if opcode in ATOMICS and any(re.match(r"(B?F16|F32|F64)", modifier) for modifier in modifiers):
                found.append(f"{label}: {count} float atomics ({full})")
        if products and re.match(products, kernel.name):
            missing = [opcode for opcode in MATRIX_INSTRUCTIONS if not kernel.count(opcode)]
            if missing:
                found.append(f"{label}: no {' and no '.join(missing)}")
    return found


def golden_problems(kernels):
    """What is wrong with the kernels of single instructions: wgmma compiled away would be recorded as missing."""
    found = []
    for architecture, expected in (("sm_80", 0), ("sm_90a", 2)):
        kernel = kernels.get((WGMMA_KERNEL, architecture))
        count = kernel.count("HGMMA") if kernel else None
        if count != expected:
            found.append(f"{WGMMA_KERNEL} ({architecture}): {count} HGMMA, not {expected}")
    return found


def shapes():
    """The constants of common/shapes.h."""
    constants = re.findall(r"^pub const (\w+): \w+ = (\d+);", SHAPES.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in constants}


def launch_shared(name, constants):
    """Bytes of dynamic shared memory that a launch of a kernel asks for."""
    for pattern, (sizes, more) in SHARED.items():
        if match := re.fullmatch(pattern, name):
            try:
                return more + sum(constants[match.expand(size)] * count for size, count in sizes.items())
            except KeyError as missing:
                raise Failure(f"{name}: no {missing} in {SHAPES}") from missing
    return 0


def table(family, kernels, constants):
    """A family's kernels as Markdown tables, one an architecture."""
    lines = []
    for architecture in ARCHITECTURES:
        # A column of an instruction that no kernel here has says nothing.
        chosen = [kernel for kernel in kernels.values() if kernel.architecture == architecture]
        mix = [name for name, opcodes in MIX.items() if any(kernel.count(*opcodes) for kernel in chosen)]
        header = ["kernel", "registers", "spills", "stack", "serial loads", "shared", "instructions", *mix]
        rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
        for kernel in sorted(chosen, key=lambda kernel: kernel.name):
            shared = launch_shared(kernel.name, constants)
            numbers = [kernel.registers, kernel.spills, kernel.stack, kernel.serial_loads, shared]
            numbers += [sum(kernel.instructions.values()), *(kernel.count(*MIX[name]) for name in mix)]
            rows.append([f"`{kernel.name}`", *map(str, numbers)])
        lines += [f"## {family}, {architecture}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += [""]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="also write the tables to this Markdown file")
    parser.add_argument("--committed", type=pathlib.Path, default=COMMITTED, help="the tables to compare with")
    parser.add_argument("--accept-rise", action="store_true", help="accept and write more serial loads than committed")
    parser.add_argument("--cuda", type=pathlib.Path, default=CUDA, help="the directory of the families")
    arguments = parser.parse_args()

    nvcc = find_nvcc()
    version = re.search(r"release [\d.]+, V([\d.]+)", run([nvcc, "--version"]).stdout)
    sources = {family: arguments.cuda / family / f"{family}.cu" for family in FAMILIES}
    sources = {family: source for family, source in sources.items() if source.exists()}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = dict(zip(sources, pool.map(lambda source: compile_source(nvcc, source), sources.values())))

    lines = [
        "# The kernels' machine code",
        "",
        f"Written by `cuda/check_device_code.py` with nvcc {version[1] if version else '?'}. Spills and stack frames "
        "are bytes a thread;",
        "shared memory, all of it dynamic, is what a launch asks for: bytes a CTA, of attention for one sequence, of the",
        "calibrator for rank 512. Serial loads are global loads that are consumed before the next one is issued",
        "(`cuda/serial_loads.py`). They and the rest count instructions in the code, not instructions executed.",
        "",
    ]
    found, risen, constants = [], [], shapes()
    committed = committed_serial_loads(arguments.committed.read_text()) if arguments.committed.exists() else {}
    for family, kernels in compiled.items():
        lines += table(family, kernels, constants)
        found += problems(family, kernel_table(sources[family].read_text()), kernels)
        if not arguments.accept_rise:
            risen += rises(kernels, committed)
    found += risen
    golden = arguments.cuda / "golden" / "golden.cu"
    if golden.exists():
        found += golden_problems(compile_source(nvcc, golden))
    text = "\n".join(lines)
    print(text)
    # Written all the same, the table would hide a rise from the next run.
    if arguments.output and not risen:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)
    for problem in found:
        print(f"refused: {problem}", file=sys.stderr)
    count = sum(map(len, compiled.values()))
    if not count:
        raise Failure(f"no kernels in {arguments.cuda}")
    print(f"{count} kernels and architectures, {len(found)} problems", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(str(failure))
