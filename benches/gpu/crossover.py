#!/usr/bin/env python3
"""Plots the step times of `flexdraft bench --json` over the batch size, and the batch size from which on sequential
drafting is faster than parallel drafting.

    benches/gpu/crossover.py BENCH.jsonl --tau 7.1 [--output PLOT.svg]
    benches/gpu/crossover.py BENCH.jsonl --tau 3=3.4,7=5.2,15=7.1

Each row of the plot is a context: the time of a step on the left, the tokens per second that follow from it on the
right. --tau gives the acceptance length, the tokens that a step with drafts commits on average: one number for all
verify lengths v (a step commits at most v + 1), or one for each. Needs matplotlib (benches/gpu/requirements.txt).
Without --output the SVG is written next to the input file. The crossovers are also printed.
"""

import argparse
import math
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
# With these settings of matplotlib, equal numbers give byte-identical SVG files, and labels are stored as text.
matplotlib.rcParams["svg.hashsalt"] = "flexdraft"
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot  # noqa: E402

from fold import lines  # noqa: E402

# The mode, verify length and number of mask groups of a curve, whose steps differ only in their batch size.
Curve = tuple[str, int, int]


def acceptance(text: str) -> dict[int, float] | float:
    """Parses the acceptance length τ from the command line: one number for all verify lengths, as `7.1`, or one per
    verify length, as `3=3.4,15=7.1`."""
    if "=" not in text:
        return float(text)
    return {int(v): float(tau) for v, tau in (entry.split("=") for entry in text.split(","))}


def tokens_a_step(mode: str, verify_len: int, tau: dict[int, float] | float) -> float:
    if mode == "ar":
        return 1.0
    if isinstance(tau, dict):
        if verify_len not in tau:
            sys.exit(f"--tau names no acceptance length for v = {verify_len}")
        tau = tau[verify_len]
    return min(tau, verify_len + 1.0)


def curves(steps: list[dict], context: int) -> dict[Curve, dict[int, float]]:
    """Returns the measured seconds of a step by batch size, for each mode, verify length and number of mask groups: of
    the fastest way to launch its kernels, if several were timed."""
    found = {}
    for step in steps:
        if step["context"] == context and step["mode"] in ("ar", "sequential", "parallel"):
            curve = (step["mode"], step["verify_len"], step["groups"])
            seconds = found.setdefault(curve, {})
            seconds[step["batch"]] = min(step["step_seconds"], seconds.get(step["batch"], math.inf))
    return found


def crossover(first: dict[int, float], second: dict[int, float]) -> float | None:
    """Returns the batch size from which on the second curve is faster, interpolated linearly between the logarithms of
    the measurements: the smallest batch size if the second curve is always faster, None if it is not faster at the
    largest."""
    batches = sorted(first.keys() & second.keys())
    lead = [math.log(first[batch] / second[batch]) for batch in batches]
    if not batches or lead[-1] <= 0.0:
        return None
    behind = [i for i, lead in enumerate(lead) if lead <= 0.0]
    if not behind:
        return float(batches[0])
    i = behind[-1]
    share = -lead[i] / (lead[i + 1] - lead[i])
    return batches[i] * (batches[i + 1] / batches[i]) ** share


def crossovers(found: dict[Curve, dict[int, float]]) -> dict[int, float | None]:
    """Returns, for each verify length, the batch size at which sequential drafting overtakes parallel drafting with all
    mask groups."""
    lens = {v for mode, v, _ in found if mode == "sequential"}
    pairs = {v: (found.get(("parallel", v, v + 1)), found[("sequential", v, 0)]) for v in sorted(lens)}
    return {v: crossover(*pair) for v, pair in pairs.items() if pair[0]}


