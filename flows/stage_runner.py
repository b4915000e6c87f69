"""How a stage's process runs: parameters from params.yaml, errors for people, a tracked flow run where Prefect is configured.

A flow function takes the cell of the matrix as positional arguments and sections of params.yaml as keyword-only arguments;
dvc.yaml lists the same sections. A stage with an output artifacts/costs/<cell>.json leaves there what its work has cost. With
PREFECT_API_URL set the call is a Prefect flow run; without, it is a plain call and no server is started.
"""

import inspect
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.artifacts import COSTS, ROOT, WORK, write_json
from components.errors import BallastError, ParamsError
from components.params import Params, load_params
from components.plain_names import plain_name
from flows.launch import in_ranks, is_rank, is_silent_rank, is_started_rank, leave_at_once, report
from flows.prefect_access import access_errors
from flows.warm_start import die_with_parent, run_warm

StageFunction = Callable[..., dict[str, Any]]
QUIET = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # A run that has not been heard for 50 s counts as lost (flows/crash_detection.py); Prefect's own default is every 180 s.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No library reports home, and runs are heard; set before any of them is imported."""
LOG_INTERVAL_SECONDS = "15"
"""Between two progress lines where nobody watches a terminal (DVC's and Prefect's logs)."""


def main(function: StageFunction) -> None:
    """Run the stage as `python -m flows.<stage> [cell ...]` and end the process with its exit code."""
    started = time.time()
    progress = {} if sys.stderr.isatty() else {"TQDM_MININTERVAL": LOG_INTERVAL_SECONDS, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ.update({name: value for name, value in {**QUIET, **progress}.items() if name not in os.environ})
    code = None if is_rank() else run_warm(f"flows.{function.__name__}", sys.argv[1:])
    if code is None:
        die_with_parent()
        code = run_here(function, sys.argv[1:])
    if not is_silent_rank():
        write_timing(function.__name__, sys.argv[1:], {"wall_seconds": time.time() - started + _seconds_before(started)})
    sys.stdout.flush()
    if is_started_rank():
        leave_at_once(code)
    sys.exit(code)


def run_here(function: StageFunction, cell: list[str]) -> int:
    """Run the stage in this process; faults for people become one message and their exit code."""
    started = time.perf_counter()
    try:
        arguments = bind_arguments(function, cell, checked_params())
        work = in_ranks(function, cell, arguments.get("launch"))
        url = os.environ.get("PREFECT_API_URL")
        if url and not is_silent_rank():
            with access_errors(url):
                result = tracked(work, cell)(**arguments)
        else:
            result = work(**arguments)
    except BallastError as error:
        if not report(error.exit_code, str(error)):
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    report(0, result=result)
    if is_silent_rank() or work is not function:
        return 0  # the first rank tells what it has cost
    figures = {"work_seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
    write_timing(function.__name__, cell, figures)
    write_costs(function.__name__, cell, {**amounts(result), **figures, **_device()})
    print(f"{'@'.join([function.__name__, '-'.join(cell)]).rstrip('@')}: " + ", ".join(f"{k} {v}" for k, v in result.items()))
    return 0


def checked_params() -> Params:
    """params.yaml, and every entry of `objective` checked now: not after an hour of stages before it."""
    from components.objectives.resolve import resolve_all

    params = load_params()
    resolve_all(params)
    return params


def bind_arguments(function: StageFunction, cell: list[str], params: Params) -> dict[str, Any]:
    """The flow's arguments: positional ones from the command line, keyword-only ones from params.yaml by name."""
    arguments: dict[str, Any] = {}
    words = list(cell)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            arguments[name] = getattr(params, name)
        elif words:
            word = words.pop(0)
            arguments[name] = _number(name, word) if parameter.annotation is int else plain_name(word, "the command line")
        elif parameter.default is inspect.Parameter.empty:
            raise ParamsError(f"flows.{function.__name__} needs {name}: python -m flows.{function.__name__} <{name}>")
    if words:
        raise ParamsError(f"flows.{function.__name__}: unexpected {words}; values live in params.yaml, not in flags")
    if "objective" in arguments and "preset" in arguments:
        preset = arguments["preset"]
        if preset not in params.objective:
            raise ParamsError(f"params.yaml has no objective.{preset}; it has {sorted(params.objective)}")
        arguments["objective"] = params.objective[preset]
    return arguments


def _number(name: str, word: str) -> int:
    if not word.isdigit():
        raise ParamsError(f"{name} must be a whole number, found {word!r}")
    return int(word)


def tracked(function: StageFunction, cell: list[str]) -> StageFunction:
    """The same function as a Prefect flow named after the stage; the run is named after the cell."""
    from prefect import flow

    name = function.__name__.replace("_", "-")
    tracked_flow: StageFunction = flow(
        name=name, flow_run_name="-".join(cell) or name, persist_result=False, validate_parameters=False, log_prints=True
    )(function)
    return tracked_flow


def timing_file(stage: str, cell: list[str]) -> Path:
    return WORK / "timings" / f"{'-'.join([stage, *cell])}.json"


def write_timing(stage: str, cell: list[str], figures: dict[str, float]) -> None:
    """Keep wall and work seconds of the latest run of each cell, for benchmarks/stage_seconds.py; never part of an artifact."""
    file = timing_file(stage, cell)
    known = json.loads(file.read_text()) if file.exists() and "work_seconds" not in figures else {}
    write_json(file, {**known, **figures})


def write_costs(stage: str, cell: list[str], costs: dict[str, Any]) -> None:
    """An output of the stages that declare one in dvc.yaml, so that a cell from DVC's cache still tells what it cost when made.

    Only `compare` reads costs: seconds differ from run to run, and must make no model and no evaluation anew. Of several ranks
    the first one tells.
    """
    name = "-".join([stage, *cell])
    if os.environ.get("RANK", "0") == "0" and declares_costs(name, (ROOT / "dvc.yaml").read_text(encoding="utf-8")):
        write_json(COSTS / f"{name}.json", costs)


def declares_costs(name: str, pipeline: str) -> bool:
    """Whether the text of dvc.yaml has the output artifacts/costs/<name>.json, written out or for a cell of a matrix."""
    declared = re.findall(r"^ *- artifacts/costs/(\S+)\.json", pipeline, flags=re.MULTILINE)
    patterns = [re.sub(r"\\\$\\\{.+?\\\}", r".+", re.escape(entry)) for entry in declared]
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def amounts(result: dict[str, Any]) -> dict[str, int]:
    """Whole numbers count something (tokens, steps, bytes); a stage's other results are no costs."""
    return {name: value for name, value in result.items() if isinstance(value, int) and not isinstance(value, bool)}


def _device() -> dict[str, Any]:
    """What torch worked on, where the stage has loaded it; the memory of a GPU is not in `peak_bytes`."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    if torch.cuda.is_initialized():
        return {"device": torch.cuda.get_device_name(), "device_peak_bytes": torch.cuda.max_memory_allocated()}
    return {"device": "cpu", "num_threads": torch.get_num_threads()}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _seconds_before(started: float) -> float:
    """Seconds between the start of this process and `started` (interpreter start-up and imports); 0 where /proc is missing."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return 0.0
    age = uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, age - (time.time() - started))
