"""Laws of stages on workers without a shared disk, on a throw-away repository with a bare git origin and two clones of it.

The DVC remote is a folder, or a bucket of a real S3 server (moto) on loopback.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from components.errors import BallastError
from flows.lock_entries import is_current, read_entries
from flows.remote_exchange import MAX_FILE_BYTES, send_work
from flows.remote_result import take_result
from flows.remote_work import do_work
from flows.warm_start import Process

ROOT = Path(__file__).resolve().parents[2]
DVC_YAML = f"""
vars:
  - python: {sys.executable} stage.py
stages:
  prepare:
    cmd: ${{python}} prepare artifacts/base
    deps: [source]
    params: [num_rows]
    outs:
      - artifacts/base
      - artifacts/unneeded
  note:
    cmd: ${{python}} note artifacts/note.json
    deps: [source]
    outs:
      - artifacts/note.json:
          cache: false
  train:
    matrix:
      name: [a, b]
    cmd: ${{python}} ${{item.name}} artifacts/model-${{item.name}}
    deps: [artifacts/base/rows, artifacts/note.json]
    params: [nap]
    outs:
      - artifacts/model-${{item.name}}
  report:
    cmd: ${{python}} report artifacts/report.html
    deps: [artifacts/base/rows, artifacts/note.json]
    params: [pad]
    outs:
      - artifacts/report.html
    metrics:
      - artifacts/metrics.json:
          cache: false
  cache_teacher:
    cmd: ${{python}} cache_teacher artifacts/cache
    deps: [artifacts/base, inputs/own]
    outs:
      - artifacts/cache:
          persist: true
"""
STAGE = """
import os, pathlib, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[2])
params = dict(line.split(": ") for line in open("params.yaml").read().splitlines())
out.parent.mkdir(parents=True, exist_ok=True)
print("hello from", name, "with", os.environ.get("AWS_SECRET_ACCESS_KEY", "no secret"))
with open(os.environ["RUNS"], "a") as runs:
    print(name, file=runs)
if name == "prepare":
    out.mkdir()
    (out / "rows").write_text("row" * 10_000 + params["num_rows"])
    (out / "manifest").write_text("30001 bytes")
    pathlib.Path("artifacts/unneeded").write_text("page" * 100_000)
elif name == "note":
    out.write_text('{"champion": "é"}\\\\r\\\\n')
else:
    kept = pathlib.Path(".work/step")
    if kept.exists():
        print("resumed at step", kept.read_text())
    if params["nap"] == name and not kept.exists():
        kept.write_text("7")
        time.sleep(120)
    out.write_text(name + open("artifacts/base/rows").read())
    if name == "report":
        pathlib.Path("artifacts/metrics.json").write_text("{}" + " " * int(params["pad"]))
""".replace("\\\\", "\\")
SECRET = "sesame-opens-the-bucket"


class Clones:
    """An origin, the dispatcher's clone `here`, workers' clones, and a list of what has run anywhere."""

    def __init__(self, folder: Path, remote: str, **settings: str) -> None:
        self.folder, self.remote, self.lines = folder, remote, list[str]()
        self.runs = folder / "runs"
        self.run("git", "init", "-q", "--bare", "-b", "main", str(folder / "origin.git"))
        self.here = self.clone("here")
        dvc = [sys.executable, "-m", "dvc"]
        self.run(*dvc, "init", "-q")
        self.run(*dvc, "remote", "add", "-q", "-d", "storage", remote)
        for name, value in settings.items():
            self.run(*dvc, "remote", "modify", "-q", "storage", name, value)
        files = {"dvc.yaml": DVC_YAML, "stage.py": STAGE, "source": "rows", ".gitignore": "/.work/\n/inputs/own/*\n/artifacts/\n"}
        for name, text in files.items():
            (self.here / name).write_text(text)
        (self.here / "inputs/own").mkdir(parents=True)
        (self.here / "inputs/own/.gitkeep").touch()
        self.run("git", "add", "-f", "inputs/own/.gitkeep")
        self.set()
        self.commit()
        self.run(*dvc, "repro", "-q", "prepare", "note")

    def run(self, *command: str, cwd: Path | None = None) -> str:
        where = cwd or (self.here if hasattr(self, "here") else self.folder)
        done = subprocess.run(command, cwd=where, env={**os.environ, "RUNS": str(self.runs)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def clone(self, name: str) -> Path:
        self.run("git", "clone", "-q", str(self.folder / "origin.git"), str(self.folder / name), cwd=self.folder)
        return self.folder / name

    def set(self, **params: object) -> None:
        values = {"nap": "none", "num_rows": 1, "pad": 0, **params}
        (self.here / "params.yaml").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))

    def commit(self, push: bool = True) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "-m", "work")
        if push:
            self.run("git", "push", "-q", "origin", "HEAD:main")

    def ran(self) -> list[str]:
        """What has run since the last call."""
        names = self.runs.read_text().split() if self.runs.exists() else []
        self.runs.unlink(missing_ok=True)
        return names

    def send(self, address: str = "train@a") -> dict[str, Any]:
        work = send_work(self.here, address, self.lines.append)
        json.dumps(work)
        return work

    def round_trip(self, worker: Path, address: str = "train@a") -> str:
        outcome, result = do_work(worker, address, json.loads(json.dumps(self.send(address))), self.lines.append)
        assert result, outcome.message
        taken = take_result(self.here, address, json.loads(json.dumps(result)), self.lines.append)
        assert taken.state == "ran", taken.message
        return outcome.state


@pytest.fixture(autouse=True, scope="module")
def without_a_server() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("DVC_NO_ANALYTICS", "1")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clones on a remote that is a folder, to be copied: all their paths are relative to the folder above them."""
    folder = tmp_path_factory.mktemp("exchange") / "made"
    folder.mkdir()
    Clones(folder, "../remote")
    return folder


