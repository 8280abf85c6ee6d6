#!/usr/bin/env python3
"""Copies the benchmark results of one GPU from reports into files of the repository that are named after the GPU.

    benches/gpu/fold.py REPORT... [--root ROOT_OF_THE_REPOSITORY]

A REPORT is the report.tgz that benches/gpu/run.sh writes on a machine with the GPU, or the folder of its files; the
results of a later report replace the results of an earlier one. Writes benches/results/gpu-<device>.json: every run
with its status, the result of the first launch of each kernel, the algorithms for products, and the completed
measurements of steps, kernels and other libraries; benches/gpu/plot.py plots that file. The GPU's results of single
instructions become tests/fixtures/ptx/<device>.json, which tests/golden_vectors compares the SIMT emulator's models
with."""

import argparse
import json
import pathlib
import re
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def lines(path: pathlib.Path) -> list[dict]:
    """Returns the lines of a file without an incomplete last line, which an interrupted run may leave."""
    parsed = []
    if not path.exists():
        return parsed
    text = path.read_text().splitlines()
    for number, line in enumerate(text):
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            if number + 1 < len(text):
                raise
    return parsed


def rounded(value):
    """Returns the value with four digits of every fraction, because clocks are not more accurate."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def launches(path: pathlib.Path) -> dict:
    """Returns the output of benches/kernels/first.rs: the device, and for each kernel the microseconds of its last
    launch, or the reason why there are none."""
    header, kernels, waiting = {}, {}, None
    for line in lines(path):
        if "launching" in line:
            waiting = line["launching"]
            kernels.setdefault(waiting, "did not return")
        elif "status" in line:
            failed = isinstance(kernels.get(line["kernel"]), str) and kernels[line["kernel"]] != "did not return"
            if not failed:
                kernels[line["kernel"]] = line["us"] if line["status"] == "ok" else line["error"]
            waiting = None
        elif "device" in line:
            header = line
        elif waiting:
            # The next case has begun without a time for this launch, so the launch never ended.
            kernels[waiting], waiting = "did not return", None
    if waiting:
        kernels[waiting] = "did not return"
    return {"machine": rounded(header), "kernels": rounded(kernels)} if kernels else {}


def products(path: pathlib.Path) -> dict:
    """Returns the output of benches/kernels/survey.rs: the device and its measured limits, and each linear layer's
    algorithms."""
    header, layers = {}, []
    for line in map(rounded, lines(path)):
        if "layer" in line:
            layers.append({**line, "algorithms": []})
        elif "algorithm" in line:
            layers[-1]["algorithms"].append(line)
        elif "device" in line:
            header = line
        else:
            layers[-1].update(line)
    return {"machine": header, "layers": layers} if layers else {}


# Names from tests/golden_vectors: the kernel that records the results of mma.sync and of two wgmma instructions, and
# the 32-bit word that marks results that were not written.
WGMMA, UNWRITTEN = "golden_wgmma_m64n8k16", "deadbeef"


def equal_to_mma(instructions: str | None) -> tuple[int, int]:
    """Counts the 32-bit words that wgmma wrote, and the words among them that equal mma.sync's results for the same
    operands."""
    vector = json.loads(instructions or "{}").get("instructions", {}).get(WGMMA, {"output": []})
    found = equal = 0
    for case in vector["output"]:
        words = [case[i:i + 8] for i in range(0, len(case), 8)]
        for first in range(0, len(words), 12):
            for i in range(4, 12):
                word = words[first + i]
                found += word != UNWRITTEN
                equal += word == words[first + i % 4]
    return found, equal


MEASURED = {"steps": ("machine", "steps"), "peer-steps": ("machine", "steps"), "kernels": ("ceilings", "cases"),
            "peers": ("machine", "cases")}


class Report:
    """The contents of a folder of results, which benches/gpu/run.sh wrote on a machine with a GPU."""

    def __init__(self, folder: pathlib.Path):
        self.runs = {run["run"]: run for run in lines(folder / "report.jsonl")}
        self.steps, self.peer_steps, self.kernels, self.peers = (
            families(folder, kind, *parts) for kind, parts in MEASURED.items())
        self.launches = launches(folder / "first-kernels.jsonl")
        self.products = products(folder / "first-products.jsonl")
        recorded = folder / "ptx.json"
        self.instructions = recorded.read_text() if recorded.exists() else None

    def update(self, later: "Report") -> None:
        # A skipped program has no results, so it does not replace the results of an earlier run.
        self.runs.update((name, run) for name, run in later.runs.items()
                         if name not in self.runs or "skipped" not in run)
        for kind in ("steps", "peer_steps", "kernels", "peers"):
            getattr(self, kind).update(getattr(later, kind))
        self.launches = later.launches or self.launches
        self.products = later.products or self.products
        self.instructions = later.instructions or self.instructions


def families(folder: pathlib.Path, kind: str, first: str, rest: str) -> dict:
    """Returns the first line and the other lines of each file KIND-NAME.jsonl, by NAME."""
    found = {}
    for path in sorted(folder.glob(f"{kind}-*.jsonl")):
        header, *others = [rounded(line) for line in lines(path)] or [{}]
        found[path.stem.removeprefix(f"{kind}-")] = {first: header, rest: others}
    return found


def read(path: pathlib.Path) -> Report:
    if path.is_dir():
        return Report(path)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
        return Report(pathlib.Path(folder))


def fold(report: Report, root: pathlib.Path) -> None:
    runs = list(report.runs.values())
    if not runs:
        sys.exit("the report is empty")
    devices = {run["device"] for run in runs}
    if len(devices) > 1:
        sys.exit(f"the reports are of several devices: {', '.join(sorted(devices))}")
    device, _, driver = devices.pop().partition(", ")
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = root / "benches/results" / f"gpu-{name}.json"
    last = max(runs, key=lambda run: run["date"])
    folded = {
        "device": device, "driver": driver, "date": last["date"], "commit": last["commit"],
        "runs": [{key: value for key, value in run.items() if key != "device"} for run in runs],
        "launches": report.launches, "products": report.products,
        "wgmma_words": dict(zip(("all", "equal_to_mma"), equal_to_mma(report.instructions))),
        "steps": report.steps, "peer_steps": report.peer_steps, "kernels": report.kernels, "peers": report.peers,
    }
    path.write_text(json.dumps(folded, indent=1) + "\n")
    passed = sum(run["status"] == 0 for run in runs)
    measured = sum(len(family["cases"]) for family in report.kernels.values())
    compared = sum("over_flexdraft" in line for family in report.peers.values() for line in family["cases"])
    steps = sum("step_seconds" in line for model in report.steps.values() for line in model["steps"])
    print(f"{path}: {passed} of {len(runs)} runs passed, {steps} steps and {measured} cases of kernels "
          f"measured, {compared} compared with other libraries")
    if report.instructions:
        fixture = root / "tests/fixtures/ptx" / f"{name}.json"
        fixture.parent.mkdir(exist_ok=True)
        fixture.write_text(report.instructions)
        print(fixture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", metavar="REPORT", nargs="+", type=pathlib.Path)
    parser.add_argument("--root", type=pathlib.Path, default=ROOT)
    arguments = parser.parse_args()
    first, *others = map(read, arguments.reports)
    for report in others:
        first.update(report)
    fold(first, arguments.root)


if __name__ == "__main__":
    main()
