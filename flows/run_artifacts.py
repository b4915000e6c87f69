"""What a flow run leaves in Prefect's UI beside states and logs: tables, a picture, links, a progress bar.

None of it decides anything, so a server that does not answer costs a line in the log and nothing else.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.artifacts import read_json
from flows.dvc_graph import Outcome
from flows.schedule import is_good, summarise

METRICS = Path("artifacts/report/metrics.json")
PICTURE = Path("artifacts/report/pareto.png")
REPORT = Path("artifacts/report/report.html")
RUNS = Path(".work/mlflow_runs")
MAX_PICTURE_BYTES = 400_000
PERCENT = re.compile(r"(?<!\d)(\d{1,3})%\|")
STEPS = re.compile(r"\bstep (\d+)/(\d+)\b")


@contextmanager
def best_effort(warn: Callable[[str], None]) -> Iterator[None]:
    """For what may be missing in the UI: an exception in the block becomes a warning."""
    try:
        yield
    except Exception as error:
        warn(f"not shown in Prefect's UI: {type(error).__name__}: {error}")


def publish_tables(outcomes: Sequence[Outcome], pools: Mapping[str, str], root: Path) -> None:
    """The pipeline's artifacts: `stages`, and where `compare` has made or confirmed its figures `methods`, `pareto`, `report`."""
    from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact, create_table_artifact

    create_table_artifact(
        [_row(outcome, pools) for outcome in outcomes], key="stages", description=summarise(outcomes).partition("\n")[0]
    )
    if not any(outcome.stage == "compare" and is_good(outcome) for outcome in outcomes):
        return
    if (root / METRICS).exists():
        table = render_methods(read_json(root / METRICS, made_by="compare"))
        create_markdown_artifact(table, key="methods", description=f"{METRICS}: means over the seeds")
    if (root / PICTURE).exists() and (root / PICTURE).stat().st_size <= MAX_PICTURE_BYTES:
        url = "data:image/png;base64," + base64.b64encode((root / PICTURE).read_bytes()).decode()
        create_image_artifact(url, key="pareto", description=f"{PICTURE}: in-domain against OOD")
    if link := link_to_run(root, "pipeline"):
        create_link_artifact(
            f"{link}/artifacts", key="mlflow-run", link_text="the pipeline's run in MLflow, with its report", description="MLflow"
        )
    if (root / REPORT).exists():
        create_link_artifact(
            (root / REPORT).as_uri(),
            key="report",
            link_text=str(REPORT),
            description=f"{root / REPORT} on the pipeline's machine",
        )


def publish_stage(outcome: Outcome, root: Path) -> None:
    """A stage's artifacts: a link to its MLflow run, if it has one."""
    from prefect.artifacts import create_link_artifact

    if link := link_to_run(root, outcome.stage.partition("@")[2]):
        create_link_artifact(
            link, key="mlflow-run", link_text=f"{outcome.stage} in MLflow", description="curves, parameters, data"
        )


def link_to_run(root: Path, name: str) -> str | None:
    """The page of the newest MLflow run of that name; None where MLflow has no server, or knows of none."""
    server = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    note = root / RUNS / f"{name}.json"
    if server.scheme not in ("http", "https") or not name or not note.exists():
        return None
    run = json.loads(note.read_text(encoding="utf-8"))
    address = server.netloc.rpartition("@")[2]  # without a password
    return f"{server.scheme}://{address}{server.path.rstrip('/')}/#/experiments/{run['experiment']}/runs/{run['run']}"


class Progress:
    """A progress bar in the UI, from what a stage's lines tell of it: the states of a bar (`45%|`), or `step 540/1200`."""

    def __init__(self, key: str, warn: Callable[[str], None]) -> None:
        self.key, self.warn = key, warn
        self.artifact: Any = None
        self.shown = -1.0

    def see(self, line: str) -> None:
        percent = read_percent(line)
        if percent is None or percent == self.shown:
            return
        self.shown = percent
        with best_effort(self.warn):
            self._show(line.strip()[:200])

    def finish(self) -> None:
        """The work is done, whatever the last line said of it."""
        if self.artifact is not None and self.shown < 100:
            self.shown = 100.0
            with best_effort(self.warn):
                self._show("done")

    def _show(self, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self.artifact is None:
            self.artifact = create_progress_artifact(self.shown, key=self.key, description=text)
        else:
            update_progress_artifact(self.artifact, self.shown, description=text)


def read_percent(line: str) -> float | None:
    """From 0 to 100; None where the line says nothing of progress."""
    if (steps := STEPS.search(line)) is not None:
        done, total = int(steps[1]), int(steps[2])
        return round(100 * done / total, 1) if total > 0 and done <= total else None
    found = PERCENT.search(line)
    return float(found[1]) if found is not None and int(found[1]) <= 100 else None


def artifact_key(*words: str) -> str:
    """Lower case, digits and dashes, as Prefect wants it."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def _row(outcome: Outcome, pools: Mapping[str, str]) -> dict[str, Any]:
    message = outcome.message.partition("\n")[0]
    return {
        "stage": outcome.stage,
        "state": outcome.state,
        "seconds": outcome.seconds,
        "where": pools.get(outcome.stage, ""),
        "message": message,
    }


def render_methods(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """A row per metric (there are many) and a column per method, in Markdown; the gate is no method."""
    metrics = {name: values for name, values in metrics.items() if name != "gate"}
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    cells = {name: [f"{values[name]:.4g}" if name in values else "" for values in metrics.values()] for name in names}
    head = [["metric", *metrics], ["---", *("---:" for _ in metrics)]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *([name, *row] for name, row in cells.items())])
