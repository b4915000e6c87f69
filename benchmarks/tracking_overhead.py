"""What recording costs a training step of 100 ms: with a local database, with MLflow's server, and when that server is dead.

    python -m benchmarks.tracking_overhead [steps of each kind, default 150]

A step is 100 ms of matrix products, then `log` of eight figures, as post_train does. Plain and recorded steps alternate in blocks
of ten, so that both meet the same load of the machine; system metrics are sampled every second instead of every ten, and points
sent every 3 seconds instead of every 30: ten times what a training asks for. Two figures: the ratio of the medians of the steps,
and what is counted directly: time inside `log` plus processor time of all other threads, the most that recording can have cost.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import processor
from components import tracking_points, tracking_recorder
from components.tracking_recorder import RunRecorder
from components.tracking_system import SystemSampler
from tests.components.mlflow_stores import Server

STEP_SECONDS, BLOCK = 0.1, 10
FIGURES = ("nll", "loss", "grad_norm", "learning_rate", "selected_fraction", "threshold", "distil_loss", "wall_seconds")


def count_products() -> Callable[[], None]:
    """A step: as many products of two matrices as fill STEP_SECONDS on this machine."""
    matrix = torch.randn(256, 256)
    start = time.perf_counter()
    for _ in range(200):
        matrix @ matrix
    num_products = max(1, int(200 * STEP_SECONDS / (time.perf_counter() - start)))

    def step() -> None:
        for _ in range(num_products):
            matrix @ matrix

    return step


def measure(num_steps: int, after_start: Callable[[], None]) -> dict[str, float]:
    step = count_products()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    in_log, first_cpu = 0.0, (time.process_time(), time.thread_time())
    with RunRecorder("overhead", {}, {}, flush_seconds=3.0) as run:
        after_start()
        first_cpu = (time.process_time(), time.thread_time())
        for index in range(2 * num_steps):
            is_recorded = index // BLOCK % 2 == 1
            start = time.perf_counter()
            step()
            if is_recorded:
                before = time.perf_counter()
                run.log(index, dict.fromkeys(FIGURES, 1 / (index + 1)))
                in_log += time.perf_counter() - before
            seconds[is_recorded].append(time.perf_counter() - start)
        others = time.process_time() - first_cpu[0] - (time.thread_time() - first_cpu[1])
    return {
        "step_ms": 1000 * statistics.median(seconds[False]),
        "ratio": statistics.median(seconds[True]) / statistics.median(seconds[False]),
        "log_ms_per_step": 1000 * in_log / num_steps,
        "at_most": (in_log + others) / sum(seconds[True]),
    }


def main(num_steps: int) -> None:
    torch.set_num_threads(1)
    tracking_recorder.SystemSampler = lambda record, started_at: SystemSampler(record, started_at, 1.0)  # type: ignore[misc, assignment]
    print(f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread; {num_steps} steps of each kind\n")
    print("| store | step | recorded / plain | `log` a step | counted, at most |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="tracking-") as folder:
        tracking_points.UNSENT = Path(folder) / "unsent"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        report("local database", measure(num_steps, lambda: None))
        server = Server(Path(folder))
        os.environ["MLFLOW_TRACKING_URI"] = server.uri
        try:
            report("server", measure(num_steps, lambda: None))
            report("server that dies after the start", measure(num_steps, server.die))
        finally:
            server.die()


def report(store: str, figures: dict[str, float]) -> None:
    step, ratio, in_log, at_most = figures.values()
    print(f"| {store} | {step:.0f} ms | {ratio:.4f} | {in_log:.3f} ms | {100 * at_most:.2f} % |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
