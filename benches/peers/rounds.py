"""Runs programs in turn on models, for the scripts that time steps: rows.py and batch.py.

A round runs every program once on every model, each in its own process, so that a disturbance of the machine affects all
programs alike.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys

import cpu


def collect(script, programs, models, threads, rounds):
    """Returns, for each model and program, the results of all rounds. `script` is the file that runs one program."""
    runs = {(model, program): [] for model in models for program in programs}
    for round_ in range(rounds):
        for model, program in runs:
            command = [sys.executable, script, "--one", json.dumps([program, model, threads])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            runs[model, program].append(json.loads(done.stdout))
            print(f"round {round_ + 1}: {os.path.basename(model)}, {program}", file=sys.stderr)
    return runs


def origin(threads):
    """Returns where and when a report was measured: date, commit, machine, and the version of llama.cpp's package."""
    commit = subprocess.run(["git", "-C", cpu.HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": {
            "processor": cpu.processor(),
            "threads": threads,
            "instruction_sets": cpu.instruction_sets(),
        },
        "llama-cpp-python": cpu.metadata.version("llama-cpp-python"),
    }


def main(script, usage, programs, measure, lines):
    """Runs the command line of `script`. `measure(models, threads, rounds)` returns the report, and `lines(report)` its
    lines for the terminal."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        program, model, threads = json.loads(args.one)
        print(json.dumps(programs[program](model, threads)))
        return
    if not args.models:
        parser.error("a model is needed")
    report = measure([str(model.resolve()) for model in args.models], args.threads, args.rounds)
    for line in lines(report):
        print(*line)
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
