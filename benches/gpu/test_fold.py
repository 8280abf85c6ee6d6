#!/usr/bin/env python3
"""Tests of fold.py, summary.py and plot.py with complete, interrupted and empty reports. Plots need matplotlib."""

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent

SAME = {"device": "Test GPU 80GB, 1.2", "commit": "abc", "date": "2026-01-02T03:04:05Z"}
RUNS = [
    {"run": "glue", "status": 0, "seconds": 1.25, **SAME},
    {"run": "bench-glue", "status": 124, "seconds": 60.0, "cut": True, **SAME},
    {"run": "peers", "status": None, "seconds": 0, "skipped": "no time was left", **SAME},
]
CEILINGS = {
    "device": "Test GPU 80GB",
    "copy_bytes_per_second": 2.0e12,
    "product_flops_per_second": 5.0e14,
    "seconds_of_nothing": 1.23456e-6,
}


def case(batch: int, bound: str, fraction: float) -> dict:
    """Returns a measured case in the form in which benches/kernels/record.rs writes it as a line of JSON."""
    return {
        "kernel": "accept", "shape": {"batch": batch, "vocab": 6144}, "launches": 11, "median_us": 6.123456,
        "p10_us": 6.0, "p90_us": 7.0, "bytes": 12288, "flops": 0, "floor_us": 3.0, "bound": bound,
        "fraction_of_floor": fraction, "gigabytes_per_second": 2.0, "teraflops_per_second": 0.0,
    }


def compared(way: str, rows: int, **found) -> dict:
    """Returns a comparison in the form in which benches/peers/gpu/common.py writes it as a line of JSON."""
    return {"family": "sampling", "shape": {"rows": rows, "vocab": 151936}, "way": way, **found}


