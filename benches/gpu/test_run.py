#!/usr/bin/env python3
"""Tests of run.sh with stand-ins for the test and benchmark programs: their arguments, and the report of their output
and status, also if everything is killed."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent

# Each stand-in writes the part of the original program's output that run.sh reads.
KERNEL_TESTS = """if [ "$1" = --list ]; then
  for family in attention norm sampling selection; do echo "$family::is_the_same_on_every_runtime: test"; done
  printf '%s: test\\n' captured_launches::capture on_the_emulator::floors::attention sampling::on_the_emulator::bytes
  exit
fi
test "$FLEXDRAFT_REQUIRE_GPU" = 1 && echo "$@"
"""
DEVICE_TESTS = """if [ "$1" = --list ]; then
  printf '%s: test\\n' decode_loop::modes on_a_gpu::modes products::are_the_sums
  exit
fi
test "$FLEXDRAFT_REQUIRE_GPU" = 1 && echo "$@"
"""

# A stand-in for the program `kernels` with three cases. One of them may fail or hang; the next call continues after it.
# The same for families of benchmarks.
KERNELS = """if [ "$1" = first ]; then
  for case in 0 1 2; do
    [ "$case" -ge "${2:-0}" ] || continue
    echo "{\\"case\\":\\"$case\\"}" >> "$FLEXDRAFT_BENCH_RESULTS/first-kernels.jsonl"
    [ "$case" != "$FAILS" ] || exit 1
    [ "$case" != "$HANGS" ] || sleep 60
  done
  exit
