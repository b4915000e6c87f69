"""What a stage's process costs before it does anything: cold start against warm start (flows/warm_start.py).

    python benchmarks/stage_overhead.py [rounds]

A stage that imports what a training stage imports, and does nothing, runs below a stand-in for `dvc` in a folder of its own:
cold (BALLAST_WARM_START=0) and warm in turn, so that whatever else the machine does meets both. The first warm stage starts the
server and is told apart. Prints a Markdown table. It measures and judges nothing: a failed run is reported, the exit code is 0.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST_ROUNDS = 5
STAGE = """
import sys
from flows.warm_start import run_warm
if __name__ == "__main__":
    if (code := run_warm("flows.idle_stage", sys.argv[1:])) is not None:
        sys.exit(code)
import os
import mlflow.store.tracking.sqlalchemy_store
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer
print("warm" if os.environ.get("BALLAST_WARM_CHILD") == str(os.getpid()) else "cold")
"""
DVC = """
import json, os, subprocess, sys, time
def seconds(kind):
    environ = {**os.environ, "BALLAST_WARM_START": "0" if kind == "cold" else "1"}
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-m", "flows.idle_stage"], env=environ, capture_output=True, text=True)
    if ended.stdout.strip() != kind:
        raise SystemExit(f"the {kind} stage ended with {ended.returncode}: {ended.stdout[-200:]!r} {ended.stderr[-2000:]}")
    return time.perf_counter() - began
seconds("cold")  # reads the files from the disk
first = seconds("warm")
rounds = [(seconds("cold"), seconds("warm")) for _ in range(int(sys.argv[1]))]
print(json.dumps({"first": [first], "cold": [r[0] for r in rounds], "warm": [r[1] for r in rounds]}))
"""


def measure(num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each run: "first" (starts the server), "cold" and "warm"."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        flows = Path(folder, "flows")
        flows.mkdir()
        for file in ("__init__.py", "warm_start.py", "warm_server.py", "warm_child.py"):
            shutil.copy(ROOT / "flows" / file, flows / file)
        (flows / "idle_stage.py").write_text(STAGE)
        Path(folder, "dvc").write_text(DVC)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("BALLAST_WARM")}
        ended = subprocess.run(
            [sys.executable, f"{folder}/dvc", str(num_rounds)],
            cwd=folder,
            env={**environ, "DVC_ROOT": folder, "TMPDIR": folder},
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            logs = "".join(path.read_text() for path in Path(folder).glob("ballast-*/*.log"))
            raise RuntimeError(f"{ended.stderr}{logs}")
        seconds: dict[str, list[float]] = json.loads(ended.stdout)
        return seconds


def describe_machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "mlflow"))
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores ({platform.machine()}), load {load:.1f}, Python {platform.python_version()}, {versions}"


def main() -> None:
    num_rounds = max([LEAST_ROUNDS, *map(int, sys.argv[1:2])])
    print(f"A stage that imports and does nothing, {num_rounds} rounds; {describe_machine()}\n", flush=True)
    seconds = measure(num_rounds)
    print("| start | median s | least s | most s |\n|---|---|---|---|")
    for name, label in (("cold", "cold"), ("warm", "warm"), ("first", "warm, the first (starts the server)")):
        runs = seconds[name]
        print(f"| {label} | {statistics.median(runs):.2f} | {min(runs):.2f} | {max(runs):.2f} |")
    print(f"\ncold / warm: {statistics.median(seconds['cold']) / statistics.median(seconds['warm']):.1f}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        print(f"not measured: {error}")
