#!/usr/bin/env python3
"""Times the steps of `flexdraft bench` in plain PyTorch, without this crate, eagerly and as a CUDA graph.

    benches/peers/step.py --shape qwen3-8b --batch 1,4 --context 1024 --verify-len 3,7,15 --groups all,4 > peer.jsonl
    benches/peers/step.py --check        # on any machine: tests the steps (step_check.py)

Uses a target with random bf16 weights and its drafter, a static contiguous KV cache of noise, and SDPA. The output is
lines of JSON, each written as soon as it is known: first the machine, then a line per step (`captured` is a CUDA graph)
with the median time between two CUDA events, or the reason why the step was skipped. Several choices favour PyTorch:
projections are fused; masks and rotations are made once and not in each step; mask rows' K and V follow the cache's, so
that nothing is concatenated; logits stay bf16; sequential drafting knows the accepted length. With few rows, the head
is applied to candidates and all groups in one product (`one_head`), otherwise to the candidates and then to the
accepted group. SDPA takes grouped heads and a mask in several ways; the fastest for the step is used (`attention`).

Needs only PyTorch. Without CUDA it runs eagerly on the CPU, to test small shapes: no measurement of a GPU.
"""

import argparse
import json
import statistics
import sys
import time

import torch

from step_model import SHAPES, WAYS, Cache, Model, Step


class Clock:
    """Measures the seconds of a step: between CUDA events if the device is a GPU, and on the host until it has
    submitted the work."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"

    def seconds(self, work) -> tuple[float, float]:
        if not self.cuda:
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start,) * 2
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        work()
        end.record()
        submitted = time.perf_counter() - start
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, submitted

    def median(self, work, count: int, warm_up: int = 2) -> tuple[float, float]:
        times = [self.seconds(work) for _ in range(warm_up + count)][warm_up:]
        return tuple(statistics.median(part) for part in zip(*times))


def lacks_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def choose_way(step: Step, clock: Clock) -> None:
    """Chooses the fastest of PyTorch's attention implementations for the step."""
    times, problem = {}, None
    for way in WAYS:
        step.way = way
        try:
            # The faster of two runs counts, because the first run includes setup.
            times[way] = min(clock.seconds(step)[0] for _ in range(2))
        except RuntimeError as error:
            # The error is kept without its traceback, which would keep the failed step's allocations alive.
            problem = error.with_traceback(None)
    if not times:
        raise problem
    step.way = min(times, key=times.get)


def captured(step: Step) -> torch.cuda.CUDAGraph:
    """Captures the step as a CUDA graph. The step must have run before, so that no setup happens during the capture."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def measure(step: Step, clock: Clock, case: dict, args: argparse.Namespace):
    """Yields the step's JSON lines: one for the step run eagerly, and one for the captured CUDA graph if the device is
    a GPU."""
    choose_way(step, clock)
    case = case | {"attention": step.way, "one_head": step.one_head, "steps": args.steps}
    for capture in args.capture:
        graph = None
        if capture == "graph":
            if not clock.cuda:
                continue
            graph = captured(step)
        seconds, submitted = clock.median(graph.replay if graph else step, args.steps)
        yield case | {"captured": bool(graph), "step_seconds": seconds, "submit_seconds": submitted}


def modes(args: argparse.Namespace):
    """Returns the mode, verify length and number of mask groups of each step to time, without duplicates."""
    found = [("ar", 0, 0)]
    for asked in args.verify_len:
        verify_len = min(asked, args.block_size - 1)
        found += [("verify", verify_len, 0), ("sequential", verify_len, 0)]
        for groups in args.groups:
            groups = verify_len + 1 if groups == "all" else min(int(groups), verify_len + 1)
            found.append(("parallel", verify_len, groups))
    return [step for step in dict.fromkeys(found) if step[0] in args.mode]


def write(line: dict) -> None:
    print(json.dumps(line), flush=True)


def failed(case: dict, error: RuntimeError) -> bool:
    """Writes a case's error as a JSON line; returns True if the error is a failure, which a lack of memory is not."""
    memory = lacks_memory(error)
    write(case | {"skipped" if memory else "error": str(error).splitlines()[0]})
    return not memory


def measure_all(model: Model, batch: int, context: int, asked: list, clock: Clock, args: argparse.Namespace) -> bool:
    """Measures the steps of one batch size; returns True if a step failed."""
    # The KV cache has room for the largest number of candidates and mask rows, and for padding a mask to whole vectors.
    masks = max(max(groups, 1) * args.block_size for _, _, groups in asked)
    room = max(verify_len for _, verify_len, _ in asked) + 1 + masks + 16
    case, failure = {"context": context, "batch": batch}, False
    try:
        cache = Cache(model, batch, context + room)
    except RuntimeError as error:
        return failed(case | {"mode": None}, error)
    for mode, verify_len, groups in asked:
        case |= {"mode": mode, "verify_len": verify_len, "groups": groups}
        try:
            step = Step(model, cache, mode, context, verify_len, groups, args.block_size)
            for line in measure(step, clock, case, args):
                write(line)
        except RuntimeError as error:
            failure |= failed(case, error)
        step = None
        if clock.cuda:
            torch.cuda.empty_cache()
    return failure


def run(args: argparse.Namespace) -> bool:
    """Measures the steps of all batch sizes; returns True if a step failed."""
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    header = {"peer": "pytorch", "torch": torch.__version__, "model": args.shape, "dtype": "bf16"}
    header |= {"block_size": args.block_size, "device": device}
    if device == "cuda":
        header |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    else:
        header["note"] = "on a CPU, eagerly, to try the script: not a measurement of a GPU"
    write(header)
    model, clock, asked = Model(SHAPES[args.shape], torch.bfloat16, device), Clock(device), modes(args)
    failure = False
    for context in args.context:
        for batch in args.batch:
            failure |= measure_all(model, batch, context, asked, clock, args)
            if device == "cuda":
                torch.cuda.empty_cache()
    return failure


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def words(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--batch", type=numbers, default=[1])
    parser.add_argument("--context", type=numbers, default=[128])
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--verify-len", type=numbers, default=[4])
    parser.add_argument("--groups", type=words, default=["all"], help="all, or the K longest")
    parser.add_argument("--mode", type=words, default=["ar", "verify", "sequential", "parallel"])
    parser.add_argument("--capture", type=words, default=["eager", "graph"])
    parser.add_argument("--steps", type=int, default=9, help="steps whose median counts")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, even where there is CUDA")
    parser.add_argument("--check", action="store_true", help="compare the steps with a plain computation, on the CPU")
    args = parser.parse_args()
    if not args.check and not modes(args):
        parser.error("--mode names no step")
    with torch.inference_mode():
        if args.check:
            import step_check

            step_check.check()
        elif run(args):
            sys.exit(1)


if __name__ == "__main__":
    main()
