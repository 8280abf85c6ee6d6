#!/usr/bin/env python3
"""Prints a summary of the results of run.sh on a GPU: first the failures, then the numbers.

    benches/gpu/summary.py REPORT
"""

import math
import pathlib
import sys

from fold import Report, equal_to_mma


def runs(report: Report):
    counted = {"passed": 0, "failed": [], "advisory": [], "cut": [], "skipped": []}
    for run in report.runs.values():
        if run["status"] == 0:
            counted["passed"] += 1
        else:
            kinds = ("advisory", "cut", "skipped")
            counted[next((kind for kind in kinds if kind in run), "failed")].append(run["run"])
    yield f"{counted.pop('passed')} of {len(report.runs)} runs passed"
    for kind, names in counted.items():
        if names:
            yield f"  {kind}: {' '.join(names)}"


def first(report: Report):
    kernels = report.launches.get("kernels", {})
    if kernels:
        failed = {name: why for name, why in kernels.items() if isinstance(why, str)}
        yield f"{len(kernels) - len(failed)} of {len(kernels)} kernels ran"
        for name, why in failed.items():
            yield f"  {name}: {why[:150]}"
    words, equal = equal_to_mma(report.instructions)
    if words:
        yield f"wgmma: {equal} of {words} words have the bits of mma.sync"


def products(report: Report):
    """Yields, for each layer and range of row counts, the number of algorithms, the number of classes of algorithms
    with equal bits, and the fastest algorithm's microseconds at the first and last row count of the range."""
    for layer in report.products.get("layers", []):
        buckets, everywhere = {}, None
        for found in layer["algorithms"]:
            buckets.setdefault(tuple(found["rows"]), []).append(found)
        cells = []
        for rows, algorithms in sorted(buckets.items()):
            classes = {found["class"] for found in algorithms} - {None}
            everywhere = classes if everywhere is None else everywhere & classes
            # Algorithms that the survey found after its time limit have no times.
            timed = [found["seconds"] for found in algorithms if found["seconds"]]
            best = [f"{1e6 * min(times):.3g}" for times in zip(*timed)]
            cells.append(f"{rows[0]}-{rows[1]}: {len(algorithms)} in {len(classes)}, {'-'.join(best)} us")
        same = f"{len(everywhere or ())} classes in all buckets"
        yield f"products of {layer['model']} {layer['layer']}: {layer.get('error', same)}"
        yield f"  {' | '.join(cells)}"
        if "chosen" in layer:
            chosen = [f"{rows}: {1e6 * seconds:.3g} us" if seconds else f"{rows}: -"
                      for rows, seconds in zip(layer["chosen"]["rows"], layer["chosen"]["seconds"])]
            yield f"  chosen, {', '.join(chosen)}"


def steps(report: Report):
    """Yields, for each model and step, flexdraft's time, its ratio to the floor (the least possible time), and its ratio
    to the time of PyTorch's step in a CUDA graph."""
    for model, measured in report.steps.items():
        peers = {}
        for line in report.peer_steps.get(model, {}).get("steps", []):
            if "step_seconds" in line and line.get("captured"):
                peers[key(line)] = line["step_seconds"]
        rows = {}
        for line in measured["steps"]:
            cell = "-"
            if "step_seconds" in line:
                peer = peers.get(key(line))
                ratio = f" {peer / line['step_seconds']:.2f}x" if peer else ""
                cell = f"{1e3 * line['step_seconds']:.2f} {line['share_of_floor']:.0%}{ratio}"
            rows.setdefault(name(line), []).append(f"b={line['batch']} {cell}")
        if rows:
            name_of = model.replace("-any-products", " by any products, not lossless")
            yield f"steps of {name_of}: ms, share of the floor, PyTorch's graph over it"
        for row, cells in rows.items():
            yield f"  {row}: {' | '.join(cells)}"


def key(step: dict) -> tuple:
    return tuple(step.get(field) for field in ("mode", "context", "batch", "verify_len", "groups"))


def name(step: dict) -> str:
    return f"{step.get('mode')} n={step['context']} v={step.get('verify_len')} g={step.get('groups')}"


def median(numbers: list[float]) -> float:
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def kernels(report: Report):
    for family, measured in report.kernels.items():
        shares = {}
        for case in measured["cases"]:
            shares.setdefault(case["kernel"], []).append(case["fraction_of_floor"])
        for kernel, of in shares.items():
            yield (f"{family}, {kernel}: {median(of):.0%} of the floor in the median of {len(of)} cases, "
                   f"{min(of):.0%} to {max(of):.0%}")


def peers(report: Report):
    """Yields for each other implementation the ratio of its time to flexdraft's."""
    for family, measured in report.peers.items():
        ratios, failed = {}, {}
        for line in measured["cases"]:
            if "over_flexdraft" in line:
                ratios.setdefault(line["way"], []).append(line["over_flexdraft"])
            elif "failed" in line:
                failed[line["way"]] = line["failed"]
        for way, of in ratios.items():
            mean = math.exp(sum(map(math.log, of)) / len(of))
            yield f"{family}, {way}: {mean:.2f}x flexdraft's time in {len(of)} cases, {min(of):.2f} to {max(of):.2f}"
        for way, why in failed.items():
            yield f"{family}, {way}: {why[:150]}"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    report = Report(pathlib.Path(sys.argv[1]))
    for part in (first, products, steps, kernels, peers, runs):
        for line in part(report):
            print(line)


if __name__ == "__main__":
    main()