fi
[ "$1" != first-products ] || exit 0
family=${2#^}
family=${family%/}
[ "$1" = --bench ] && [ "$family" != "$FAILS" ] || exit 3
[ "$family" != "$HANGS" ] || sleep 60
echo '{"device": "Test GPU"}' > "$FLEXDRAFT_BENCH_RESULTS/kernels-$family.jsonl"
"""

COMPARE = """import pathlib, sys
assert sys.argv[1:4:2] == ["--device", "--out"], sys.argv
assert int(sys.argv[6]) <= 50, sys.argv
(pathlib.Path(sys.argv[4]) / "peers-attention.jsonl").write_text('{"device": "Test GPU"}\\n')
"""

# A stand-in that writes lines until it is killed, to the report and to a file with the expected contents of the report.
ENDLESS = """echo $$ >> "$TRUTH.pids"
for i in {1..100000}; do
  echo "{\\"case\\": $i}" >> "$FLEXDRAFT_BENCH_RESULTS/kernels-attention.jsonl"
  echo "$i" >> "$TRUTH"
  sleep 0.02
done
"""


class Running(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.bundle, self.out, self.files = (self.folder / name for name in ("bundle", "out", "out.files"))
        self.bundle.mkdir()
        for name in ("run.sh", "fold.py", "summary.py"):
            shutil.copy(HERE / name, self.bundle)
        (self.bundle / "commit").write_text("abc\n")
        self.script("kernel_tests", KERNEL_TESTS)
        self.script("device_tests", DEVICE_TESTS)
        self.script("golden_vectors", 'echo "{}" > "$FLEXDRAFT_GOLDEN_RESULTS/ptx.json"')
        self.script("kernels", KERNELS)
        self.script("flexdraft", """if [ "$1" = bench ]; then echo '{"model": "some"}'; fi; echo "$@" >&2""")
        self.script("path/nvidia-smi", "echo Test GPU, 1.2")
        self.script("path/compute-sanitizer", """echo "$@"; [ "$2" != racecheck ]""")
        (self.bundle / "demo/tiny/target").mkdir(parents=True)
        (self.bundle / "peers/gpu").mkdir(parents=True)
        (self.bundle / "peers/gpu/compare.py").write_text(COMPARE)
        (self.folder / "python").mkdir()
        (self.folder / "python/torch.py").touch()

    def script(self, name: str, body: str) -> None:
        path = self.bundle / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def environment(self, libraries=("libcuda.so.1", "libcublasLt.so.13"), **variables) -> dict:
        folder = self.folder / "libraries"
        folder.mkdir(exist_ok=True)
        for name in libraries:
            (folder / name).touch()
        environment = dict(os.environ, LD_LIBRARY_PATH=str(folder), PYTHONPATH=str(self.folder / "python"))
        environment |= {"FAILS": "", "HANGS": "", **variables}
        environment["PATH"] = f"{self.bundle / 'path'}:{environment['PATH']}"
        return environment

    def run_bundle(self, *arguments, **variables) -> subprocess.CompletedProcess:
        command = [self.bundle / "run.sh", self.out, *arguments]
        environment = self.environment(**variables)
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if done.returncode != 2 and (self.out / "report.tgz").exists():
            # REPORT_DIRECTORY holds only the archive, because tools that fetch the directory may accept only a few
            # files.
            self.assertEqual(os.listdir(self.out), ["report.tgz"])
            self.report = self.unpacked()
            # The archive contains the same files as REPORT_DIRECTORY.files.
            self.assertEqual(contents(self.report), contents(self.files))
            lines = (self.report / "report.jsonl").read_text().splitlines()
            self.runs = {run["run"]: run for run in map(json.loads, lines)}
            self.assertEqual(len(self.runs), len(lines))
        return done

    def unpacked(self) -> pathlib.Path:
        report = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        with tarfile.open(self.out / "report.tgz") as archive:
            archive.extractall(report, filter="data")
        return report

    def test_every_part_reports(self) -> None:
        everything = "first,correct,steps,kernels,peers,sanitizers"
        done = self.run_bundle(FLEXDRAFT_PARTS=everything)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        runs, report = self.runs, self.report
        for run in runs.values():
            self.assertEqual((run["device"], run["commit"], len(run["date"])), ("Test GPU, 1.2", "abc", 20))
        passed = ["instructions", "first-kernels", "first-products", "captured_launches-capture",
                  "norm-is_the_same_on_every_runtime", "on_a_gpu-modes", "products-are_the_sums", "decode-greedy", "decode-sampled", "steps-qwen3-8b", "steps-smollm2-135m", "bench-acceptance", "peers",
                  "selection-initcheck"]
        self.assertEqual({runs[name]["status"] for name in passed}, {0})
        # Tests that need the emulator are not run on a GPU.
        self.assertFalse([name for name in runs if "emulator" in name or name.startswith("decode_loop")])
        # run.sh skips PyTorch's steps if the bundle has no step.py, as older bundles have none.
        self.assertEqual(runs["peer-steps-qwen3-8b"]["skipped"], "the bundle has no step.py")
        # racecheck's findings are in the report, but do not fail the run.
        self.assertTrue(runs["norm-racecheck"]["advisory"] and runs["norm-racecheck"]["status"] != 0)
        self.assertTrue((report / "ptx.json").exists() and (report / "peers-attention.jsonl").exists())
        self.assertEqual(len(list(report.glob("kernels-*.jsonl"))), 5)
        self.assertIn("--exact captured_launches::capture", (report / "captured_launches-capture.log").read_text())
        self.assertIn("--rule match", (report / "decode-sampled.log").read_text())
        self.assertIn("some", (report / "steps-qwen3-8b.jsonl").read_text())
        asked = "--synthetic qwen3-8b --mode ar,parallel --batch 1,16 --context 1024 --verify-len 4 --groups all --json"
        self.assertIn(asked, (report / "steps-qwen3-8b.log").read_text())
        self.assertIn("attention::is_the_same", (report / "attention-memcheck.log").read_text())
        self.assertFalse((report / "criterion").exists())
        # The end of run.sh's output names the advisory findings.
        self.assertIn("advisory: ", done.stdout[-400:])
        folded = subprocess.run([sys.executable, HERE / "summary.py", report], capture_output=True, text=True)
        self.assertTrue(done.stdout.endswith(folded.stdout))

    def test_two_runs_have_all_parts(self) -> None:
        begun = []
        for number in "12":
            done = self.run_bundle(number)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            begun.append([line.split()[1].strip(",") for line in done.stdout.splitlines() if line.startswith("==")])
            shutil.rmtree(self.files)
        self.assertEqual(begun, [["first", "correct", "steps"], ["kernels", "peers", "sanitizers"]])
        done = self.run_bundle("3")
        self.assertEqual((done.returncode, done.stderr), (2, "unknown run 3; there are runs 1 and 2\n"))

    def test_one_failure_fails_the_whole_and_stops_nothing(self) -> None:
        done = self.run_bundle(FLEXDRAFT_PARTS="kernels", FAILS="sampling")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual([name for name, run in self.runs.items() if run["status"] != 0], ["bench-sampling"])
        self.assertEqual(len(self.runs), 5)

    def test_steps_without_row_invariant_products_are_timed_with_any(self) -> None:
        self.script("flexdraft", """[[ "$*" == *"--products any"* ]] && echo '{"model": "some"}'""")
        done = self.run_bundle(FLEXDRAFT_PARTS="steps")
        self.assertEqual(done.returncode, 1, done.stderr)
        found = {name: run["status"] for name, run in self.runs.items()}
        models = ["steps-smollm2-135m", "steps-qwen3-8b"]
        self.assertEqual(found, {**dict.fromkeys(models, 1), **{f"{model}-any-products": 0 for model in models}})
        self.assertIn("some", (self.report / "steps-qwen3-8b-any-products.jsonl").read_text())

    def test_kernels_after_one_that_fails_are_launched_by_another_call(self) -> None:
        done = self.run_bundle(FLEXDRAFT_PARTS="first", FAILS="1")
        self.assertEqual(done.returncode, 1, done.stderr)
        calls = {name: run["status"] for name, run in self.runs.items() if name.startswith("first-kernels")}
        self.assertEqual(calls, {"first-kernels": 1, "first-kernels-from-2": 0})
        lines = (self.report / "first-kernels.jsonl").read_text().splitlines()
        self.assertEqual([json.loads(line)["case"] for line in lines], ["0", "1", "2"])

    def test_a_first_program_that_says_nothing_is_not_called_for_ever(self) -> None:
        self.script("kernels", "exit 1")
        done = self.run_bundle(FLEXDRAFT_PARTS="first")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(set(self.runs), {"instructions", "first-kernels", "first-products"})

    def test_the_deadline_cuts_and_skips(self) -> None:
        done = self.run_bundle(FLEXDRAFT_PARTS="kernels,peers,sanitizers", FLEXDRAFT_SECONDS="13", HANGS="sampling")
        self.assertEqual(done.returncode, 0, done.stderr)
        runs = self.runs
        self.assertEqual(runs["bench-attention"]["status"], 0)
        self.assertTrue(runs["bench-sampling"]["cut"])
        for name in ("bench-glue", "peers", "norm-memcheck"):
            self.assertEqual((runs[name]["status"], runs[name]["skipped"]), (None, "no time was left"))

    def test_what_is_not_there_is_skipped(self) -> None:
        (self.folder / "python/torch.py").unlink()
        shutil.rmtree(self.bundle / "demo")
        done = self.run_bundle(FLEXDRAFT_PARTS="correct,peers")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.runs["peers"].get("skipped"), "there is no PyTorch")
        self.assertEqual(self.runs["decode-greedy"]["skipped"], "demo/tiny is not here")

    def test_a_rehearsal_needs_no_gpu(self) -> None:
        for program, test in ("kernel_tests", "norm::rows"), ("device_tests", "products::sums"):
            self.script(program, f"[ $1 != --list ] || {{ echo '{test}: test'; exit; }}; [ -z $FLEXDRAFT_REQUIRE_GPU ]")
        done = self.run_bundle(libraries=[], FLEXDRAFT_REHEARSE="1")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual({run["device"] for run in self.runs.values()}, {"no GPU, 0"})
        self.assertIn("--device cpu", (self.report / "steps-qwen3-8b.log").read_text())

    def test_an_unknown_part(self) -> None:
        done = self.run_bundle(FLEXDRAFT_PARTS="kernels,others")
        self.assertEqual((done.returncode, done.stderr), (2, "unknown part others; the head of this script lists the parts\n"))

    @unittest.skipIf(shutil.which("nvidia-smi"), "there is a toolkit")
    def test_cublas_may_be_somewhere_else(self) -> None:
        done = self.run_bundle(libraries=["libcuda.so.1"], FLEXDRAFT_PARTS="kernels")
        self.assertEqual(done.returncode, 0)
        self.assertIn("libcublasLt.so was not found", done.stderr)

    @unittest.skipIf(shutil.which("nvidia-smi"), "there is a driver")
    def test_a_missing_driver_is_said_at_once(self) -> None:
        done = self.run_bundle(libraries=["libcublasLt.so.13"])
        self.assertEqual(done.returncode, 1)
        self.assertIn("libcuda.so cannot be found", done.stderr)
        self.assertFalse((self.out / "report.tgz").exists())

    def begin(self) -> subprocess.Popen:
        """Runs a bundle whose first family of benchmarks writes lines endlessly, until some of the lines are packed."""
        self.script("kernels", ENDLESS)
        environment = self.environment(FLEXDRAFT_PARTS="kernels", TRUTH=str(self.folder / "truth"))
        command = [self.bundle / "run.sh", self.out]
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
        self.addCleanup(lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
        # The lines are packed while their program still runs.
        while not ((self.out / "report.tgz").exists() and "kernels-attention.jsonl" in contents(self.unpacked())):
            self.assertIsNone(process.poll())
            time.sleep(0.05)
        return process

    def test_what_was_known_survives_a_kill_at_any_time(self) -> None:
        for seed in range(4):
            with self.subTest(seed=seed):
                process = self.begin()
                time.sleep(random.Random(seed).uniform(0, 1.5))
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if shutil.which("setpriv"):
                    pids = (self.folder / "truth.pids").read_text().split()
                    give_up = time.monotonic() + 60
                    while any(map(is_running, pids)):
                        self.assertLess(time.monotonic(), give_up, "a program has outlived the script")
                        time.sleep(0.01)
                # The report's files have every line that the program wrote; the archive is complete, and has the first
                # of these lines.
                known = (self.folder / "truth").read_text().split()
                found = (self.files / "kernels-attention.jsonl").read_text()
                self.assertGreaterEqual(found.count("\n"), len(known))
                packed = (self.unpacked() / "kernels-attention.jsonl").read_text()
                self.assertTrue(packed and found.startswith(packed))
                for path in (self.out, self.files, self.folder / "truth", self.folder / "truth.pids"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def test_a_run_that_is_told_to_end_packs_everything(self) -> None:
        process = self.begin()
        process.terminate()
        self.assertEqual(process.wait(), 143)
        self.assertEqual(contents(self.unpacked()), contents(self.files))
        self.assertEqual(os.listdir(self.out), ["report.tgz"])

    def test_a_report_is_never_written_over_another(self) -> None:
        for number in range(2):
            command = [self.bundle / "run.sh", self.out]
            environment = self.environment(FLEXDRAFT_PARTS="kernels")
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
        again = self.folder / "out.files.2"
        self.assertEqual(set(contents(self.files)), set(contents(again)))
        self.assertEqual(contents(self.unpacked()), contents(again))


def contents(folder: pathlib.Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def is_running(pid: str) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    unittest.main()
