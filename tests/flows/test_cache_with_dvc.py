"""Laws of the teacher cache as an output of a DVC stage (`persist: true`), on throw-away git and DVC repositories.

The stage's command hands over to a process that has torch loaded already and forks: the capture is a process of its own, which
DVC's death does not end.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dvc.cli
import dvc.commands.repro  # imported here, so that the forked children need not
import pytest
import yaml

from components.teacher_cache.format import read_manifest
from components.teacher_cache.shard_plan import CaptureSettings
from tests.components.teacher_cache.conftest import (
    capture,
    files,
    forwarded,
    identity_of,
    largest_shard,
    left_over,
    read_all,
    rows_twice,
)
from tests.conftest import Row, build_model, build_rows, end_of_child, start_child

SETTINGS = CaptureSettings(batch_tokens=60, shard_tokens=90)
ROWS = build_rows(100, seed=11)
MORE = [*ROWS[:50], *build_rows(1, seed=12), *ROWS[50:]]
DVC_YAML = f"""
stages:
  cache_teacher:
    cmd: {sys.executable} -I -S stage.py
    deps: [rows.json, stage.py]
    params: [tail_mass]
    outs:
      - cache:
          persist: true
"""
STAGE = """
import os, pathlib, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(os.environ["CAPTURE_SERVER"])
server.sendall(os.getcwd().encode())
code = server.recv(8)
if pathlib.Path("kill dvc").exists():
    os.unlink("kill dvc")
    os.killpg(0, signal.SIGKILL)
sys.exit(int(code or b"137"))
"""


# ---- the stage ----


def run_stage(folder: Path) -> None:
    """What flows.cache_teacher is here: rows and parameters from files. `mood` slows it down or makes it fail."""
    mood = json.loads((folder / "mood").read_text())
    rows = [Row(*row) for row in json.loads((folder / "rows.json").read_text())]
    (folder / "pid").write_text(str(os.getpid()))
    passes = 0

    def react() -> None:
        nonlocal passes
        passes += 1
        if passes == mood.get("fails_after"):
            raise OSError(28, "No space left on device")

    tail_mass = yaml.safe_load((folder / "params.yaml").read_text())["tail_mass"]
    capture(folder, rows, react=react, nap_seconds=mood.get("nap_seconds", 0.0), tail_mass=tail_mass, settings=SETTINGS)


def serve(listening: socket.socket) -> None:
    """A process for each stage; its exit code is the answer, none when it is killed."""
    signal.alarm(0)
    while True:
        connection, _ = listening.accept()
        folder = Path(connection.recv(4096).decode())
        if start_in_background(lambda folder=folder: run_stage(folder), connection) is None:
            connection.close()


def start_in_background(work: Callable[[], Any], connection: socket.socket) -> None:
    """Run `work` in a grandchild that nobody has to wait for, and answer with its exit code."""

    def middle() -> None:
        code = end_of_child(start_child(work))
        if code >= 0:
            connection.sendall(str(code).encode())

    start_child(middle)


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = Path(tempfile.mkdtemp())  # the name of a socket must be short
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "server"))
        listening.listen()
        patch.setenv("CAPTURE_SERVER", str(folder / "server"))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("DVC_GLOBAL_CONFIG_DIR", str(folder))
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site"))
        build_model()  # what it imports
        child = start_child(lambda: serve(listening))
        yield
        os.kill(child, signal.SIGKILL)
        end_of_child(child)
    shutil.rmtree(folder)


# ---- the repository ----


class Repository:
    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"

    def set(self, rows: Sequence[Row] = ROWS, tail_mass: float = 0.0, **mood: Any) -> None:
        self.rows, self.tail_mass = list(rows), tail_mass
        content = json.dumps([[row.input_ids, row.is_target] for row in rows])
        if not (self.folder / "rows.json").exists() or (self.folder / "rows.json").read_text() != content:
            (self.folder / "rows.json").write_text(content)
        (self.folder / "params.yaml").write_text(f"tail_mass: {tail_mass}\n")
        (self.folder / "mood").write_text(json.dumps(mood))

    def start(self, *words: str) -> int:
        """The id of a process, first of its group, that is `dvc` with these words."""

        def work() -> None:
            os.setsid()
            os.chdir(self.folder)
            out = os.open(self.folder / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os._exit(dvc.cli.main(list(words)))

        return start_child(work)

    def dvc(self, *words: str) -> int:
        return end_of_child(self.start(*words))

    def repro(self, *words: str) -> None:
        assert self.dvc("repro", *words) == 0, (self.folder / "out").read_text()

    def git(self, *words: str | Path) -> None:
        own = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *own, *map(str, words)], cwd=self.folder, check=True, capture_output=True)

    def kill_in_the_middle(self, num_rows: int) -> None:
        """Kill DVC and the capture once so many more rows have been forwarded."""
        end = time.monotonic() + 60
        before = forwarded(self.folder).total()
        process = self.start("repro")
        while forwarded(self.folder).total() < before + num_rows and time.monotonic() < end:
            time.sleep(0.01)
        os.killpg(process, signal.SIGKILL)
        os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
        assert end_of_child(process) == -signal.SIGKILL and time.monotonic() < end

    def newly_forwarded(self) -> int:
        """Rows that went through the teacher since this was asked last."""
        count = forwarded(self.folder).total()
        (self.folder / "notes").unlink(missing_ok=True)
        return count

    def tracked(self) -> dict[str, str]:
        """md5 of every file of the cache, as DVC has recorded it."""
        lock = yaml.safe_load((self.folder / "dvc.lock").read_text())
        md5 = lock["stages"]["cache_teacher"]["outs"][0]["md5"]
        listing = self.folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        return {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text())}

    def assert_is_right(self) -> None:
        """DVC thinks so, it is the cache of these rows and settings, and every object of DVC's is still what its name says."""
        assert read_manifest(self.cache).identity == identity_of(self.rows, tail_mass=self.tail_mass)
        read_all(self.cache, self.rows)
        assert {name: hashlib.md5(content).hexdigest() for name, content in files(self.cache).items()} == self.tracked()
        assert left_over(self.folder) == []
        for file in (self.folder / ".dvc" / "cache" / "files" / "md5").glob("??/*"):
            assert hashlib.md5(file.read_bytes()).hexdigest() == file.parent.name + file.name.removesuffix(".dir")


