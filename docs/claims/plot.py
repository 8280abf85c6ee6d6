#!/usr/bin/env python3
"""Draws the results that gather.py collected, beside their file, and prints tables: `plot.py RESULTS.json`.

Needs matplotlib (benches/gpu/requirements.txt). A dot is one seed, a bar the median of the seeds.
"""

import json
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("svg")
# With these settings, equal numbers give an equal SVG file, whose text is stored as text and not as outlines.
matplotlib.rcParams["svg.hashsalt"] = "flexdraft"
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot  # noqa: E402

TUNED = {
    "base": "N = 4, S = 8, r = 128",
    "no-calibrator": "no calibrator",
    "whole-tail": "whole tail trained",
    "tail-1": "N = 1",
    "tail-2": "N = 2",
    "tail-3": "N = 3",
    "block-4": "S = 4",
    "block-16": "S = 16",
    "as-written": "other text",
}
# Runs and their titles that test, one by one, the choices that were made for SmolLM2's drafter.
CHOICES = {
    "base": "as above",
    "calibrator-rate-4": "calibrator's rate × 4",
    "shortlist-768": "768 of 2,048 ids",
    "steps-of-32": "480 steps of 32 anchors",
    "steps-of-128": "120 steps of 128 anchors",
}
# Runs and their titles that train a chain for the bundled drafter.
CHAINS = {
    "chain-pair": "chain of kind pair",
    "chain-hidden": "chain of kind hidden",
    "chain-pair-bonus-only": "pair, told the bonus token",
    "chain-hidden-bonus-only": "hidden, told the bonus token",
}
RULES = ["rejection", "block", "match", "independent-match"]


def summary(values: list[float]) -> str:
    """Returns the median and the extremes of the results of all seeds."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def bars(axes, rows: dict[str, list[float]]) -> None:
    """Draws one bar per row and one dot per seed."""
    names = list(rows)
    axes.barh(names, [statistics.median(values) for values in rows.values()], color="tab:blue", alpha=0.4)
    for index, values in enumerate(rows.values()):
        axes.plot(values, [index] * len(values), "o", color="black", markersize=3)
    axes.invert_yaxis()
    axes.set_xlim(left=1.0)


def save(figure, path: pathlib.Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def tuned_runs(tuned: dict, titles: dict[str, str], path: pathlib.Path, height: float) -> None:
    """Draws and prints the runs named in `titles`."""
    found = {title: list(tuned[name].values()) for name, title in titles.items() if name in tuned}
    figure, axes = pyplot.subplots(figsize=(7, height))
    bars(axes, {title: [run["tau"] for run in runs] for title, runs in found.items()})
    axes.set_xlabel("acceptance length τ on held-out transcripts")
    save(figure, path)
    print("\n| | τ | loss | seconds |\n|---|---|---|---|")
    for title, runs in found.items():
        loss = statistics.median(run["loss"] for run in runs)
        seconds = statistics.median(run["seconds"] for run in runs)
        print(f"| {title} | {summary([run['tau'] for run in runs])} | {loss:.2f} | {seconds:.0f} |")


def main() -> None:
    path = pathlib.Path(sys.argv[1])
    results = json.loads(path.read_text())
    tuned, generated = results["tuned"], results["generated"]

    tuned_runs(tuned, TUNED, path.parent / "tuned.svg", 3.6)
    tuned_runs(tuned, CHOICES, path.parent / "choices.svg", 2.4)
    tuned_runs(tuned, CHAINS, path.parent / "chains.svg", 2.2)
    if "headroom" in results:
        headroom = results["headroom"]
        print(f"without the chain {headroom['tau']:.3f}, the oracle {headroom['oracle_tau']:.3f}")

    thresholds = sorted((float(name.split("-", 1)[1]), name) for name in generated if name.startswith("threshold-"))
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    print("\n| threshold | τ | rows verified a step |\n|---|---|---|")
    points = []
    for threshold, name in thresholds:
        taus = [run["tau"] for run in generated[name].values()]
        verified = [run["rows_verified"] for run in generated[name].values()]
        points.append((statistics.median(verified), statistics.median(taus), threshold))
        axes.plot(verified, taus, "o", color="black", markersize=3)
        print(f"| {threshold} | {summary(taus)} | {summary(verified)} |")
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color="tab:blue")
    for x, y, threshold in points:
        axes.annotate(f"{threshold}", (x, y), textcoords="offset points", xytext=(4, -10))
    axes.set_xlabel("rows verified a step, the bonus token's included")
    axes.set_ylabel("acceptance length τ")
    save(figure, path.parent / "threshold.svg")

    rows = {
        rule: [run["tau"] for run in generated[f"rule-{rule}"].values()]
        for rule in RULES
        if f"rule-{rule}" in generated
    }
    figure, axes = pyplot.subplots(figsize=(7, 2.2))
    bars(axes, rows)
    axes.set_xlabel("acceptance length τ at temperature 1")
    save(figure, path.parent / "rules.svg")
    print("\n| rule | τ |\n|---|---|")
    for rule, values in rows.items():
        print(f"| {rule} | {summary(values)} |")

    print("\n| | τ, generated |\n|---|---|")
    for name in ["threshold-0.01", "parallel", "without-calibrator"]:
        if name in generated:
            print(f"| {name} | {summary([run['tau'] for run in generated[name].values()])} |")


if __name__ == "__main__":
    main()
