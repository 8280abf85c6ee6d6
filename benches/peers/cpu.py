#!/usr/bin/env python3
"""Times autoregressive decoding and prefill of one model on this CPU: flexdraft, llama.cpp, transformers.

usage: cpu.py MODEL.gguf [--threads N] [--rounds N] [--peers NAME] [--random] [--output FILE.json]
       cpu.py --table FILE.json

With --peers, only the programs run whose names contain NAME. Needs the packages of requirements.txt that these use, and
target/release/flexdraft; cpu.sh installs and builds them. Every peer reads the same prompt of 512 token ids in one pass, then
decodes 128 tokens greedily, one at a time, with the same number of threads. A round runs each peer once in its own process, so
that disturbances of the machine affect all peers alike. The result is the median over the rounds. The Python peers run twice in
their process, and the second run counts. The report counts the first tokens in which a peer agrees with the first peer. With
--random, for a model of random_model.py, the report leaves this count out, because the model's tokens say nothing.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata

PROMPT_TOKENS = 512
NEW_TOKENS = 128
HERE = pathlib.Path(__file__).resolve().parent
FLEXDRAFT = HERE.parents[1] / "target" / "release" / "flexdraft"

# The compared programs, with the types in which they hold weights and activations.
PEERS = {
    "flexdraft": "weights bf16, activations f32",
    "flexdraft --dtype bf16": "weights bf16, activations bf16",
    "flexdraft, as the file is": "weights as the file is, activations f32",
    "flexdraft --dtype q8, as the file is": "weights as the file is, activations of 8 bits",
    "llama.cpp, bf16": "weights bf16",
    "llama.cpp, as the file is": "weights as the file is",
    "transformers, float32": "weights f32, activations f32",
    "transformers, bfloat16": "weights bf16, activations bf16",
}


def prompt_ids(vocabulary):
    """Returns prompt token ids by a linear congruence; the cost of a pass does not depend on the ids."""
    state, ids = 1, []
    for _ in range(PROMPT_TOKENS):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        ids.append((state >> 33) % vocabulary)
    return ids


def timed(ids, read, decode):
    """Returns the seconds that the prompt took, and the seconds that the tokens after the first took, in the second of
    two runs."""
    for _ in range(2):
        start = time.perf_counter()
        token = read(ids)
        first = time.perf_counter()
        tokens = [token]
        while len(tokens) < NEW_TOKENS:
            tokens.append(decode(tokens[-1]))
        last = time.perf_counter()
    return {"prefill_seconds": first - start, "decode_seconds": last - first, "tokens": tokens}


def run_flexdraft(model, ids, threads, dtype, weights):
    command = [FLEXDRAFT, "generate", "--target", model, "--mode", "ar", "--json", "--ignore-eos"]
    command += ["--prompt-ids", ",".join(map(str, ids)), "--max-new-tokens", str(NEW_TOKENS)]
    command += ["--threads", str(threads), "--dtype", dtype, "--weights", weights]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    sample = json.loads(done.stdout)
    stats = sample["stats"]
    seconds = {key: stats[key] for key in ("prefill_seconds", "decode_seconds")}
    return {**seconds, "tokens": sample["output_ids"]}


def run_llama(model, ids, threads):
    import llama_cpp
    import numpy as np

    llama = llama_cpp.Llama(
        str(model), n_ctx=1024, n_batch=PROMPT_TOKENS, n_ubatch=PROMPT_TOKENS, n_threads=threads,
        n_threads_batch=threads, verbose=False,
    )
    vocabulary = llama.n_vocab()

    def step(tokens):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        assert llama_cpp.llama_decode(llama.ctx, batch) == 0
        logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, (vocabulary,))))

    def read(ids):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
        return step(ids)

    return timed(ids, read, lambda token: step([token]))


def run_transformers(model, ids, threads, dtype):
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    folder, file = os.path.split(model)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=getattr(torch, dtype)).eval()
    cache = None

    def step(tokens):
        nonlocal cache
        output = loaded(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        return int(output.logits[0, -1].argmax())

    def read(ids):
        nonlocal cache
        cache = None
        return step(ids)

    with torch.inference_mode():
        return timed(ids, read, lambda token: step([token]))


def run_one(peer, files, threads):
    import gguf

    vocabulary = len(gguf.GGUFReader(files["model"]).get_field("tokenizer.ggml.tokens").data)
    ids = prompt_ids(vocabulary)
    match peer:
        case "flexdraft":
            return run_flexdraft(files["model"], ids, threads, "f32", "bf16")
        case "flexdraft --dtype bf16":
            return run_flexdraft(files["model"], ids, threads, "bf16", "bf16")
        case "flexdraft, as the file is":
            return run_flexdraft(files["model"], ids, threads, "f32", "keep")
        case "flexdraft --dtype q8, as the file is":
            return run_flexdraft(files["model"], ids, threads, "q8", "keep")
        case "llama.cpp, bf16":
            return run_llama(files["bf16"], ids, threads)
        case "llama.cpp, as the file is":
            return run_llama(files["model"], ids, threads)
        case "transformers, float32":
            return run_transformers(files["bf16"], ids, threads, "float32")
        case "transformers, bfloat16":
            return run_transformers(files["bf16"], ids, threads, "bfloat16")
        case _:
            raise SystemExit(f"unknown peer {peer!r}, expected one of: {'; '.join(PEERS)}")


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def instruction_sets():
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]


def measure(model, threads, rounds, names, random):
    chosen = [peer for peer in PEERS if any(name in peer for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        files = {"model": str(model), "bf16": os.path.join(folder, "bf16.gguf")}
        if any(peer.startswith("transformers") or peer == "llama.cpp, bf16" for peer in chosen):
            subprocess.run([sys.executable, HERE / "to_bf16.py", files["model"], files["bf16"]], check=True)
        runs = {peer: [] for peer in chosen}
        for round_ in range(rounds):
            for peer in chosen:
                arguments = json.dumps([peer, files, threads])
                command = [sys.executable, __file__, "--one", arguments]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                runs[peer].append(json.loads(done.stdout))
                print(f"round {round_ + 1}: {peer}", file=sys.stderr)
    expected = runs[chosen[0]][0]["tokens"]
    peers = []
    for peer in chosen:
        tokens = runs[peer][0]["tokens"]
        same = next((i for i, (a, b) in enumerate(zip(tokens, expected)) if a != b), len(expected))
        median = lambda key: statistics.median(run[key] for run in runs[peer])
        same = {} if random else {"first_tokens_as_the_first_peer": same}
        peers.append({
            "peer": peer,
            "values": PEERS[peer],
            "prefill_tokens_per_second": round(PROMPT_TOKENS / median("prefill_seconds"), 1),
            "decode_tokens_per_second": round((NEW_TOKENS - 1) / median("decode_seconds"), 1),
            **same,
        })
    uses = {"torch": "transformers", "transformers": "transformers", "llama-cpp-python": "llama"}
    packages = [package for package, name in uses.items() if any(name in peer for peer in chosen)]
    commit = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": processor(),
            "threads": threads,
            "instruction_sets": instruction_sets(),
        },
        "model": model.name,
        "commit": commit.stdout.strip(),
        "packages": {package: metadata.version(package) for package in packages},
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "rounds": rounds,
        "peers": peers,
    }


def table(report):
    """Returns the report as a Markdown table."""
    lines = ["| | holds | prefill, tokens/s | decode, tokens/s |", "|---|---|---|---|"]
    for peer in report["peers"]:
        prefill, decode = peer["prefill_tokens_per_second"], peer["decode_tokens_per_second"]
        lines.append(f"| {peer['peer']} | {peer['values']} | {prefill:.0f} | {decode:.0f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action="append", metavar="NAME")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(*json.loads(args.one))))
        return
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return
    if args.model is None:
        parser.error("a model is needed")
    report = measure(args.model.resolve(), args.threads, args.rounds, args.peers or [""], args.random)
    print(table(report))
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
