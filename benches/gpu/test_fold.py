#!/usr/bin/env python3
"""run.sh with stand-ins for the bundle's binaries, and fold.py and plot.py on reports that are whole, cut short or
empty. The plot needs matplotlib."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent

RUNS = [
    {"run": "glue", "status": 0, "seconds": 1.25, "device": "Test GPU 80GB, 1.2", "commit": "abc"},
    {"run": "bench-glue", "status": 124, "seconds": 60.0, "device": "Test GPU 80GB, 1.2", "commit": "abc"},
]
CEILINGS = {
    "device": "Test GPU 80GB",
    "copy_bytes_per_second": 2.0e12,
    "product_flops_per_second": 5.0e14,
    "seconds_of_nothing": 1.23456e-6,
}


def case(batch: int, bound: str, fraction: float) -> dict:
    """A line as benches/kernels/record.rs writes it (tests/kernel_floors.rs)."""
    return {
        "kernel": "accept", "shape": {"batch": batch, "vocab": 6144}, "launches": 11, "median_us": 6.123456,
        "p10_us": 6.0, "p90_us": 7.0, "bytes": 12288, "flops": 0, "floor_us": 3.0, "bound": bound,
        "fraction_of_floor": fraction, "gigabytes_per_second": 2.0, "teraflops_per_second": 0.0,
    }


class Folding(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name) / "repository"
        self.report, self.results = pathlib.Path(folder.name) / "report", self.root / "benches/results"
        self.report.mkdir()
        self.results.mkdir(parents=True)
        (self.root / "tests/fixtures").mkdir(parents=True)

    def write(self, name: str, lines: list[dict], rest: str = "") -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.report / name).write_text(text + rest)

    def run_script(self, script: str, *arguments: pathlib.Path) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, HERE / script, *arguments], capture_output=True, text=True)

    def folded(self) -> dict:
        done = self.run_script("fold.py", self.report, self.root)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads((self.results / "gpu-test-gpu-80gb.json").read_text())

    def test_a_run_without_measurements(self) -> None:
        self.write("report.jsonl", RUNS[:1])
        folded = self.folded()
        self.assertEqual(folded["runs"], [{"run": "glue", "status": 0, "seconds": 1.25}])
        self.assertEqual(folded["kernels"], {})
        self.assertFalse((self.root / "tests/fixtures/ptx").exists())
        done = self.run_script("plot.py", self.results / "gpu-test-gpu-80gb.json")
        self.assertNotEqual(done.returncode, 0)

    def test_a_run_cut_short_and_its_plot(self) -> None:
        self.write("report.jsonl", RUNS)
        self.write("kernels-acceptance.jsonl", [CEILINGS, case(1, "memory", 0.4), case(4, "math", 0.9)])
        self.write("kernels-glue.jsonl", [CEILINGS, case(1, "memory", 0.5)], '{"kernel": "emb')
        folded = self.folded()
        self.assertEqual([run["status"] for run in folded["runs"]], [0, 124])
        acceptance = folded["kernels"]["acceptance"]
        self.assertEqual(acceptance["ceilings"]["seconds_of_nothing"], 1.235e-6)
        self.assertEqual([line["median_us"] for line in acceptance["cases"]], [6.123, 6.123])
        self.assertEqual(len(folded["kernels"]["glue"]["cases"]), 1)

        path = self.results / "gpu-test-gpu-80gb.json"
        first = self.run_script("plot.py", path)
        self.assertEqual(first.returncode, 0, first.stderr)
        svg = path.with_suffix(".svg").read_text()
        for text in ("Test GPU 80GB", "accept: batch 4", "floor / median time", "bound by math"):
            self.assertIn(text, svg)
        # All have this one, so it tells nothing.
        self.assertNotIn("vocab", svg)
        self.run_script("plot.py", path)
        self.assertEqual(path.with_suffix(".svg").read_text(), svg)

    def test_recorded_instructions_become_a_fixture(self) -> None:
        self.write("report.jsonl", RUNS[:1])
        (self.report / "ptx.json").write_text("{}\n")
        self.folded()
        self.assertEqual((self.root / "tests/fixtures/ptx/test-gpu-80gb.json").read_text(), "{}\n")

    def test_an_empty_report(self) -> None:
        self.write("report.jsonl", [])
        self.assertNotEqual(self.run_script("fold.py", self.report, self.root).returncode, 0)

    def test_a_line_that_is_broken_in_the_middle(self) -> None:
        (self.report / "report.jsonl").write_text("{\n" + json.dumps(RUNS[0]) + "\n")
        self.assertNotEqual(self.run_script("fold.py", self.report, self.root).returncode, 0)


class Running(unittest.TestCase):
    """A bundle of scripts: what they are called with, what becomes of their output and status."""

    KERNELS = """family=${2#^}
family=${family%/}
[ "$1" = --bench ] && [ "$family" != glue ] || exit 3
echo '{"device": "Test GPU"}' > "$FLEXDRAFT_BENCH_RESULTS/kernels-$family.jsonl"
"""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.bundle = pathlib.Path(folder.name)
        shutil.copy(HERE / "run.sh", self.bundle)
        (self.bundle / "commit").write_text("abc\n")
        self.script("on_gpu", 'test "$FLEXDRAFT_REQUIRE_GPU" = 1 && echo "$@"')
        self.script("golden_vectors", 'echo "{}" > "$FLEXDRAFT_GOLDEN_RESULTS/ptx.json"')
        self.script("kernels", self.KERNELS)
        self.script("path/nvidia-smi", "echo Test GPU, 1.2")
        self.script("path/compute-sanitizer", 'echo "$@"')

    def script(self, name: str, body: str) -> None:
        path = self.bundle / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run_bundle(self, libraries: list[str]) -> subprocess.CompletedProcess:
        folder = self.bundle / "libraries"
        folder.mkdir()
        for name in libraries:
            (folder / name).touch()
        environment = dict(os.environ, LD_LIBRARY_PATH=str(folder))
        environment["PATH"] = f"{self.bundle / 'path'}:{environment['PATH']}"
        command = [self.bundle / "run.sh", self.bundle / "report"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def test_every_part_reports_and_one_failure_fails_the_run(self) -> None:
        done = self.run_bundle(["libcuda.so.1", "libcublasLt.so.13"])
        self.assertEqual(done.returncode, 1, done.stderr)
        report = self.bundle / "report"
        runs = [json.loads(line) for line in (report / "report.jsonl").read_text().splitlines()]
        self.assertEqual([run["run"] for run in runs if run["status"] != 0], ["bench-glue"])
        self.assertEqual(runs[-1]["status"], 0)
        self.assertTrue(all(run["device"] == "Test GPU, 1.2" and run["commit"] == "abc" for run in runs))
        self.assertTrue((report / "ptx.json").exists())
        self.assertEqual(len(list(report.glob("kernels-*.jsonl"))), 3)
        self.assertIn("--exact attention", (report / "attention.log").read_text())
        self.assertIn("racecheck", (report / "attention-racecheck.log").read_text())

    @unittest.skipIf(shutil.which("nvidia-smi"), "there is a driver")
    def test_a_missing_library_is_said_at_once(self) -> None:
        done = self.run_bundle(["libcuda.so.1"])
        self.assertEqual(done.returncode, 1)
        self.assertIn("libcublasLt.so cannot be found", done.stderr)
        self.assertFalse((self.bundle / "report/report.jsonl").exists())


if __name__ == "__main__":
    unittest.main()
