#!/usr/bin/env python3
"""Folds the report of a bundle's run into the repository, in files named after the device.

    benches/gpu/fold.py REPORT_DIRECTORY [ROOT_OF_THE_REPOSITORY]

Writes benches/results/gpu-<device>.json: every run with its status, and what the kernels' benchmark measured, as
far as it came; benches/gpu/plot.py makes a plot of that file. What the GPU made of single instructions becomes
tests/fixtures/ptx/<device>.json, which tests/golden_vectors compares the SIMT host's models with.
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def lines(path: pathlib.Path) -> list[dict]:
    """The lines of a file that a run may have been cut short in: a last one that is not whole is left out."""
    parsed = []
    text = path.read_text().splitlines()
    for number, line in enumerate(text):
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            if number + 1 < len(text):
                raise
    return parsed


def rounded(value):
    """Four digits of every fraction: no clock gives more."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def kernels(report: pathlib.Path) -> dict:
    """What was measured of each family, the ceilings first."""
    families = {}
    for path in sorted(report.glob("kernels-*.jsonl")):
        ceilings, *cases = [rounded(line) for line in lines(path)] or [{}]
        families[path.stem.removeprefix("kernels-")] = {"ceilings": ceilings, "cases": cases}
    return families


def fold(report: pathlib.Path, root: pathlib.Path) -> None:
    runs = lines(report / "report.jsonl")
    if not runs:
        sys.exit("the report is empty")
    device, commit = runs[0]["device"], runs[0]["commit"]
    name = re.sub(r"[^a-z0-9]+", "-", device.split(",")[0].lower()).strip("-")
    path = root / "benches/results" / f"gpu-{name}.json"
    kept = [{key: run[key] for key in ("run", "status", "seconds")} for run in runs]
    folded = {"device": device, "commit": commit, "runs": kept, "kernels": kernels(report)}
    path.write_text(json.dumps(folded, indent=1) + "\n")
    passed = sum(run["status"] == 0 for run in runs)
    measured = sum(len(family["cases"]) for family in folded["kernels"].values())
    print(f"{path}: {passed} of {len(runs)} runs passed, {measured} cases measured")

    recorded = report / "ptx.json"
    if recorded.exists():
        fixture = root / "tests/fixtures/ptx" / f"{name}.json"
        fixture.parent.mkdir(exist_ok=True)
        fixture.write_text(recorded.read_text())
        print(fixture)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    fold(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]) if len(sys.argv) == 3 else ROOT)


if __name__ == "__main__":
    main()
