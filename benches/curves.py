#!/usr/bin/env python3
"""Draws the curves of `flexdraft bench --curves`: `curves.py TABLE.csv > PLOT.svg`.

Needs only Python. The left panel has step times over candidate rows, the right panel over mask groups, where 0 groups stand
for a drafting pass. Circles are the least times of all rounds, crosses the medians: on a machine that other programs use,
the least time is nearer to the time of the step itself.
"""

import csv
import sys
from collections import defaultdict

WIDTH, HEIGHT, LEFT, TOP, GAP = 380, 260, 60, 30, 90
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"]


def ticks(most: float) -> list[float]:
    """Returns about five round numbers from 0 to `most`."""
    step = 10 ** len(str(int(most))) / 100
    while most / step > 5:
        step *= 2 if str(step).lstrip("0.").startswith(("1", "5")) else 2.5
    return [index * step for index in range(int(most / step) + 1)]


def panel(left: float, title: str, label: str, curves: dict[str, list[tuple[float, float, float]]]) -> list[str]:
    """Returns the elements of a plot whose curves have points (x, median, least)."""
    points = [point for curve in curves.values() for point in curve]
    most_x, most_y = (max(point[index] for point in points) for index in (0, 1))
    x = lambda value: left + WIDTH * value / most_x
    y = lambda value: TOP + HEIGHT * (1 - value / most_y)
    out = [f'<text x="{left}" y="{TOP - 12}" font-weight="bold">{title}</text>']
    out.append(f'<path d="M{left} {TOP}V{TOP + HEIGHT}H{left + WIDTH}" fill="none" stroke="#888"/>')
    for value in ticks(most_x):
        out.append(f'<text x="{x(value):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{value:g}</text>')
    for value in ticks(most_y):
        out.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    out.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 34}" text-anchor="middle">{label}</text>')
    for index, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        line = " ".join(f"{x(at):.1f},{y(least):.1f}" for at, _, least in curve)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        for at, median, least in curve:
            out.append(f'<circle cx="{x(at):.1f}" cy="{y(least):.1f}" r="2.5" fill="{colour}"/>')
            if median == least:
                continue
            across, down = x(at), y(median)
            out.append(
                f'<path d="M{across - 2.5:.1f} {down:.1f}h5M{across:.1f} {down - 2.5:.1f}v5" stroke="{colour}"/>'
            )
        out.append(f'<text x="{left + 12}" y="{TOP + 14 + 16 * index}" fill="{colour}">{name}</text>')
    return out


def picture(elements: list[str]) -> str:
    """Returns an SVG picture with room for two panels side by side."""
    size = f"{2 * WIDTH + LEFT + GAP + 20} {HEIGHT + TOP + 50}"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *elements,
        "</svg>",
    ])


def main() -> None:
    rows, groups = defaultdict(list), defaultdict(list)
    with open(sys.argv[1], newline="") as file:
        for line in csv.DictReader(file):
            is_rows = line["curve"] == "rows"
            at = float(line["candidates"] if is_rows else line["groups"])
            name = "without drafts" if is_rows else f"v = {line['curve'].split()[1]}"
            times = (float(line["median_ms"]), float(line["least_ms"]))
            (rows if is_rows else groups)[f"{name}, batch {line['batch']}"].append((at, *times))
    out = panel(LEFT, "Step time in ms", "candidate rows", rows)
    if groups:
        out += panel(LEFT + WIDTH + GAP, "Step time in ms", "mask groups (0: drafting pass)", groups)
    print(picture(out))


if __name__ == "__main__":
    main()
