#!/usr/bin/env python3
"""Tests of crossover.py with an invented, interrupted run of `flexdraft bench --json`. Needs matplotlib."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from crossover import acceptance, crossover, tokens_a_step  # noqa: E402

# The first line of the report that cli/src/bench/report.rs writes.
HEADER = {
    "model": "Tiny, random weights", "device": "cuda:0, Test GPU 80GB", "dtype": "bf16", "block_size": 16,
    "verify_lens": [3], "ceilings": {"device": "Test GPU 80GB", "copy_bytes_per_second": 3e12,
                                     "product_flops_per_second": 8e14},
}


def step(mode: str, batch: int, milliseconds: float, verify_len: int = 0, groups: int = 0) -> dict:
    return {
        "mode": mode, "context": 1024, "batch": batch, "verify_len": verify_len, "groups": groups, "steps": 7,
        "step_seconds": milliseconds / 1e3, "submit_seconds": 1e-3, "tokens_per_second": 1.0,
        "tokens_per_step": 1.0, "floor_seconds": 1e-3, "share_of_floor": 0.5, "bound_by": "memory",
    }


def run_of(batches: dict[int, tuple[float, float, float]]) -> list[dict]:
    """Returns the JSON lines of a run, from the milliseconds of an autoregressive, a sequential and a parallel step by
    batch size."""
    steps = []
    for batch, (ar, sequential, parallel) in batches.items():
        steps += [step("prefill", batch, 50.0), step("ar", batch, ar), step("sequential", batch, sequential, 3, 0)]
        steps += [step("parallel", batch, parallel, 3, 4), step("parallel", batch, 0.9 * parallel, 3, 2)]
    return steps


SKIPPED = {"mode": None, "context": 8192, "batch": 64, "verify_len": None, "groups": None, "skipped": "out of memory"}


class Crossover(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "bench.jsonl"

    def write(self, lines: list[dict], rest: str = "") -> None:
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)

    def run_script(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, HERE / "crossover.py", self.path, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def test_a_run_cut_short(self) -> None:
        steps = run_of({1: (6.0, 8.0, 7.0), 2: (6.1, 8.1, 7.4), 4: (6.2, 8.2, 8.2), 8: (6.5, 8.4, 10.0)})
        self.write([HEADER, *steps, SKIPPED], '{"mode": "par')
        done = self.run_script("--tau", "7.1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("context 1024, v = 3: sequential is faster from batch 4.0 on", done.stdout)
        svg = self.path.with_suffix(".svg").read_text()
        for text in (
            "cuda:0, Test GPU 80GB", "parallel, v = 3, 4 groups", "parallel, v = 3, 2 groups", "v = 3: 4.0",
            "computed from step times and an assumed acceptance length: 7.1, v + 1 at most",
        ):
            self.assertIn(text, svg)
        for text in ("prefill", "context 8192"):
            self.assertNotIn(text, svg)
        self.run_script("--tau", "7.1")
        self.assertEqual(self.path.with_suffix(".svg").read_text(), svg)

    def test_another_file_and_a_length_for_each(self) -> None:
        self.write([HEADER, *run_of({1: (6.0, 8.0, 7.0), 2: (6.0, 8.0, 7.5)})])
        svg = self.path.with_name("plot.svg")
        done = self.run_script("--tau", "3=2.9", "--output", str(svg))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("sequential is not faster at any batch up to 2", done.stdout)
        self.assertIn("acceptance length: 2.9 at v = 3", svg.read_text())
        self.assertNotEqual(self.run_script("--tau", "7=5.2").returncode, 0)

    def test_runs_without_a_step(self) -> None:
        for lines in ([], [HEADER], [HEADER, SKIPPED, step("prefill", 1, 5.0)]):
            self.write(lines)
            done = self.run_script("--tau", "3")
            self.assertNotEqual(done.returncode, 0)
            self.assertNotIn("Traceback", done.stderr)

    def test_where_lines_cross(self) -> None:
        # The second curve is twice as slow at batch 1 and twice as fast at batch 4, so the curves cross half way
        # between the logarithms of the batch sizes.
        self.assertAlmostEqual(crossover({1: 1.0, 4: 2.0}, {1: 2.0, 4: 1.0}), 2.0)
        self.assertEqual(crossover({1: 3.0, 2: 3.0}, {1: 1.0, 2: 1.0}), 1.0)
        self.assertIsNone(crossover({1: 1.0, 2: 1.0}, {1: 2.0, 2: 1.0}))
        self.assertIsNone(crossover({1: 1.0}, {2: 1.0}))
        # If the curves cross several times, the crossover is the last crossing, after which the second curve stays
        # faster.
        self.assertAlmostEqual(crossover({1: 2.0, 2: 1.0, 8: 2.0}, {1: 1.0, 2: 2.0, 8: 1.0}), 4.0)

    def test_no_step_commits_more_than_it_verifies(self) -> None:
        self.assertEqual([tokens_a_step("parallel", v, 7.1) for v in (3, 7, 15)], [4.0, 7.1, 7.1])
        self.assertEqual(tokens_a_step("ar", 0, acceptance("15=7.1")), 1.0)
        self.assertEqual(tokens_a_step("sequential", 15, acceptance("7=5.5,15=7.1")), 7.1)


if __name__ == "__main__":
    unittest.main()
