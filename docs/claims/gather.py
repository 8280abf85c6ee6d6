#!/usr/bin/env python3
"""Collects the numbers of run.sh's runs in one file: `gather.py RUNS RESULTS.json`.

Numbers of runs that are not in the folder are kept as they are in the file.
"""

import json
import pathlib
import re
import sys


def tuned(folder: pathlib.Path) -> dict:
    """Returns the last held-out evaluation of a run, and the loss and time of its steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    walks = [line for line in lines if "tau" in line]
    return {
        "tau": walks[-1]["tau"],
        "slot_acceptance": walks[-1]["slot_acceptance"],
        "curve": [[walk["anchors"], walk["tau"]] for walk in walks],
        "anchors": steps[-1]["anchors"],
        "loss": sum(step["loss"] for step in steps[-20:]) / len(steps[-20:]),
        "seconds": steps[-1]["seconds"],
    }


def generated(path: pathlib.Path) -> dict:
    """Returns the numbers of an evaluation by generating."""
    report = json.loads(path.read_text())
    steps = sum(prompt["steps"] for prompt in report["prompts"])
    return {
        "tau": report["tau"],
        "steps": steps,
        "rows_verified": 1 + sum(slot["verified"] for slot in report["slots"]) / steps,
        "calibration_error": report["calibration_error"],
        "compared": report["compared"],
    }


def main() -> None:
    folder, results = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    found: dict = json.loads(results.read_text()) if results.exists() else {"tuned": {}, "generated": {}}
    for done in sorted(folder.glob("*/done")):
        name, seed = re.fullmatch(r"(.*)-(\d+)", done.parent.name).groups()
        found["tuned"].setdefault(name, {})[seed] = tuned(done.parent)
    for path in sorted(folder.glob("*.json")):
        name, seed = re.fullmatch(r"(.*)-(\d+)", path.stem).groups()
        found["generated"].setdefault(name, {})[seed] = generated(path)
    if (path := folder / "chained" / "headroom.json").exists():
        found["headroom"] = json.loads(path.read_text())
    found = {kind: dict(sorted(runs.items())) for kind, runs in found.items()}
    results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