def make_repository(folder: Path, cache_type: str) -> Repository:
    folder.mkdir()
    repository = Repository(folder)
    repository.git("init", "-q")
    assert repository.dvc("init", "-q") == 0
    assert repository.dvc("config", "cache.type", cache_type) == 0
    for name, text in {"dvc.yaml": DVC_YAML, "stage.py": STAGE, ".dvcignore": ".work\n"}.items():
        (folder / name).write_text(text)
    (folder / ".gitignore").write_text("/.work/\n/mood\n/out\n/pid\n/notes\n/cache\n")
    repository.set()
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository", "copy")


@pytest.fixture
def made(repository: Repository) -> Repository:
    repository.repro()
    assert repository.newly_forwarded() == len(ROWS)
    return repository


def test_a_killed_repro_goes_on_with_the_same_command_to_the_same_bytes(repository: Repository, tmp_path: Path) -> None:
    repository.set(nap_seconds=0.02)
    repository.kill_in_the_middle(30)
    assert not repository.cache.exists()
    repository.kill_in_the_middle(20)
    repository.set()
    repository.repro()
    repository.assert_is_right()
    assert rows_twice(repository.folder) <= 2 * largest_shard(ROWS, SETTINGS)
    capture(tmp_path, ROWS, tail_mass=0.0, settings=SETTINGS)
    assert files(repository.cache) == files(tmp_path / "cache")


