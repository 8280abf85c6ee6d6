#!/usr/bin/env python3
"""Times steps of 1 to 16 rows of one sequence on this CPU, as a verification runs them, for flexdraft and llama.cpp.

usage: rows.py MODEL.gguf... [--threads N] [--rounds N] [--output FILE.json]

Every step follows 128 cached tokens, and computes the logits of all its rows. A round runs each program once, in its own
process, on every file; a program's time is the median over its steps, and the result is the median over the rounds.
quantize.py makes files of other formats.

Needs numpy, llama-cpp-python and target/release/flexdraft; cpu.sh installs and builds them.
"""

import csv
import os
import statistics
import subprocess
import time

import cpu
import rounds

CONTEXT = 128
ROWS = [1, 2, 3, 4, 5, 8, 12, 16]
STEPS = 15


def llama_steps(model, threads):
    """Returns the median milliseconds of a step for each number of rows."""
    import llama_cpp

    llama = llama_cpp.Llama(
        str(model), n_ctx=256, n_batch=CONTEXT, n_ubatch=CONTEXT, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )
    batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)

    def decode(start, count):
        batch.n_tokens = count
        for i in range(count):
            batch.token[i], batch.pos[i] = (start + i) * 7 % 1000, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = True
        assert llama_cpp.llama_decode(llama.ctx, batch) == 0
        llama_cpp.llama_synchronize(llama.ctx)

    memory = llama_cpp.llama_get_memory(llama.ctx)
    decode(0, CONTEXT)
    times = {rows: [] for rows in ROWS}
    for step in range(STEPS + 1):
        for rows in ROWS:
            before = time.perf_counter()
            decode(CONTEXT, rows)
            if step > 0:
                times[rows].append(1e3 * (time.perf_counter() - before))
            llama_cpp.llama_memory_seq_rm(memory, 0, CONTEXT, -1)
    return {rows: statistics.median(values) for rows, values in times.items()}


def flexdraft_steps(model, threads, dtype):
    """Returns the median milliseconds of a step for each number of rows."""
    command = [cpu.FLEXDRAFT, "bench", "--target", model, "--device", "cpu", "--threads", str(threads), "--dtype", dtype]
    command += ["--weights", "keep", "--context", str(CONTEXT), "--curves"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = csv.DictReader(done.stdout.splitlines())
    times = {int(line["candidates"]): float(line["median_ms"]) for line in lines if line["curve"] == "rows"}
    return {rows: times[rows] for rows in ROWS}


PROGRAMS = {
    "llama.cpp": lambda model, threads: llama_steps(model, threads),
    "flexdraft --dtype q8": lambda model, threads: flexdraft_steps(model, threads, "q8"),
    "flexdraft --dtype f32": lambda model, threads: flexdraft_steps(model, threads, "f32"),
}


def measure(models, threads, count):
    runs = rounds.collect(__file__, PROGRAMS, models, threads, count)
    medians = lambda times: {rows: round(statistics.median(run[str(rows)] for run in times), 3) for rows in ROWS}
    return {
        **rounds.origin(threads),
        "context": CONTEXT,
        "rounds": count,
        "steps_of_a_round": STEPS,
        "milliseconds": [
            {"model": os.path.basename(model), "program": program, "by_rows": medians(times)}
            for (model, program), times in runs.items()
        ],
    }


def lines(report):
    for line in report["milliseconds"]:
        yield line["model"], line["program"], line["by_rows"]


if __name__ == "__main__":
    rounds.main(__file__, __doc__, PROGRAMS, measure, lines)