def copy_clones(folder: Path, to: Path) -> Clones:
    """With all but git worktrees usable: every other path is relative."""
    shutil.copytree(folder, to, symlinks=True)
    copied = Clones.__new__(Clones)
    copied.folder, copied.here, copied.remote, copied.lines, copied.runs = to, to / "here", "../remote", [], to / "runs"
    copied.run("git", "remote", "set-url", "origin", str(to / "origin.git"))
    copied.ran()
    return copied


@pytest.fixture
def clones(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clones:
    """A copy, with nothing in the remote and a worker that has seen nothing."""
    copied = copy_clones(made, tmp_path / "clones")
    monkeypatch.setenv("RUNS", str(copied.runs))
    return copied


class Done(NamedTuple):
    clones: Clones
    worker: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def done(made: Path) -> Iterator[Done]:
    """Clones whose worker has run train@a; its result has not been taken."""
    clones = copy_clones(made, made.with_name("done"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS", str(clones.runs))
        worker = clones.clone("worker")
        assert not (worker / ".dvc/cache").exists()
        outcome, result = do_work(worker, "train@a", json.loads(json.dumps(clones.send())), clones.lines.append)
        assert (outcome.state, outcome.message, clones.ran()) == ("ran", "", ["a"])
        assert result
        yield Done(clones, worker, json.loads(json.dumps(result)))


WORKER = """
import json, sys
from pathlib import Path
from flows.remote_work import do_work
print(do_work(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), print)[0].state)
"""


def start_worker(worker: Path, address: str, work: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(worker), address, json.dumps(work)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def files_of(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


# ---- there and back ----


def test_a_stage_runs_in_a_clone_that_had_nothing_and_its_bytes_come_back(done: Done, tmp_path: Path) -> None:
    clones = copy_clones(done.clones.folder, tmp_path / "clones")
    outcome = take_result(clones.here, "train@a", done.result, clones.lines.append)
    assert (outcome.state, outcome.message) == ("ran", "")
    (checkout,) = (done.worker / ".work/checkouts").glob("*/")
    model = (clones.here / "artifacts/model-a").read_bytes()
    assert model == b"a" + b"row" * 10_000 + b"1" == (checkout / "artifacts/model-a").read_bytes()
    assert (checkout / "artifacts/note.json").read_bytes() == '{"champion": "é"}\r\n'.encode()
    assert is_current(clones.here, "train@a") and not is_current(clones.here, "train@b")
    assert set(read_entries(clones.here)) == {"prepare", "note", "train@a"}


def test_only_what_the_stage_depends_on_is_pulled_and_the_clone_s_own_tree_stays_as_it_was(done: Done) -> None:
    (checkout,) = (done.worker / ".work/checkouts").glob("*/")
    assert files_of(checkout / "artifacts") == {"base/rows", "base/manifest", "note.json", "model-a"}
    assert not (done.worker / "artifacts").exists() and not (done.worker / "dvc.lock").exists()
    assert done.clones.run("git", "status", "--porcelain", cwd=done.worker) == ""


def test_the_second_time_nothing_runs_and_another_worker_takes_it_from_the_run_cache(done: Done) -> None:
    work = done.clones.send()
    for worker in (done.worker, done.clones.clone("second-worker")):
        outcome, result = do_work(worker, "train@a", work, done.clones.lines.append)
        assert (outcome.state, result) == ("cached", done.result)
    assert done.clones.ran() == []


def test_a_stage_that_the_run_cache_cannot_hold_travels_by_its_entry(clones: Clones) -> None:
    assert clones.round_trip(clones.clone("worker"), "cache_teacher") == "ran"
    assert is_current(clones.here, "cache_teacher")
    assert (clones.here / "artifacts/cache").read_text().startswith("cache_teacherrow")


def test_two_cells_run_in_one_checkout_at_once(clones: Clones) -> None:
    worker = clones.clone("worker")
    start = [start_worker(worker, cell, clones.send(cell)) for cell in ("train@a", "train@b")]
    outs = [process.communicate()[0] for process in start]
    assert [out.split()[-1] for out in outs] == ["ran", "ran"], outs
    (checkout,) = (worker / ".work/checkouts").glob("*/")
    assert {"train@a", "train@b"} <= set(read_entries(checkout))


def test_a_worker_killed_in_the_stage_leaves_no_orphan_and_goes_on_in_the_same_checkout(clones: Clones) -> None:
    clones.set(nap="a")
    clones.commit()
    worker, work = clones.clone("worker"), clones.send()
    killed = start_worker(worker, "train@a", work)
    end = time.monotonic() + 60
    while not list((worker / ".work/checkouts").glob("*/.work/step")) and time.monotonic() < end:
        time.sleep(0.1)
    descendants = [process.pid for process in psutil.Process(killed.pid).children(recursive=True)]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    outcome, result = do_work(worker, "train@a", work, clones.lines.append)
    assert (outcome.state, outcome.message) == ("ran", "") and result
    assert "resumed at step 7" in clones.lines
    assert not any(Process.find(pid) for pid in descendants)
    assert clones.ran() == ["a", "a"]
    assert len(list((worker / ".work/checkouts").glob("*/"))) == 1


# ---- what is refused ----


def test_without_a_remote_there_is_no_exchange(clones: Clones) -> None:
    clones.run(sys.executable, "-m", "dvc", "remote", "remove", "storage")
    with pytest.raises(BallastError, match=r"no DVC remote .*dvc remote add -d storage"):
        clones.send()


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_a_tracked_file_that_changed_since_the_commit_is_named(clones: Clones, name: str) -> None:
    with (clones.here / name).open("a") as file:
        file.write("# edited\n")
    with pytest.raises(BallastError, match=rf"^{name} changed since the commit, .*git commit {name} && git push"):
        clones.send()


def test_what_the_stage_does_not_depend_on_may_change(clones: Clones) -> None:
    (clones.here / "source").write_text("other rows")
    (clones.here / "notes.txt").write_text("mine")
    assert clones.send()


def test_a_commit_that_was_not_pushed_is_refused_here(clones: Clones) -> None:
    clones.set(nap="nobody")
    clones.commit(push=False)
    with pytest.raises(BallastError, match=r"is not on the git remote `origin`.*git push origin HEAD"):
        clones.send()


def test_a_commit_that_cannot_be_had_is_refused_by_the_worker(clones: Clones) -> None:
    work = {**clones.send(), "commit": "0123456789" * 4}
    outcome, result = do_work(clones.clone("worker"), "train@a", work, clones.lines.append)
    assert (outcome.state, result) == ("failed", None)
    assert outcome.message.startswith(f"commit {work['commit']} is not to be had") and "git push origin HEAD" in outcome.message


def test_an_input_of_the_user_s_that_nobody_tracks_is_named_and_travels_once_dvc_tracks_it(clones: Clones) -> None:
    (clones.here / "inputs/own/laws.txt").write_text("laws")
    with pytest.raises(
        BallastError, match=r"inputs/own/laws.txt, neither in git nor tracked by DVC.*dvc add inputs/own"
    ) as refused:
        clones.send("cache_teacher")
    commands = str(refused.value).split("Let DVC track it: ")[1].split(", then")[0]
    clones.run("bash", "-c", f'PATH="{Path(sys.executable).parent}:$PATH"; {commands}')
    clones.commit()
    worker = clones.clone("worker")
    assert clones.round_trip(worker, "cache_teacher") == "ran"
    (checkout,) = (worker / ".work/checkouts").glob("*/")
    assert (checkout / "inputs/own/laws.txt").read_text() == "laws"


def test_a_parent_s_output_that_is_not_in_the_cache_or_not_as_recorded_is_refused(clones: Clones) -> None:
    rows = clones.here / "artifacts/base/rows"
    rows.chmod(0o644)
    rows.write_text("edited")
    with pytest.raises(BallastError, match=r"artifacts/base is not what dvc.lock says.*dvc checkout artifacts/base"):
        clones.send()
    shutil.rmtree(clones.here / ".dvc/cache/files")
    shutil.rmtree(clones.here / "artifacts/base")
    with pytest.raises(BallastError, match=r"artifacts/base is not whole in DVC's cache.*dvc repro -f prepare"):
        clones.send()


def test_a_parent_that_never_ran_is_refused(clones: Clones) -> None:
    (clones.here / "dvc.lock").unlink()
    with pytest.raises(BallastError, match=r"prepare has never run here; run it: dvc repro prepare"):
        clones.send()


def test_an_uncached_output_travels_if_it_is_small(clones: Clones) -> None:
    (clones.here / "artifacts/note.json").write_text("x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(BallastError, match=rf"artifacts/note.json has {MAX_FILE_BYTES + 1} bytes .*route"):
        clones.send()
    (clones.here / "artifacts/note.json").write_bytes(b"\xff")
    with pytest.raises(BallastError, match=r"artifacts/note.json is no text"):
        clones.send()


def test_a_small_uncached_output_of_the_stage_itself_comes_back_and_a_large_one_is_told(clones: Clones) -> None:
    worker = clones.clone("worker")
    assert clones.round_trip(worker, "report") == "ran"
    assert (clones.here / "artifacts/metrics.json").read_text() == "{}"
    assert is_current(clones.here, "report")
    clones.set(pad=MAX_FILE_BYTES)
    clones.commit()
    outcome, result = do_work(worker, "report", clones.send("report"), clones.lines.append)
    assert (outcome.state, result) == ("failed", None)
    assert f"artifacts/metrics.json has {MAX_FILE_BYTES + 2} bytes" in outcome.message


def test_work_that_names_strange_files_is_refused(clones: Clones) -> None:
    work = clones.send()
    worker = clones.clone("worker")
    outcome, result = do_work(worker, "train@a", {**work, "files": {"../../../evil": "x"}}, clones.lines.append)
    assert (outcome.state, result) == ("failed", None) and "../../../evil" in outcome.message
    assert not list(clones.folder.rglob("evil"))


# ---- damage ----


@pytest.mark.parametrize("damage", ["missing", "wrong"])
def test_a_result_that_the_remote_does_not_have_leaves_dvc_lock_as_it_was(done: Done, tmp_path: Path, damage: str) -> None:
    clones = copy_clones(done.clones.folder, tmp_path / "clones")
    (out,) = (out for out in done.result["entry"]["outs"] if out["path"] == "artifacts/model-a")
    stored = clones.folder / "remote/files/md5" / out["md5"][:2] / out["md5"][2:]
    stored.chmod(0o644)
    stored.unlink() if damage == "missing" else stored.write_bytes(b"b" + stored.read_bytes()[1:])
    before = (clones.here / "dvc.lock").read_bytes()
    outcome = take_result(clones.here, "train@a", done.result, clones.lines.append)
    assert outcome.state == "failed" and "missing or damaged in the DVC remote storage" in outcome.message
    assert (clones.here / "dvc.lock").read_bytes() == before
    assert not (clones.here / "artifacts/model-a").exists()
    assert not is_current(clones.here, "train@a")


def test_a_result_for_other_params_leaves_dvc_lock_as_it_was(done: Done, tmp_path: Path) -> None:
    clones = copy_clones(done.clones.folder, tmp_path / "clones")
    clones.set(nap="b")
    before = (clones.here / "dvc.lock").read_bytes()
    outcome = take_result(clones.here, "train@a", done.result, clones.lines.append)
    assert outcome.state == "failed" and "does not fit what is here now" in outcome.message and "params.yaml" in outcome.message
    assert (clones.here / "dvc.lock").read_bytes() == before


# ---- S3 ----


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server on loopback, with a bucket; credentials are in the environment only."""
    from moto.server import ThreadedMotoServer

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environ = {"AWS_ACCESS_KEY_ID": "key-of-the-test", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**environ, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        import boto3

        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="ballast")
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def test_the_same_through_s3_with_credentials_from_the_environment_that_nothing_keeps(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    clones = Clones(tmp_path, "s3://ballast/store", endpointurl=bucket)
    worker = clones.clone("worker")
    clones.ran()
    assert clones.round_trip(worker) == "ran"
    assert clones.round_trip(clones.clone("second-worker")) == "cached"
    assert clones.ran() == ["a"]
    assert (clones.here / "artifacts/model-a").read_bytes().startswith(b"arow")
    assert "hello from a with ***" in clones.lines
    assert not any(SECRET in line or "key-of-the-test" in line for line in clones.lines)
    kept = [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert kept == []

    work = clones.send()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    outcome, result = do_work(clones.clone("third-worker"), "train@b", work, clones.lines.append)
    assert (outcome.state, result) == ("failed", None)
    assert "credentials" in outcome.message.lower(), outcome.message