def step(batch: int, **found) -> dict:
    """Returns a step in the form in which `flexdraft bench --json` and benches/peers/step.py write it as a line of
    JSON."""
    return {"mode": "parallel", "context": 1024, "batch": batch, "verify_len": 3, "groups": 4, **found}


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
        done = self.run_script("fold.py", self.report, "--root", self.root)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads((self.results / "gpu-test-gpu-80gb.json").read_text())

    def test_a_run_without_measurements(self) -> None:
        self.write("report.jsonl", RUNS[:1])
        folded = self.folded()
        runs = [(run["run"], run["seconds"], run["commit"]) for run in folded["runs"]]
        self.assertEqual(runs, [("glue", 1.25, "abc")])
        self.assertEqual([folded[of] for of in ("kernels", "peers", "steps", "peer_steps")], [{}, {}, {}, {}])
        machine = {"device": "Test GPU 80GB", "driver": "1.2", "commit": "abc", "date": "2026-01-02T03:04:05Z"}
        self.assertEqual({key: folded[key] for key in machine}, machine)
        self.assertFalse((self.root / "tests/fixtures/ptx").exists())
        done = self.run_script("plot.py", self.results / "gpu-test-gpu-80gb.json")
        self.assertNotEqual(done.returncode, 0)

    def test_a_run_cut_short_and_its_plot(self) -> None:
        self.write("report.jsonl", RUNS)
        self.write("kernels-acceptance.jsonl", [CEILINGS, case(1, "memory", 0.4), case(4, "math", 0.9)])
        self.write("kernels-glue.jsonl", [CEILINGS, case(1, "memory", 0.5)], '{"kernel": "emb')
        folded = self.folded()
        self.assertEqual([run["status"] for run in folded["runs"]], [0, 124, None])
        self.assertEqual(folded["runs"][2]["skipped"], "no time was left")
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
        # The field `vocab` has the same value in all cases, so the plot leaves it out.
        self.assertNotIn("vocab", svg)
        self.run_script("plot.py", path)
        self.assertEqual(path.with_suffix(".svg").read_text(), svg)

    def test_steps_and_other_libraries(self) -> None:
        self.write("report.jsonl", RUNS)
        self.write("peers-sampling.jsonl", [
            {"device": "Test GPU 80GB", "torch": "2"}, compared("flexdraft", 16, median_us=10.0),
            compared("PyTorch", 16, median_us=25.12345, over_flexdraft=2.512),
            compared("flexdraft", 64, median_us=20.0), compared("PyTorch", 64, median_us=10.0, over_flexdraft=0.5),
            compared("FlashInfer", 64, failed="ModuleNotFoundError: no"),
        ])
        self.write("steps-qwen3-8b.jsonl", [
            {"model": "qwen3-8b", "verify_lens": [3]}, step(1, step_seconds=0.01, share_of_floor=0.61234),
            step(64, skipped="no memory"),
        ])
        self.write("peer-steps-qwen3-8b.jsonl", [{"peer": "pytorch"}, step(1, step_seconds=0.02, captured=True)])
        folded = self.folded()
        self.assertEqual(list(folded["peers"]), ["sampling"])
        self.assertEqual(len(folded["peers"]["sampling"]["cases"]), 5)
        self.assertEqual(folded["peers"]["sampling"]["cases"][1]["median_us"], 25.12)
        steps = folded["steps"]["qwen3-8b"]
        self.assertEqual(steps["machine"]["verify_lens"], [3])
        self.assertEqual([line.get("share_of_floor") for line in steps["steps"]], [0.6123, None])
        self.assertEqual(folded["peer_steps"]["qwen3-8b"]["steps"][0]["step_seconds"], 0.02)

        said = self.run_script("summary.py", self.report)
        self.assertEqual(said.returncode, 0, said.stderr)
        for text in (
            "parallel n=1024 v=3 g=4: b=1 10.00 61% 2.00x | b=64 -\n", "1 of 3 runs passed",
            "sampling, PyTorch: 1.12x flexdraft's time in 2 cases, 0.50 to 2.51", "FlashInfer: ModuleNotFoundError: no",
            "cut: bench-glue", "skipped: peers",
        ):
            self.assertIn(text, said.stdout)

        path = self.results / "gpu-test-gpu-80gb.json"
        done = self.run_script("plot.py", path)
        self.assertEqual(done.returncode, 0, done.stderr)
        svg = path.with_name("gpu-test-gpu-80gb-peers.svg").read_text()
        for text in ("sampling: rows 64", "PyTorch", "driver 1.2, 2026-01-02"):
            self.assertIn(text, svg)
        self.assertFalse(path.with_suffix(".svg").exists())

    def test_a_packed_report(self) -> None:
        self.write("report.jsonl", RUNS[:1])
        (self.report / "ptx.json").write_text("{}\n")
        packed = self.report.with_name("report.tgz")
        with tarfile.open(packed, "w:gz") as archive:
            archive.add(self.report, ".")
        done = self.run_script("fold.py", packed, "--root", self.root)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue((self.results / "gpu-test-gpu-80gb.json").exists())
        self.assertTrue((self.root / "tests/fixtures/ptx/test-gpu-80gb.json").exists())

    def test_a_second_report(self) -> None:
        self.write("report.jsonl", RUNS)
        self.write("kernels-glue.jsonl", [CEILINGS, case(1, "memory", 0.5)])
        self.write("kernels-acceptance.jsonl", [CEILINGS, case(1, "memory", 0.5)])
        second = self.report.with_name("second")
        shutil.copytree(self.report, second)
        later = {**SAME, "commit": "def", "date": "2026-01-02T04:00:00Z"}
        runs = [{**RUNS[1], "status": 0, **later}, {"run": "glue", "status": None, "skipped": "no time", **later}]
        (second / "report.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
        measured = [CEILINGS, case(1, "math", 0.6)]
        (second / "kernels-glue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measured))
        (second / "kernels-acceptance.jsonl").unlink()
        done = self.run_script("fold.py", self.report, second, "--root", self.root)
        self.assertEqual(done.returncode, 0, done.stderr)
        folded = json.loads((self.results / "gpu-test-gpu-80gb.json").read_text())
        self.assertEqual(folded["commit"], "def")
        found = [(run["run"], run["status"], run["commit"]) for run in folded["runs"]]
        self.assertEqual(found, [("glue", 0, "abc"), ("bench-glue", 0, "def"), ("peers", None, "abc")])
        self.assertEqual(folded["kernels"]["glue"]["cases"][0]["fraction_of_floor"], 0.6)
        self.assertEqual(len(folded["kernels"]["acceptance"]["cases"]), 1)

        (second / "report.jsonl").write_text(json.dumps({**runs[0], "device": "Other GPU, 1.2"}) + "\n")
        done = self.run_script("fold.py", self.report, second, "--root", self.root)
        self.assertIn("several devices", done.stderr)

    def test_first_launches(self) -> None:
        self.write("report.jsonl", RUNS[:1])
        run = {"launching": "embed", "grid": [1, 1, 1]}
        lines = [{"device": "Test GPU 80GB", "load_seconds": 0.123456}, {"case": "embed"}, run,
                 {"kernel": "embed", "status": "ok", "us": 12.3456}, {"case": "add"}, {"launching": "add"},
                 {"kernel": "add", "status": "failed", "error": "illegal address"}, {"case": "a later add"},
                 {"launching": "add"}, {"kernel": "add", "status": "ok", "us": 1.0}, {"launching": "gather"},
                 {"case": "another"}, run, {"kernel": "embed", "status": "ok", "us": 2.0}, {"launching": "accept"}]
        self.write("first-kernels.jsonl", lines, '{"kernel": "acc')
        found = self.folded()["launches"]
        self.assertEqual(found["machine"]["load_seconds"], 0.1235)
        never = "did not return"
        self.assertEqual(found["kernels"], {"embed": 2.0, "add": "illegal address", "gather": never, "accept": never})
        said = self.run_script("summary.py", self.report).stdout
        for text in ("1 of 4 kernels ran", "  add: illegal address", "  accept: did not return"):
            self.assertIn(text, said)

    def test_algorithms_for_products(self) -> None:
        self.write("report.jsonl", RUNS[:1])
        layer = {"model": "m", "layer": "qkv", "out_cols": 8, "in_cols": 8, "logits": False}
        entries = [{"algorithm": algorithm, "rows": rows, "seconds": [2e-5, 3e-5 + 1e-6 * algorithm], "class": of}
                   for algorithm, rows, of in ((0, [1, 1], 0), (1, [1, 1], None), (0, [2, 16], 1), (1, [2, 16], 0))]
        entries.append({"algorithm": 2, "rows": [2, 16], "seconds": None, "class": None})
        chosen = {"chosen": {"rows": [1, 85], "seconds": [2e-5, None]}}
        lines = [CEILINGS, layer, *entries, chosen, {**layer, "layer": "o"}, {"error": "no algorithm"}]
        self.write("first-products.jsonl", lines, '{"algo')
        found = self.folded()["products"]
        self.assertEqual([len(layer["algorithms"]) for layer in found["layers"]], [5, 0])
        self.assertEqual(found["machine"]["copy_bytes_per_second"], 2e12)
        said = self.run_script("summary.py", self.report).stdout
        for text in ("products of m qkv: 1 classes in all buckets\n",
                     "1-1: 2 in 1, 20-30 us | 2-16: 3 in 2, 20-30 us\n",
                     "  chosen, 1: 20 us, 85: -\n", "products of m o: no algorithm\n"):
            self.assertIn(text, said)

    def test_wgmma_beside_mma(self) -> None:
        self.write("report.jsonl", RUNS[:1])
        by_mma = ["00000001", "00000002", "00000003", "00000004"]
        other = by_mma[:3] + ["00000005"]
        cases = ["".join(by_mma + by_mma + other), "".join(by_mma + ["deadbeef"] * 8)]
        vectors = {"device": "Test GPU", "instructions": {"golden_wgmma_m64n8k16": {"output": cases}}}
        (self.report / "ptx.json").write_text(json.dumps(vectors))
        self.assertEqual(self.folded()["wgmma_words"], {"all": 8, "equal_to_mma": 7})
        said = self.run_script("summary.py", self.report).stdout
        self.assertIn("wgmma: 7 of 8 words have the bits of mma.sync\n", said)

    def test_recorded_instructions_become_a_fixture(self) -> None:
        self.write("report.jsonl", RUNS[:1])
        (self.report / "ptx.json").write_text("{}\n")
        self.folded()
        self.assertEqual((self.root / "tests/fixtures/ptx/test-gpu-80gb.json").read_text(), "{}\n")

    def test_an_empty_report(self) -> None:
        self.write("report.jsonl", [])
        self.assertNotEqual(self.run_script("fold.py", self.report, "--root", self.root).returncode, 0)

    def test_a_line_that_is_broken_in_the_middle(self) -> None:
        (self.report / "report.jsonl").write_text("{\n" + json.dumps(RUNS[0]) + "\n")
        self.assertNotEqual(self.run_script("fold.py", self.report, "--root", self.root).returncode, 0)


if __name__ == "__main__":
    unittest.main()