def test_dvc_killed_before_it_has_noted_the_finished_stage_costs_no_row(repository: Repository) -> None:
    (repository.folder / "kill dvc").touch()
    assert repository.dvc("repro") == -signal.SIGKILL
    assert repository.cache.exists() and not (repository.folder / "dvc.lock").exists()
    repository.repro()
    repository.assert_is_right()
    assert repository.newly_forwarded() == len(ROWS)


def test_a_forced_rerun_of_a_complete_cache_forwards_nothing(made: Repository) -> None:
    before = made.tracked()
    made.repro("-f")
    made.assert_is_right()
    assert (made.newly_forwarded(), made.tracked()) == (0, before)


@pytest.mark.parametrize("cache_type", ["copy", "hardlink", "symlink"])
def test_added_rows_alone_are_captured_and_dvc_keeps_the_old_shards_once(tmp_path: Path, cache_type: str) -> None:
    repository = make_repository(tmp_path / "repository", cache_type)
    repository.repro()
    repository.assert_is_right()
    assert repository.newly_forwarded() == len(ROWS)
    old = {name: md5 for name, md5 in repository.tracked().items() if name.startswith("shard-")}
    repository.set(MORE)
    repository.repro()
    repository.assert_is_right()
    assert repository.newly_forwarded() == len(MORE) - len(ROWS)
    new = {name: md5 for name, md5 in repository.tracked().items() if name.startswith("shard-")}
    assert len(old) > 4 and old.items() < new.items() and len(new) == len(old) + 1
    capture(repository.folder, ROWS, tail_mass=0.0, settings=SETTINGS)  # without DVC, on the files that it has linked
    assert repository.newly_forwarded() == 0
    repository.repro("-f")
    repository.assert_is_right()


def test_a_run_that_fails_or_is_killed_leaves_the_old_cache_as_it_was(made: Repository) -> None:
    old, laws = files(made.cache), read_all(made.cache, ROWS)
    rows = [*build_rows(60, seed=13), *ROWS]
    made.set(rows, fails_after=6)
    assert made.dvc("repro") != 0
    assert files(made.cache) == old and read_all(made.cache, ROWS) == laws
    made.set(rows, nap_seconds=0.02)
    made.kill_in_the_middle(12)
    assert files(made.cache) == old
    made.set(rows)
    made.repro()
    made.assert_is_right()
    assert len(forwarded(made.folder)) == 60 and rows_twice(made.folder) <= 2 * largest_shard(rows, SETTINGS)


def test_a_changed_setting_never_mixes_its_shards_with_those_of_the_old_one(made: Repository, tmp_path: Path) -> None:
    old = set(made.tracked())
    made.set(tail_mass=0.3, nap_seconds=0.02)
    made.kill_in_the_middle(30)
    assert set(files(made.cache)) == old
    made.set(tail_mass=0.3)
    made.repro()
    made.assert_is_right()
    assert {name for name in made.tracked() if name in old} == {"index.safetensors", "manifest.json"}
    capture(tmp_path, ROWS, tail_mass=0.3, settings=SETTINGS)
    assert files(made.cache) == files(tmp_path / "cache")


def test_a_clone_pulls_the_cache_reads_it_and_captures_only_what_it_adds(made: Repository, tmp_path: Path) -> None:
    assert made.dvc("remote", "add", "-d", "shelf", str(tmp_path / "shelf")) == 0
    made.git("add", ".")
    made.git("commit", "-qm", "cached")
    assert made.dvc("push") == 0
    made.git("clone", "-q", made.folder, tmp_path / "clone")
    clone = Repository(tmp_path / "clone")
    clone.set()
    assert clone.dvc("pull") == 0, (clone.folder / "out").read_text()
    clone.assert_is_right()
    assert files(clone.cache) == files(made.cache)
    clone.set(MORE)
    clone.repro()
    clone.assert_is_right()
    assert clone.newly_forwarded() == len(MORE) - len(ROWS)
    reader = read_all(clone.cache, ROWS)
    assert reader == read_all(made.cache, ROWS), "what was pulled is what is read"
