"""How much of the default run is work: wall and work seconds and peak memory of every stage of the latest `dvc repro`.

    python -m benchmarks.stage_seconds

Reads what flows/stage_runner.py left under .work/timings. Work is the stage's function; the rest of its wall time is process
start, imports and hand-over. DVC's own time is not in it: compare with the wall time of `dvc repro`.
"""

import json
from collections import defaultdict
from pathlib import Path

TIMINGS = Path(__file__).resolve().parent.parent / ".work" / "timings"


def main() -> None:
    cells: dict[str, list[dict[str, float]]] = defaultdict(list)
    for file in sorted(TIMINGS.glob("*.json")):
        cells[file.stem.partition("-")[0]].append(json.loads(file.read_text()))
    print("| stage | cells | wall s | work s | overhead | peak MiB |\n|---|---|---|---|---|---|")
    for stage, timings in cells.items():
        print(_row(stage, timings))
    print(_row("all", [timing for timings in cells.values() for timing in timings]))


def _row(name: str, timings: list[dict[str, float]]) -> str:
    wall = sum(timing["wall_seconds"] for timing in timings)
    work = sum(timing.get("work_seconds", 0.0) for timing in timings)
    peak = max(timing.get("peak_bytes", 0.0) for timing in timings) / 2**20
    share = 1 - work / wall if wall else 0.0
    return f"| {name} | {len(timings)} | {wall:.1f} | {work:.1f} | {share:.0%} | {peak:.0f} |"


if __name__ == "__main__":
    main()
