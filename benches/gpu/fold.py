#!/usr/bin/env python3
"""Folds the report of a bundle's run into benches/results, named after the device.

    benches/gpu/fold.py REPORT_DIRECTORY
"""

import json
import pathlib
import re
import sys


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    lines = (pathlib.Path(sys.argv[1]) / "report.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    if not runs:
        sys.exit("the report is empty")
    device, commit = runs[0]["device"], runs[0]["commit"]
    name = re.sub(r"[^a-z0-9]+", "-", device.split(",")[0].lower()).strip("-")
    path = pathlib.Path(__file__).parent.parent / "results" / f"gpu-{name}.json"
    kept = [{key: run[key] for key in ("run", "status", "seconds")} for run in runs]
    path.write_text(json.dumps({"device": device, "commit": commit, "runs": kept}, indent=2) + "\n")
    passed = sum(run["status"] == 0 for run in runs)
    print(f"{path}: {passed} of {len(runs)} runs passed")


if __name__ == "__main__":
    main()
