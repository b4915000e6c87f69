"""Several processes (ranks) for one stage: start them, pass on what they say and what they are told, end them all.

A flow that takes the section `launch` of params.yaml runs as ranks where that asks for more than one. torchrun starts them
(`accelerate launch` where a configuration of accelerate is to be used), below the supervisor of flows/child_process.py: if this
process dies, however it dies, so do they. The first rank's lines are passed on as the stage's own; of the others, and of the
launcher, only what explains a failure. Each rank leaves a report, so that a fault is told in the rank's own words and not in
a page of torchrun's. On several machines each rank is started by something else (RANK is set) and nothing here happens.
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from components.artifacts import ROOT, WORK, write_json
from components.errors import BallastError, InterruptedStageError, ParamsError, TrainingError
from components.run_params import LaunchParams
from flows.child_process import run_child

REPORTS = "BALLAST_RANK_REPORTS"
"""Set for ranks that this module starts: the folder of their reports."""
NUM_KEPT_LINES = 25
DEEPSPEED = "infra/accelerate/deepspeed_zero3.yaml"
RANK_LINE = re.compile(r"^\[[a-z_]+(\d+)\]:(.*)$", re.DOTALL)
FAILURE = re.compile(r"^\s+rank\s+: (\d+) .*?^\s+exitcode\s+: (-?\d+) \(pid: (\d+)\)", re.DOTALL | re.MULTILINE)
CONSEQUENCES = (signal.SIGTERM, signal.SIGABRT)
"""What ranks die of when another one has failed: torchrun's SIGTERM, or NCCL that waited in vain."""
StageFunction = Callable[..., dict[str, Any]]


def is_rank() -> bool:
    """One of several processes that share this stage, whoever has started it."""
    return "RANK" in os.environ or REPORTS in os.environ


def is_started_rank() -> bool:
    """A rank that this module has started."""
    return REPORTS in os.environ


def leave_at_once(code: int) -> NoReturn:
    """End a rank that has reported: taking down torch and its connections costs seconds, and a stopped stage has ten."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_silent_rank() -> bool:
    """Of several ranks the first one tells what the stage has to tell."""
    return os.environ.get("RANK", "0") != "0"


def report(code: int, message: str | None = None, result: dict[str, Any] | None = None) -> bool:
    """How this rank ended, for the process that has started it; False where nobody has."""
    if REPORTS not in os.environ:
        return False
    file = Path(os.environ[REPORTS]) / f"rank-{os.environ.get('RANK', '0')}.json"
    write_json(file, {"code": code, "message": message, "result": result, "seconds": time.time()})
    return True


def in_ranks(function: StageFunction, cell: list[str], launch: LaunchParams | None) -> StageFunction:
    """The same function, whose work is done by ranks; itself where this process is to do it."""
    if launch is None or launch.engine == "single" or is_rank():
        return function

    @functools.wraps(function)
    def start(*_: Any, **__: Any) -> dict[str, Any]:
        return run_ranks(function.__name__, cell, launch)

    return start


def run_ranks(stage: str, cell: list[str], launch: LaunchParams) -> dict[str, Any]:
    """Start the ranks, see them to their end, and return what the first one returns."""
    folder = WORK / "launch" / "-".join([stage, *cell])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = launch_command(stage, cell, launch, folder)
    said = Said()
    try:
        with stop_signal_raises():
            code = run_child(command, said.hear, environment_of_ranks(folder))
    except InterruptedStageError as error:
        told = [report["message"] for report in reports_of(folder).values() if report["code"] == error.exit_code]
        raise InterruptedStageError(told[0] if told else str(error)) from None
    reports = reports_of(folder)
    if code == 0 and reports.get(0, {}).get("result") is not None:
        shutil.rmtree(folder, ignore_errors=True)
        return dict(reports[0]["result"])
    raise failure_of(reports, said, code, folder)


def launch_command(stage: str, cell: list[str], launch: LaunchParams, folder: Path) -> list[str]:
    """torchrun on this machine, or accelerate launch with its configuration."""
    # PyTorch's --tee marks each rank's lines, and keeps all of them below the folder.
    common = ["--tee", "3", "--log_dir", str(folder), "--module", f"flows.{stage}", *cell]
    config = launch.config or (DEEPSPEED if launch.engine == "deepspeed_zero3" else None)
    if config is None:
        number = ["--standalone", "--nproc_per_node", str(launch.num_processes)]
        return [sys.executable, "-m", "torch.distributed.run", *number, *common]
    refuse_missing_engine(launch.engine)
    if not (ROOT / config).is_file():
        raise ParamsError(f"params.yaml: launch.config {config!r} is no file. See infra/accelerate/ for some to start from")
    number = ["--config_file", str(ROOT / config), "--num_processes", str(launch.num_processes)]
    return [sys.executable, "-m", "accelerate.commands.launch", *number, *common]


def refuse_missing_engine(engine: str) -> None:
    if engine == "deepspeed_zero3" and importlib.util.find_spec("deepspeed") is None:
        raise ParamsError(
            "launch.engine deepspeed_zero3 needs DeepSpeed, which is not installed. Install it on this GPU machine with: "
            ".venv/bin/pip install deepspeed; or set launch.engine: fsdp2, which needs nothing more"
        )


def environment_of_ranks(folder: Path) -> dict[str, str]:
    """Ours, but for Prefect's address: the flow run is ours. Lines come as they are said."""
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return {**kept, REPORTS: str(folder), "PYTHONUNBUFFERED": "1"}