def said(context: int, verify_len: int, found: dict[Curve, dict[int, float]], batch: float | None) -> str:
    both = sorted(found[("parallel", verify_len, verify_len + 1)].keys() & found[("sequential", verify_len, 0)].keys())
    where = f"context {context}, v = {verify_len}: sequential"
    if batch is None:
        return f"{where} is not faster at any batch up to {both[-1]}" if both else f"{where}: nothing to compare"
    if batch == both[0]:
        return f"{where} is faster at every batch from {both[0]} on"
    return f"{where} is faster from batch {batch:.1f} on"


def label(curve: Curve) -> str:
    mode, verify_len, groups = curve
    return {
        "ar": "ar",
        "sequential": f"sequential, v = {verify_len}",
        "parallel": f"parallel, v = {verify_len}, {groups} groups",
    }[mode]


def style(curve: Curve, lens: list[int]) -> dict:
    """Returns the style of a plotted curve: the verify length determines the colour, the mode the dashes."""
    mode, verify_len, groups = curve
    if mode == "ar":
        return {"color": "black", "linestyle": "-", "marker": "x"}
    line = "--" if mode == "sequential" else "-" if groups == verify_len + 1 else ":"
    return {"color": f"C{lens.index(verify_len)}", "linestyle": line, "marker": "s" if mode == "sequential" else "o"}


def plot(path: pathlib.Path, tau: dict[int, float] | float, svg: pathlib.Path) -> None:
    header, *cases = lines(path) or sys.exit(f"{path} is empty")
    steps = [case for case in cases if "step_seconds" in case and case["mode"] != "prefill"]
    if not steps:
        sys.exit(f"{path} has no step that was measured")
    contexts = sorted({step["context"] for step in steps})
    lens = sorted({step["verify_len"] for step in steps if step["mode"] != "ar"})
    figure, axes = pyplot.subplots(
        len(contexts), 2, figsize=(11, 4.2 * len(contexts)), squeeze=False, layout="constrained",
    )
    for (times, rates), context in zip(axes, contexts):
        found = curves(steps, context)
        for curve, seconds in sorted(found.items()):
            batches = sorted(seconds)
            tokens = tokens_a_step(curve[0], curve[1], tau)
            shape = {"markersize": 3, "linewidth": 1, **style(curve, lens)}
            times.plot(batches, [1e3 * seconds[b] for b in batches], label=label(curve), **shape)
            rates.plot(batches, [b * tokens / seconds[b] for b in batches], **shape)
        for verify_len, batch in crossovers(found).items():
            print(said(context, verify_len, found, batch))
            if batch is None:
                continue
            colour = f"C{lens.index(verify_len)}"
            for axis in (times, rates):
                axis.axvline(batch, color=colour, linewidth=0.8, alpha=0.6)
            times.annotate(
                f"v = {verify_len}: {batch:.1f}", (batch, 1.0), xycoords=("data", "axes fraction"), color=colour,
                fontsize=7, rotation=90, verticalalignment="top", horizontalalignment="right",
            )
        for axis, name in ((times, "step, ms"), (rates, "tokens a second, computed")):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            ticks = sorted({step["batch"] for step in steps})
            axis.set_xticks(ticks, [str(batch) for batch in ticks])
            axis.set_title(f"context {context}: {name}", loc="left", fontsize=9)
        times.legend(fontsize=6)
    figure.supxlabel("batch; a vertical line is where sequential overtakes parallel with all groups", fontsize=9)
    length = ", ".join(f"{t} at v = {v}" for v, t in tau.items()) if isinstance(tau, dict) else f"{tau}, v + 1 at most"
    figure.suptitle(
        f"{header['model']} on {header['device']}, {header['dtype']}\n"
        f"Throughput is computed from step times and an assumed acceptance length: {length}", fontsize=10,
    )
    figure.savefig(svg, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=pathlib.Path)
    parser.add_argument("--tau", type=acceptance, required=True)
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    svg = args.output or args.bench.with_suffix(".svg")
    plot(args.bench, args.tau, svg)
    print(svg)


if __name__ == "__main__":
    main()
