"""Laws of the graph, on a throw-away git and DVC repository: stages are DVC's, and none is called settled that DVC would run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import BallastError
from flows.dvc_graph import Outcome, Stage, find_root, read_stages
from flows.dvc_stage import describe_failure, reproduce, run_stage
from flows.pipeline_lock import hold_lock
from flows.schedule import find_settled, run_stages, summarise

DVC_YAML = f"""
vars: [{{python: {sys.executable}}}]
stages:
  compare:
    cmd: ${{python}} -c "open('compared', 'w').write(open('out-a').read() + open('out-b').read())"
    deps: [out-a, out-b]
    outs: [compared]
  train:
    matrix:
      name: ${{names}}
    cmd: ${{python}} -c "open('out-${{item.name}}', 'w').write(open('base').read().upper() + '${{item.name}}')"
    deps: [base]
    params:
      - steps.${{item.name}}
    outs:
      - out-${{item.name}}
  prepare:
    cmd: ${{python}} -c "open('base', 'w').write(open('source').read()[:4])"
    deps: [source]
    outs: [base]
  alone:
    cmd: ${{python}} -c "open('lone', 'w').write('x')"
    deps: [source]
    outs: [lone]
"""
PARAMS = "names: [a, b]\nsteps: {a: 1, b: 2}\n"
ORDER = ["prepare", "train@a", "train@b", "compare", "alone"]


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    subprocess.run(["git", "init", "-q"], check=True)
    Repo.init().close()
    for name, text in {"dvc.yaml": DVC_YAML, "params.yaml": PARAMS, "source": "base and more"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def reproduce_all() -> set[str]:
    """What `dvc repro` has run, or restored."""
    from dvc.repo import Repo

    with Repo() as dvc:
        return {stage.addressing for stage in dvc.reproduce()}


def addresses(*targets: str) -> list[str]:
    return [stage.address for stage in read_stages(targets)]


def test_stages_are_dvcs_matrix_cells_included_parents_first(repo: Path) -> None:
    stages = {stage.address: stage for stage in read_stages()}
    order = list(stages)
    assert sorted(order) == sorted(ORDER)
    assert all(order.index(parent) < order.index(stage.address) for stage in stages.values() for parent in stage.parents)
    assert set(stages["compare"].parents) == {"train@a", "train@b"}
    assert (stages["train@a"].name, stages["train@a"].parents) == ("train", ("prepare",))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["prepare"], {"prepare"}),
        (["train"], {"prepare", "train@a", "train@b"}),
        (["train@b", "alone"], {"prepare", "train@b", "alone"}),
        (["compare"], {"prepare", "train@a", "train@b", "compare"}),
    ],
)
def test_a_target_brings_what_it_depends_on_and_no_more(repo: Path, targets: list[str], expected: set[str]) -> None:
    assert set(addresses(*targets)) == expected


def test_a_frozen_stage_brings_nothing(repo: Path) -> None:
    (repo / "dvc.yaml").write_text(DVC_YAML.replace("  compare:\n", "  compare:\n    frozen: true\n"))
    assert addresses("compare") == ["compare"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (DVC_YAML.replace("deps: [base]", "depps: [base]"), "dvc.yaml"),
        (DVC_YAML.replace("outs: [compared]", "outs: [base]"), "base"),
        ("stages: [", "dvc.yaml"),
    ],
)
def test_a_broken_dvc_yaml_is_one_clear_error(repo: Path, text: str, part: str) -> None:
    (repo / "dvc.yaml").write_text(text)
    with pytest.raises(BallastError, match=part):
        read_stages()


def test_an_unknown_target_is_named(repo: Path) -> None:
    with pytest.raises(BallastError, match="nope"):
        read_stages(["nope"])


def test_outside_a_dvc_repository_there_is_nothing_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BallastError, match="not inside of a DVC repository"):
        find_root()


def test_nothing_is_settled_before_the_first_run_and_all_after_it(repo: Path) -> None:
    assert find_settled(read_stages()) == set()
    reproduce_all()
    assert find_settled(read_stages()) == set(ORDER)


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda repo: (repo / name).write_text((repo / name).read_text().replace(old, new))


EDITS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a parameter of one cell": (edit("params.yaml", "b: 2", "b: 3"), {"prepare", "train@a", "alone"}),
    "the first input": (edit("source", "base", "case"), set()),
    "a command": (edit("dvc.yaml", "[:4]", "[:3]"), {"alone"}),
    "a new cell": (edit("params.yaml", "[a, b]\nsteps: {", "[a, b, c]\nsteps: {c: 3, "), set(ORDER)),
    "an output by hand": (edit("out-a", "BASE", "OTHER"), {"prepare", "train@b", "alone"}),
    "an output that is gone": (lambda repo: (repo / "base").unlink(), {"alone"}),
    "a last output that is gone": (lambda repo: (repo / "lone").unlink(), set(ORDER) - {"alone"}),
    "a lock file that is gone": (lambda repo: (repo / "dvc.lock").unlink(), set()),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_is_settled_is_what_dvc_would_skip(repo: Path, name: str) -> None:
    reproduce_all()
    apply, settled = EDITS[name]
    apply(repo)
    found = find_settled(read_stages())
    assert found == settled
    assert found.isdisjoint(reproduce_all())


def test_a_stage_that_always_runs_is_never_settled_nor_is_what_follows(repo: Path) -> None:
    (repo / "dvc.yaml").write_text(DVC_YAML.replace("  prepare:\n", "  prepare:\n    always_changed: true\n"))
    reproduce_all()
    assert find_settled(read_stages()) == {"alone"}


def test_dvc_decides_and_its_decision_comes_back(repo: Path) -> None:
    lines: list[str] = []
    assert reproduce("prepare", lines.append) == ("ran", "")
    assert "Running stage 'prepare':" in lines
    assert reproduce("prepare", lines.append)[0] == "cached"
    (repo / "dvc.lock").unlink()
    state, message = reproduce("prepare", lines.append)
    assert (state, "run cache" in message) == ("cached", True)
    (repo / "source").unlink()
    state, message = reproduce("prepare", lines.append)
    assert (state, "source" in message) == ("failed", True)


def test_a_stage_sees_nothing_of_prefect(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://localhost:1/api")
    script = "import os; print('found', [name for name in os.environ if name.startswith('PREFECT')])"
    (repo / "dvc.yaml").write_text(f'stages:\n  look:\n    cmd: {sys.executable} -c "{script}"\n')
    lines: list[str] = []
    assert reproduce("look", lines.append) == ("ran", "")
    assert "found []" in lines


# ---- the walk, without DVC ----

DIAMOND = [
    Stage("top", "top", (), True),
    Stage("left", "left", ("top",), False),
    Stage("right", "right", ("top",), True),
    Stage("bottom", "bottom", ("left", "right"), True),
    Stage("alone", "alone", (), False),
]


def walk(stages: list[Stage], failing: str = "") -> tuple[list[str], dict[str, str]]:
    asked: list[str] = []

    def run(stage: Stage, is_settled: bool) -> Outcome:
        asked.append(f"{stage.address} settled" if is_settled else stage.address)
        return Outcome(stage.address, "failed" if stage.address == failing else "ran")

    return asked, {outcome.stage: outcome.state for outcome in run_stages(stages, run)}


def test_what_is_settled_comes_first_and_what_follows_a_change_is_asked_anew() -> None:
    asked, _ = walk(DIAMOND)
    assert asked == ["top settled", "right settled", "left", "bottom", "alone"]


def test_a_failed_stage_stops_its_descendants_and_nothing_else() -> None:
    asked, states = walk(DIAMOND, failing="left")
    assert "bottom" not in asked
    assert states == {"top": "ran", "left": "failed", "right": "ran", "bottom": "not reached", "alone": "ran"}


def test_a_settled_stage_costs_no_process() -> None:
    outcome = run_stage(DIAMOND[0], True, pytest.fail, -1)
    assert (outcome.stage, outcome.state, outcome.seconds) == ("top", "cached", 0.0)


def test_the_summary_counts_and_quotes() -> None:
    outcomes = [Outcome("a", "ran"), Outcome("b", "failed", 1.0, "error: no"), Outcome("c", "not reached")]
    assert summarise(outcomes) == "1 ran, 1 failed, 1 not reached\nb failed: error: no"


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


# ---- one at a time ----


def test_a_second_pipeline_is_refused_and_told_whom_it_waits_for(tmp_path: Path) -> None:
    with hold_lock(tmp_path), pytest.raises(BallastError, match=rf"another pipeline \(pid {os.getpid()}\)"), hold_lock(tmp_path):
        pass
    with hold_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_pipeline_whose_stage_still_ends_is_told_apart(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with hold_lock(tmp_path) as lock:
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(gone.pid).encode(), 0)
        with pytest.raises(BallastError, match="was killed"), hold_lock(tmp_path):
            pass
