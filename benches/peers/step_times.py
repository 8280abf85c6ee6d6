#!/usr/bin/env python3
"""Draws the reports of rows.py and batch.py: `step_times.py ROWS.json BATCH.json MODEL > PLOT.svg`.

MODEL is the name of the model in both reports, without its folder. Needs only Python.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import curves


def by_program(path: str, model: str, entries: str, times: str) -> dict[str, list[tuple[float, float, float]]]:
    """Returns each program's curve of medians in a report, whose list `entries` has the times `times`."""
    listed = json.loads(pathlib.Path(path).read_text())[entries]
    found = {
        entry["program"]: [(float(at), time, time) for at, time in entry[times].items()]
        for entry in listed
        if entry["model"] == model
    }
    if not found:
        raise SystemExit(f"{path} has no model {model}; it has {sorted({entry['model'] for entry in listed})}")
    return found


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    rows, batch, model = sys.argv[1:]
    title, right = "Step time in ms", curves.LEFT + curves.WIDTH + curves.GAP
    of_rows = by_program(rows, model, "milliseconds", "by_rows")
    of_batch = by_program(batch, model, "steps", "milliseconds_by_sequences")
    out = curves.panel(curves.LEFT, title, "rows of one sequence", of_rows)
    out += curves.panel(right, title, "sequences, one row each", of_batch)
    print(curves.picture(out))


if __name__ == "__main__":
    main()
