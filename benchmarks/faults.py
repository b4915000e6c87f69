"""Every fault in the middle of a real training, each with a training of its own; prints docs/faults.md's table.

    python -m benchmarks.faults                # all: two to five minutes each on two busy cores
    python -m benchmarks.faults kill_worker    # those that are named

Prefect, MLflow, their workers and a shrunken copy of the project in a folder to throw away; tests/infra/faults.py has the faults.
A line per fault as soon as it is known; one whose law does not hold ends with its traceback and the exit code 1.
"""

import sys
import tempfile
import traceback
from pathlib import Path

from tests.infra.faults import ALL, Measured
from tests.infra.training_ground import Ground


def main() -> None:
    wanted = [fault for fault in ALL if not sys.argv[1:] or fault.__name__ in sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        ground = Ground(Path(folder) / "project")
        ground.make_reference()
        print("fault | seconds to notice | seconds to be free | checkpoint | went on at | states (stage, pipeline) | remarks")
        failed = 0
        try:
            for fault in wanted:
                failed += not run_one(ground, fault)
        finally:
            ground.down()
    sys.exit(min(failed, 1))


def run_one(ground: Ground, fault: object) -> bool:
    try:
        ground.up()
        measured: Measured = fault(ground)  # type: ignore[operator]
        resumed = ground.finish()
        ground.require_equal()
        ground.require_sound_records()
        print(render(measured, resumed), flush=True)
    except Exception:
        print(f"{getattr(fault, '__name__', fault)} FAILED\n{traceback.format_exc()}", flush=True)
        ground.down()  # whatever it has left must not meet the next one
        return False
    finally:
        ground.pipeline = ""
        ground.forget()
    return True


def render(measured: Measured, resumed: int) -> str:
    noticed, gone = ("" if seconds is None else f"{seconds:.1f}" for seconds in (measured.noticed, measured.gone))
    cells = (measured.fault, noticed, gone, measured.kept or "", resumed or "", measured.states, measured.remarks)
    return " | ".join(str(cell) for cell in cells)


if __name__ == "__main__":
    main()
