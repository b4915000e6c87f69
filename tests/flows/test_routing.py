"""Laws of the routing table: what is named runs there, a cell before its stage, everything else here."""

from pathlib import Path

import pytest

from components.errors import ParamsError
from flows.dvc_graph import Stage
from flows.routing import num_gpus, read_routing

TABLE = """
routing:
  num_at_once_here: 3
  pools: {gpu: {num_at_once: 4}, far: {disk: remote}}
  stages: {train: gpu, train@b: far, look: here}
launch: {num_processes: 8}
"""


def stage(address: str, *sections: str) -> Stage:
    return Stage(address, address.partition("@")[0], (), False, sections)


def test_a_cell_goes_before_its_stage_and_what_is_not_named_runs_here(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TABLE)
    routing = read_routing(tmp_path)
    pools = [routing.pool_of(stage(address)) for address in ("train@a", "train@b", "look", "other")]
    assert pools == ["gpu", "far", "here", "here"]
    assert [routing.num_at_once(pool) for pool in ("here", "gpu", "far")] == [3, 4, 1]
    assert (routing.is_remote("far"), routing.is_remote("gpu")) == (True, False)
    assert read_routing(tmp_path, here=True).pool_of(stage("train@a")) == "here"


def test_without_a_table_everything_runs_here_one_by_one(tmp_path: Path) -> None:
    routing = read_routing(tmp_path)
    assert (routing.pool_of(stage("train@a")), routing.num_at_once("here")) == ("here", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("routing: {stages: {train: moon}}", "routing.*moon is not one of the pools"),
        ("routing: {pools: {gpu: {disk: tape}}}", r"routing.pools.gpu.disk.*'tape'"),
        ("routing: {pools: {GPU_1: {}}}", r"routing.pools"),
        ("routing: {stages: {--force: here}}", r"routing.stages"),
        ("routing: {num_at_once_here: 0}", r"routing.num_at_once_here.*0"),
        ("routing: [", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message):
        read_routing(tmp_path)


def test_a_stage_works_on_gpus_if_it_takes_compute_and_on_as_many_as_it_launches(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TABLE)
    assert num_gpus(stage("report"), tmp_path) == 0
    assert num_gpus(stage("evaluate", "compute"), tmp_path) == 1
    assert num_gpus(stage("train", "compute", "launch"), tmp_path) == 8
