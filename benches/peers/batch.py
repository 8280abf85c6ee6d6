#!/usr/bin/env python3
"""Times decoding steps of 1 to 16 sequences on this CPU: flexdraft beside llama.cpp.

usage: batch.py MODEL.gguf... [--threads N] [--rounds N] [--output FILE.json]

Every sequence has 128 cached tokens, and a step adds one token to each and computes its logits. A round runs each program
once, in its own process, on every file; a program's time is the median over its steps, and the result is the median over the
rounds. The share of the bandwidth is the time in which the file's tensors can be read at the speed of memory, which `flexdraft bench`
measures before its steps (the fastest of five sums over 1 GiB, with the same threads), over the time of a step.

Needs gguf, numpy, llama-cpp-python and target/release/flexdraft; cpu.sh installs and builds them.
"""

import json
import os
import statistics
import subprocess
import time

import cpu
import rounds

CONTEXT = 128
BATCHES = [1, 4, 8, 16]
STEPS = 15


def llama_steps(model, threads):
    """Returns the median milliseconds of a step for each number of sequences."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
    parameters = llama_cpp.llama_context_default_params()
    most = max(BATCHES)
    parameters.n_ctx, parameters.n_seq_max = 256 * most, most
    parameters.n_batch = parameters.n_ubatch = CONTEXT
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(loaded, parameters)
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)

    def decode(rows):
        """Runs a pass over rows of a sequence and a position each."""
        batch.n_tokens = len(rows)
        for i, (sequence, position) in enumerate(rows):
            batch.token[i], batch.pos[i] = (sequence + position) * 7 % 1000, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = True
        assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_synchronize(context)

    decode([(0, position) for position in range(CONTEXT)])
    for sequence in range(1, most):
        llama_cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
    times = {sequences: [] for sequences in BATCHES}
    for step in range(STEPS + 1):
        for sequences in BATCHES:
            before = time.perf_counter()
            decode([(sequence, CONTEXT) for sequence in range(sequences)])
            if step > 0:
                times[sequences].append(1e3 * (time.perf_counter() - before))
            for sequence in range(sequences):
                llama_cpp.llama_memory_seq_rm(memory, sequence, CONTEXT, -1)
    return {"times": {sequences: statistics.median(values) for sequences, values in times.items()}}


def flexdraft_steps(model, threads, dtype):
    """Returns the median milliseconds of a step for each number of sequences, and the bytes that memory delivers per second."""
    command = [cpu.FLEXDRAFT, "bench", "--target", model, "--device", "cpu", "--threads", str(threads), "--dtype", dtype]
    command += ["--weights", "keep", "--context", str(CONTEXT), "--batch", ",".join(map(str, BATCHES))]
    command += ["--mode", "ar", "--no-probe", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    header, *steps = map(json.loads, done.stdout.splitlines())
    return {
        "times": {step["batch"]: 1e3 * step["step_seconds"] for step in steps},
        "bytes_per_second": header["ceilings"]["read_bytes_per_second"],
    }


PROGRAMS = {
    "llama.cpp": llama_steps,
    "flexdraft --dtype q8": lambda model, threads: flexdraft_steps(model, threads, "q8"),
    "flexdraft --dtype f32": lambda model, threads: flexdraft_steps(model, threads, "f32"),
}


def tensor_bytes(model):
    import gguf

    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(model).tensors)


def measure(models, threads, count):
    runs = rounds.collect(__file__, PROGRAMS, models, threads, count)
    speeds = [run["bytes_per_second"] for times in runs.values() for run in times if "bytes_per_second" in run]
    speed = statistics.median(speeds)
    steps = []
    for (model, program), found in runs.items():
        size = tensor_bytes(model)
        medians = {n: statistics.median(run["times"][str(n)] for run in found) for n in BATCHES}
        steps.append({
            "model": os.path.basename(model),
            "program": program,
            "tensor_bytes": size,
            "milliseconds_by_sequences": {n: round(median, 3) for n, median in medians.items()},
            "tokens_per_second": {n: round(1e3 * n / median, 1) for n, median in medians.items()},
            "share_of_bandwidth": {n: round(1e3 * size / speed / median, 3) for n, median in medians.items()},
        })
    return {
        **rounds.origin(threads),
        "read_bytes_per_second": round(speed),
        "context": CONTEXT,
        "rounds": count,
        "steps_of_a_round_of_llama.cpp": STEPS,
        "steps": steps,
    }


def lines(report):
    for step in report["steps"]:
        yield step["model"], step["program"], step["milliseconds_by_sequences"], step["share_of_bandwidth"]


if __name__ == "__main__":
    rounds.main(__file__, __doc__, PROGRAMS, measure, lines)
