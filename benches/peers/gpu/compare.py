#!/usr/bin/env python3
"""Compares times of flexdraft's kernels, PyTorch, FlashInfer and FlashAttention on the same tensors, in one process.

    benches/peers/gpu/compare.py [--out DIRECTORY] [--seconds N] [--only FAMILY,...] [--device cuda|cpu]

Needs PyTorch and the library of ffi (`cargo build --release -p flexdraft-ffi`, with nvcc). Other
libraries that are not installed are reported and skipped. Every result is compared with a reference in f32 before it is
timed. Lines of JSON go to peers-FAMILY.jsonl, the most important shapes first. No measurement begins after N seconds.
On the CPU, small shapes run on the SIMT emulator: a test of this comparison, not a measurement.
"""

import argparse
import sys
import time

import torch

import acceptance
import attention
import sampling
from common import Comparison, Record, Timer
from ours import Ours

FAMILIES = {"attention": attention, "sampling": sampling, "acceptance": acceptance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=".")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--only", default=",".join(FAMILIES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    families = arguments.only.split(",")
    unknown = [family for family in families if family not in FAMILIES]
    if unknown:
        parser.error(f"there is no family {unknown[0]}")

    device, start = arguments.device, time.monotonic()
    torch.set_grad_enabled(False)
    ours, timer, failed = Ours(device), Timer(device), 0
    with torch.cuda.stream(torch.cuda.Stream() if device == "cuda" else None):
        for i, family in enumerate(families):
            # If a kernel family needs less than its share of the time, the later families may use the remainder.
            share = arguments.seconds * (i + 1) / len(families)
            record = Record(arguments.out, family, device)
            comparison = Comparison(record, timer, start + share)
            FAMILIES[family].run(comparison, ours, device, small=device == "cpu")
            failed += comparison.wrong
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
