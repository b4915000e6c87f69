"""Laws of the graph, on a throw-away git and DVC repository: stages are DVC's, and none is called settled that DVC would run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import BallastError
from flows.dvc_graph import find_root, find_stage, list_names, read_stages
from flows.schedule import find_settled
from tests.flows.small_graph import DVC_YAML, ORDER


def reproduce_all() -> set[str]:
    """What `dvc repro` has run, or restored."""
    from dvc.repo import Repo

    with Repo() as dvc:
        return {stage.addressing for stage in dvc.reproduce()}


def addresses(*targets: str) -> list[str]:
    return [stage.address for stage in read_stages(targets)]


def test_stages_are_dvcs_matrix_cells_included_parents_first(graph: Path) -> None:
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
def test_a_target_brings_what_it_depends_on_and_no_more(graph: Path, targets: list[str], expected: set[str]) -> None:
    assert set(addresses(*targets)) == expected


def test_a_frozen_stage_brings_nothing(graph: Path) -> None:
    (graph / "dvc.yaml").write_text(DVC_YAML.replace("  compare:\n", "  compare:\n    frozen: true\n"))
    assert addresses("compare") == ["compare"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (DVC_YAML.replace("deps: [base]", "depps: [base]"), "dvc.yaml"),
        (DVC_YAML.replace("outs: [compared]", "outs: [base]"), "base"),
        ("stages: [", "dvc.yaml"),
    ],
)
def test_a_broken_dvc_yaml_is_one_clear_error(graph: Path, text: str, part: str) -> None:
    (graph / "dvc.yaml").write_text(text)
    with pytest.raises(BallastError, match=part):
        read_stages()


def test_an_unknown_target_is_named(graph: Path) -> None:
    with pytest.raises(BallastError, match="nope"):
        read_stages(["nope"])


def test_outside_a_dvc_repository_there_is_nothing_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BallastError, match="not inside of a DVC repository"):
        find_root()


def test_nothing_is_settled_before_the_first_run_and_all_after_it(graph: Path) -> None:
    assert find_settled(read_stages()) == set()
    reproduce_all()
    assert find_settled(read_stages()) == set(ORDER)


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda graph: (graph / name).write_text((graph / name).read_text().replace(old, new))


EDITS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a parameter of one cell": (edit("params.yaml", "b: 2", "b: 3"), {"prepare", "train@a", "alone"}),
    "the first input": (edit("source", "base", "case"), set()),
    "a command": (edit("dvc.yaml", "[:4]", "[:3]"), {"alone"}),
    "a new cell": (edit("params.yaml", "[a, b]\nsteps: {", "[a, b, c]\nsteps: {c: 3, "), set(ORDER)),
    "an output by hand": (edit("out-a", "BASE", "OTHER"), {"prepare", "train@b", "alone"}),
    "an output that is gone": (lambda graph: (graph / "base").unlink(), {"alone"}),
    "a last output that is gone": (lambda graph: (graph / "lone").unlink(), set(ORDER) - {"alone"}),
    "a lock file that is gone": (lambda graph: (graph / "dvc.lock").unlink(), set()),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_is_settled_is_what_dvc_would_skip(graph: Path, name: str) -> None:
    reproduce_all()
    apply, settled = EDITS[name]
    apply(graph)
    found = find_settled(read_stages())
    assert found == settled
    assert found.isdisjoint(reproduce_all())


def test_a_stage_that_always_runs_is_never_settled_nor_is_what_follows(graph: Path) -> None:
    (graph / "dvc.yaml").write_text(DVC_YAML.replace("  prepare:\n", "  prepare:\n    always_changed: true\n"))
    reproduce_all()
    assert find_settled(read_stages()) == {"alone"}


@pytest.mark.parametrize("address", ["train", "--force", "-h", "../x", "", "train@c", "prepare; true"])
def test_only_the_name_of_one_stage_finds_one(graph: Path, address: str) -> None:
    with pytest.raises(BallastError, match="is not one stage"):
        find_stage(address)
    assert find_stage("train@a").sections == ("steps",)


def test_the_names_are_those_of_stages_matrices_and_cells(graph: Path) -> None:
    assert list_names() == {*ORDER, "train"}
