"""Fixtures of the tests that run the pipeline: a toy repository, and one Prefect server for all of them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.small_graph import make_graph
from tests.flows.toy_pipeline import Repository, make_repository
from tests.prefect_server import prefect_server


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return make_repository(tmp_path / "fresh", monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A repository where everything is up to date; to be copied."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        repository = make_repository(tmp_path_factory.mktemp("pipeline") / "finished", monkeypatch)
        code, out = repository.run()
        assert code == 0, out
        repository.first_output = out  # type: ignore[attr-defined]
        yield repository


@pytest.fixture
def repo(finished: Repository, tmp_path: Path) -> Repository:
    shutil.copytree(finished.root, tmp_path / "copy")
    return Repository(tmp_path / "copy")


@pytest.fixture(scope="session")
def api_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a real server on loopback, which ends with the tests."""
    with prefect_server(tmp_path_factory.mktemp("prefect-server")) as url:
        yield url


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small graph that has never run; the current folder."""
    return make_graph(tmp_path, monkeypatch)
