#!/usr/bin/env python3
"""Plots how near the kernels come to their floors, from a file that fold.py wrote.

    benches/gpu/plot.py benches/results/gpu-<device>.json

Writes an SVG beside it: a panel a family, a bar a case, the floor at 1. Needs matplotlib
(benches/gpu/requirements.txt).
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
# The same file for the same numbers, and text that stays text.
matplotlib.rcParams["svg.hashsalt"] = "flexdraft"
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot  # noqa: E402

COLOURS = {"memory": "tab:blue", "math": "tab:orange"}


def label(case: dict) -> str:
    """The kernel and what its family's cases differ in."""
    shape = " ".join(f"{name} {value}" for name, value in case["shape"].items())
    return f"{case['kernel']}: {shape}"


def varying(cases: list[dict]) -> list[dict]:
    """The cases without fields that are the same in all that have them."""
    values = {}
    for case in cases:
        for name, value in case["shape"].items():
            values.setdefault(name, set()).add(value)
    kept = {name for name, found in values.items() if len(found) > 1}
    return [{**case, "shape": {n: v for n, v in case["shape"].items() if n in kept}} for case in cases]


def plot(path: pathlib.Path) -> pathlib.Path:
    results = json.loads(path.read_text())
    families = {name: varying(family["cases"]) for name, family in results["kernels"].items() if family["cases"]}
    if not families:
        sys.exit(f"{path} has no case that was measured")
    heights = [len(cases) for cases in families.values()]
    figure, axes = pyplot.subplots(
        len(families), figsize=(9, 0.22 * sum(heights) + 0.8 * len(heights)), height_ratios=heights,
        squeeze=False, layout="constrained",
    )
    for axis, (family, cases) in zip(axes[:, 0], families.items()):
        for bound, colour in COLOURS.items():
            those = [(i, case["fraction_of_floor"]) for i, case in enumerate(cases) if case["bound"] == bound]
            if not those:
                continue
            axis.barh([i for i, _ in those], [x for _, x in those], color=colour, label=f"bound by {bound}")
        axis.set_yticks(range(len(cases)), [label(case) for case in cases], fontsize=7)
        axis.invert_yaxis()
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xlim(0.0, 1.05)
        axis.set_title(family, loc="left", fontsize=9)
        axis.legend(fontsize=7, loc="lower right")
    figure.supxlabel("floor / median time")
    figure.suptitle(results["device"], fontsize=10)
    svg = path.with_suffix(".svg")
    figure.savefig(svg, metadata={"Date": None})
    return svg


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(plot(pathlib.Path(sys.argv[1])))


if __name__ == "__main__":
    main()
