#!/usr/bin/env python3
"""Plots the kernels' times against their floors (the least possible times) and against other libraries' times, from a
file that fold.py wrote.

    benches/gpu/plot.py benches/results/gpu-<device>.json

Writes SVGs of the measurements beside the file. gpu-<device>.svg has a panel per family and a bar per case, with the
floor at 1. gpu-<device>-peers.svg has a panel per family, a row per case, and a dot per library at the ratio of its
time to flexdraft's. Needs matplotlib (benches/gpu/requirements.txt).
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
# With these settings of matplotlib, equal numbers give byte-identical SVG files, and labels are stored as text.
matplotlib.rcParams["svg.hashsalt"] = "flexdraft"
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot  # noqa: E402

COLOURS = {"memory": "tab:blue", "math": "tab:orange"}
MARKERS = "osD^vP*X"


def label(case: dict) -> str:
    """Returns the label of a measured case: the kernel, and the fields that differ among the cases of its family."""
    shape = " ".join(f"{name} {value}" for name, value in case["shape"].items())
    return f"{case['kernel']}: {shape}"


def varying(cases: list[dict]) -> list[dict]:
    """Returns the measured cases without the fields that have the same value in all of them."""
    values = {}
    for case in cases:
        for name, value in case["shape"].items():
            values.setdefault(name, set()).add(value)
    kept = {name for name, found in values.items() if len(found) > 1}
    return [{**case, "shape": {n: v for n, v in case["shape"].items() if n in kept}} for case in cases]


def plot_floors(results: dict, svg: pathlib.Path) -> bool:
    """Plots each kernel's floor, its least possible time, as a fraction of its median time, into an SVG file; returns
    False without measurements."""
    families = {name: varying(family["cases"]) for name, family in results["kernels"].items() if family["cases"]}
    if not families:
        return False
    heights = [len(cases) for cases in families.values()]
    figure, axes = panels(heights)
    for axis, (family, cases) in zip(axes, families.items()):
        for bound, colour in COLOURS.items():
            those = [(i, case["fraction_of_floor"]) for i, case in enumerate(cases) if case["bound"] == bound]
            if not those:
                continue
            axis.barh([i for i, _ in those], [x for _, x in those], color=colour, label=f"bound by {bound}")
        finish(axis, family, [label(case) for case in cases])
        axis.set_xlim(0.0, 1.05)
    figure.supxlabel("floor / median time")
    save(figure, results, svg)
    return True


def plot_peers(results: dict, svg: pathlib.Path) -> bool:
    """Plots the times of other libraries relative to flexdraft's, into an SVG file; returns False without measurements."""
    families = {}
    for family, measured in results["peers"].items():
        compared = [line for line in measured["cases"] if "over_flexdraft" in line]
        if compared:
            # The report has all lines of a shape one after another, and the rows of the plot keep this order.
            families[family] = varying([{**line, "kernel": family} for line in compared])
    if not families:
        return False
    rows = {family: list(dict.fromkeys(map(label, lines))) for family, lines in families.items()}
    figure, axes = panels([len(cases) for cases in rows.values()])
    for axis, (family, lines) in zip(axes, families.items()):
        for i, way in enumerate(dict.fromkeys(line["way"] for line in lines)):
            those = [(rows[family].index(label(line)), line["over_flexdraft"]) for line in lines if line["way"] == way]
            axis.plot([x for _, x in those], [y for y, _ in those], MARKERS[i % len(MARKERS)], markersize=4, label=way)
        finish(axis, family, rows[family])
        axis.set_xscale("log")
    figure.supxlabel("time / flexdraft's time, of single launches in the same run")
    save(figure, results, svg)
    return True


def panels(heights: list[int]):
    figure, axes = pyplot.subplots(
        len(heights), figsize=(9, 0.22 * sum(heights) + 0.8 * len(heights)), height_ratios=heights,
        squeeze=False, layout="constrained",
    )
    return figure, axes[:, 0]


def finish(axis, family: str, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_title(family, loc="left", fontsize=9)
    axis.legend(fontsize=7, loc="lower right")


def save(figure, results: dict, svg: pathlib.Path) -> None:
    figure.suptitle(f"{results['device']}, driver {results['driver']}, {results['date'][:10]}", fontsize=10)
    figure.savefig(svg, metadata={"Date": None})
    print(svg)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = pathlib.Path(sys.argv[1])
    results = json.loads(path.read_text())
    plotted = [plot_floors(results, path.with_suffix(".svg")),
               plot_peers(results, path.with_name(path.stem + "-peers.svg"))]
    if not any(plotted):
        sys.exit(f"{path} has no case that was measured")


if __name__ == "__main__":
    main()
