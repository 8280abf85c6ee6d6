"""Helpers of the comparisons: random operands, times, and lines of JSON that are on disk as soon as they are known."""

import json
import os
import statistics
import time

import torch

# Number of timed launches, and seconds of warm-up launches before them: a card that waited for a compiler runs slower
# at first.
TIMED, WARM = 25, 0.1


def noise(shape, seed: int, device: str, dtype=torch.bfloat16, scale=1.0) -> torch.Tensor:
    """Returns normally distributed numbers; on one device, a seed gives the same numbers in every run."""
    generator = torch.Generator(device=device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=device, dtype=torch.float32) * scale).to(dtype)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the relative error ‖found − expected‖ / ‖expected‖, or NaN, which exceeds every limit, if an element is
    NaN."""
    expected = expected.float()
    return ((found.float() - expected).norm() / expected.norm().clamp_min(1e-20)).item()


class Timer:
    """Measures the median time of single launches. Before each, memory larger than the L2 cache is overwritten and
    other memory is read, because dirty lines would be written back during the launch (as benches/kernels/timing.rs
    does)."""

    def __init__(self, device: str):
        self.device = device
        if device == "cuda":
            size = 4 * torch.cuda.get_device_properties(0).L2_cache_size
            self.overwritten, self.read = (torch.zeros(max(size, 1 << 20), dtype=torch.uint8, device=device)
                                           for _ in range(2))
            self.sum = torch.empty((), dtype=torch.float32, device=device)

    def flush(self):
        self.overwritten.zero_()
        torch.sum(self.read.view(torch.float32), 0, out=self.sum)

    def median_us(self, launch, restore=None) -> tuple[float, str]:
        """Returns the median time of `launch` in microseconds, and whether it was replayed from a CUDA graph, which
        excludes the host's launch time. `restore` undoes the changes of a launch, and is not timed."""
        if self.device == "cpu":
            times = []
            for _ in range(3):
                if restore:
                    restore()
                start = time.perf_counter()
                launch()
                times.append((time.perf_counter() - start) * 1e6)
            return statistics.median(times), "cpu"
        for _ in range(3):
            launch()
        torch.cuda.synchronize()
        how = "graph"
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                launch()
            run = graph.replay
        except Exception:  # A launch that cannot be captured is timed eagerly; the line says so.
            torch.cuda.synchronize()
            run, how = launch, "eager"
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(TIMED)]

        def timed(pairs):
            for start, end in pairs:
                if restore:
                    restore()
                self.flush()
                start.record()
                run()
                end.record()
            torch.cuda.synchronize()

        begin = time.perf_counter()
        while time.perf_counter() - begin < WARM:
            timed(events[:5])
        timed(events)
        return statistics.median(start.elapsed_time(end) * 1e3 for start, end in events), how


class Record:
    """A file of JSON lines with results; the first line describes the machine."""

    def __init__(self, directory: str, name: str, device: str):
        os.makedirs(directory, exist_ok=True)
        self.file = open(os.path.join(directory, f"peers-{name}.jsonl"), "w")
        gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu (SIMT emulator): not a measurement"
        self.add({"device": gpu, "torch": torch.__version__})

    def add(self, line: dict):
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())


class Comparison:
    """Runs all implementations of a case, compares each implementation with the reference, and times it if it agrees."""

    def __init__(self, record: Record, timer: Timer, deadline: float):
        self.record, self.timer, self.deadline = record, timer, deadline
        self.wrong = 0  # number of failures of flexdraft itself

    def case(self, family: str, shape: dict, ways: dict, check, limit: float):
        """Measures a case with every implementation. `ways` are functions that prepare an implementation and return
        (launch, restore or None); `check` returns the error of a launch's result."""
        ours = None
        for name, prepare in ways.items():
            if time.monotonic() > self.deadline:
                self.record.add({"family": family, "shape": shape, "way": name, "skipped": "out of time"})
                continue
            line = {"family": family, "shape": shape, "way": name}
            try:
                launch, restore = prepare()
                if restore:
                    restore()
                error = check(launch())
                line["error"] = round(error, 6)
                if not error <= limit:
                    raise AssertionError(f"differs from the reference by {error}; {limit} is allowed")
                us, line["timed"] = self.timer.median_us(launch, restore)
                line["median_us"] = round(us, 2)
                if name == "flexdraft":
                    ours = us
                elif ours:
                    line["over_flexdraft"] = round(us / ours, 3)
            except Exception as problem:  # The line of a peer that does not run contains its error.
                line["failed"] = f"{type(problem).__name__}: {problem}"[:400]
                self.wrong += name == "flexdraft"
            self.record.add(line)
            shown = line.get("median_us", line.get("failed"))
            print(f"{family} {shape} {name}: {shown} {line.get('over_flexdraft', '')}", flush=True)
            if self.timer.device == "cuda":
                torch.cuda.empty_cache()
