"""Laws of one stage's `dvc repro`: DVC decides, its decision and the stage's own words come back, its lock is waited for."""

import sys
import threading
import time
from pathlib import Path

import pytest

from flows.child_process import StoppedError
from flows.dvc_graph import Stage, read_stages
from flows.dvc_stage import describe_failure, is_transient, reproduce, run_stage


def test_dvc_decides_and_its_decision_comes_back(graph: Path) -> None:
    lines: list[str] = []
    assert reproduce("prepare", lines.append) == ("ran", "")
    assert "Running stage 'prepare':" in lines
    assert reproduce("prepare", lines.append)[0] == "cached"
    (graph / "dvc.lock").unlink()
    state, message = reproduce("prepare", lines.append)
    assert (state, "run cache" in message) == ("cached", True)
    (graph / "source").unlink()
    state, message = reproduce("prepare", lines.append)
    assert (state, "source" in message) == ("failed", True)


def test_a_stage_sees_nothing_of_prefect(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://localhost:1/api")
    script = "import os; print('found', [name for name in os.environ if name.startswith('PREFECT')])"
    (graph / "dvc.yaml").write_text(f'stages:\n  look:\n    cmd: {sys.executable} -c "{script}"\n')
    lines: list[str] = []
    assert reproduce("look", lines.append) == ("ran", "")
    assert "found []" in lines


def test_a_stage_that_is_told_to_stop_in_another_thread_ends(graph: Path) -> None:
    (graph / "dvc.yaml").write_text("stages:\n  nap:\n    cmd: echo begun && sleep 60\n")
    stopping = threading.Event()

    def stop_when_begun(line: str) -> None:
        if line == "begun":
            stopping.set()

    started = time.monotonic()
    with pytest.raises(StoppedError):
        reproduce("nap", stop_when_begun, stopping=stopping)
    assert time.monotonic() - started < 30


def test_the_repository_s_lock_is_waited_for(graph: Path) -> None:
    from dvc.repo import Repo

    repo = Repo()
    repo.lock.lock()
    letting_go = threading.Timer(6.0, repo.lock.unlock)  # DVC by itself gives up after 3 s
    letting_go.start()
    assert reproduce("prepare", lambda _: None)[0] == "ran"
    letting_go.join()


def test_the_graph_is_never_read_while_a_stage_writes_its_entry(graph: Path) -> None:
    from dvc.repo import Repo

    (graph / "dvc.lock").write_text("schema: '2.0'\nstages:\n  prepare:\n")  # half of a file, as DVC writes it
    repo = Repo()
    repo.lock.lock()

    def finish() -> None:
        (graph / "dvc.lock").unlink()
        repo.lock.unlock()

    finishing = threading.Timer(2.0, finish)
    finishing.start()
    assert len(read_stages()) == 5
    finishing.join()


@pytest.mark.parametrize(
    ("code", "answer"), [(137, True), (143, True), (75, True), (-9, True), (1, False), (4, False), (255, False)]
)
def test_only_a_stage_that_was_killed_or_asks_for_it_is_worth_another_try(code: int, answer: bool) -> None:
    assert is_transient(f"words\n(exit code {code})") is answer


def test_a_settled_stage_costs_no_process() -> None:
    outcome = run_stage(Stage("top", "top", (), True), True, pytest.fail, [])
    assert (outcome.stage, outcome.state, outcome.seconds) == ("top", "cached", 0.0)


# ---- failures ----

DVC_END = "ERROR: failed to reproduce 'x': failed to run: python x.py, exited with 3"
BEGIN = ["Running stage 'x':", "> python x.py"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [*BEGIN, "step 1", "error: no rows in a.json", "put some there", DVC_END],
            "error: no rows in a.json\nput some there\n(exit code 3)",
        ),
        (
            [*BEGIN, "step 1", "Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: no", DVC_END],
            'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no\n(exit code 3)',
        ),
        ([*BEGIN, *"abcdefg", DVC_END], "c\nd\ne\nf\ng\n(exit code 3)"),
        ([*BEGIN, DVC_END], f"{DVC_END}\n(exit code 3)"),
        (
            ["ERROR: failed to reproduce 'x': missing data 'source': a"],
            "ERROR: failed to reproduce 'x': missing data 'source': a\n(exit code 255)",
        ),
        ([], "(exit code 255)"),
    ],
)
def test_a_failure_is_told_in_the_stages_own_last_words(lines: list[str], message: str) -> None:
    assert describe_failure(lines, 255) == message


def test_a_long_traceback_keeps_its_end() -> None:
    lines = [*BEGIN, "Traceback (most recent call last):", *(f"  line {i}" for i in range(90)), "ValueError: no", DVC_END]
    told = describe_failure(lines, 255).splitlines()
    assert (told[0], told[-2:], len(told)) == ("…", ["ValueError: no", "(exit code 3)"], 17)


def test_dvcs_lock_is_told_as_another_process() -> None:
    lines = ["ERROR: failed to reproduce 'x': '/x' is busy, it is being blocked by:", "  (PID 12): dvc repro"]
    assert describe_failure(lines, 255).startswith("another DVC process works in this repository")