@contextmanager
def stop_signal_raises() -> Iterator[None]:
    """SIGTERM (a cancelled flow run, a preempted machine) ends the wait for the ranks, which are told in turn."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the ranks are ending: a second one changes nothing
        raise InterruptedStageError("stopped outside the training's steps; the same command goes on from the last checkpoint")

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Said:
    """What the ranks and their launcher say: the first rank's lines go on, of everybody's the last ones are kept."""

    def __init__(self) -> None:
        self.ranks: dict[int, deque[str]] = defaultdict(lambda: deque(maxlen=NUM_KEPT_LINES))
        self.launcher: deque[str] = deque(maxlen=200)

    def hear(self, line: str) -> None:
        found = RANK_LINE.match(line)
        if found is None:
            self.launcher.append(line)
            return
        rank, words = int(found[1]), found[2]
        self.ranks[rank].append(words)
        if rank == 0:
            print(words, flush=True)


def reports_of(folder: Path) -> dict[int, dict[str, Any]]:
    """The reports of the ranks that have ended by themselves."""
    files = sorted(folder.glob("rank-*.json"))
    return {int(file.stem.rpartition("-")[2]): json.loads(file.read_text(encoding="utf-8")) for file in files}


def failure_of(reports: Mapping[int, dict[str, Any]], said: Said, code: int, folder: Path) -> BallastError:
    """The first failure, not those that follow from it: a rank that is killed breaks the connections of the others."""
    failures = [tuple(map(int, found)) for found in FAILURE.findall("\n".join(said.launcher))]
    killed = [(rank, -status, process) for rank, status, process in failures if status < 0 and rank not in reports]
    for rank, number, process in killed:
        if number not in CONSEQUENCES:
            return killed_rank(rank, number, process)
    reported = sorted((one["seconds"], rank) for rank, one in reports.items() if one["code"])
    if reported:
        one = reports[reported[0][1]]
        return with_code(one["code"], str(one["message"]))
    broken = [(rank, status) for rank, status, _ in failures if status > 0]
    if killed and not broken:
        return killed_rank(*killed[0])
    rank, status = broken[0] if broken else (0, code or 1)
    words = list(said.ranks.get(rank, ())) or list(said.launcher)[-NUM_KEPT_LINES:]
    head = f"rank {rank} failed with code {status}; all that was said lies in {folder}, and its last words were:"
    return with_code(status, "\n".join([head, *words]))


def killed_rank(rank: int, number: int, process: int) -> BallastError:
    return with_code(
        128 + number,
        f"rank {rank} (process {process}) was killed by signal {number} ({name_of(number)}), and the others were ended. Signal 9 "
        "often means that memory ran out. The same command goes on from the last checkpoint",
    )


def name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def with_code(code: int, message: str) -> BallastError:
    error = TrainingError(message)
    error.exit_code = code
    return error
