"""Laws of the warm start, with real processes: a warm stage is a cold stage, and nothing outlives its owner.

The server imports two tiny modules here instead of torch and its kin; `dvc` is a script of that name that runs what it is told,
and once the real one. The project is a copy, so that stages, and the server's grace, can be edited.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.warm_start import Process, _is_dvc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a warm start needs Linux")

ROOT = Path(__file__).resolve().parents[2]
GRACE = "CLIENT_GONE_GRACE_SECONDS, OWNER_GONE_GRACE_SECONDS = 10.0, 1.0"
FAKE_DVC = """
import json, subprocess, sys
stages = []
for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        code = stages[request["wait"]].wait()
        print(code if code >= 0 else 128 - code, flush=True)
    else:
        streams = {name: open(path, mode) for name, path, mode in request.pop("files")}
        stages.append(subprocess.Popen(**request, **streams))
        print(stages[-1].pid, flush=True)
"""
STAGE = """
import sys
from flows.warm_start import die_with_parent, run_warm
if __name__ == "__main__":
    if (code := run_warm("flows.stage", sys.argv[1:])) is not None:
        sys.exit(code)
    die_with_parent()
import os
IS_WARM = os.environ.get("BALLAST_WARM_CHILD") == str(os.getpid())
exec(sys.argv[1])
"""


class Project:
    """A copy of the warm start, a stage that runs the code it is given, and a `dvc` to run it below."""

    def __init__(self, root: Path) -> None:
        self.root, self.temporary = root, root / "tmp"
        (root / "flows").mkdir(parents=True)
        self.temporary.mkdir()
        for name in ("__init__.py", "warm_start.py", "warm_server.py", "warm_child.py"):
            shutil.copy(ROOT / "flows" / name, root / "flows" / name)
        server = (root / "flows/warm_server.py").read_text()
        assert GRACE in server
        (root / "flows/warm_server.py").write_text(server.replace(GRACE, GRACE.replace("10.0", "1.0")))
        (root / "flows/stage.py").write_text(STAGE)
        (root / "own_part.py").write_text("VALUE = 'first'\n")
        (root / "dvc").write_text(FAKE_DVC)
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("BALLAST_", "DVC_", "PYTHON"))},
            "DVC_ROOT": str(root),
            "TMPDIR": str(self.temporary),
            "BALLAST_WARM_PRELOAD": "colorsys own_part no_such_library",
        }

    def log(self) -> str:
        return "".join(path.read_text() for path in self.temporary.glob("ballast-*/*.log"))


class Dvc:
    """The fake `dvc` process and the stages below it."""

    def __init__(self, project: Project, **environ: str) -> None:
        self.project = project
        self.num_stages = 0
        self.process = subprocess.Popen(
            [sys.executable, str(project.root / "dvc"), "repro"],
            cwd=project.root,
            env={**project.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(
        self,
        code: str,
        *,
        before: Sequence[str] = (),
        is_cold: bool = False,
        both: bool = False,
        umask: int = -1,
        **environ: str,
    ) -> "Stage":
        number, self.num_stages = self.num_stages, self.num_stages + 1
        out, err = self.project.root / f"{number}.out", self.project.root / f"{number}.err"
        switch = {"BALLAST_WARM_START": "0"} if is_cold else {}
        for left in (out, err):
            left.unlink(missing_ok=True)  # of an earlier dvc in the same project
        pid = self.ask(
            {
                "args": [*before, sys.executable, "-m", "flows.stage", code, "argument"],
                "umask": umask,
                "env": {**self.project.environ, **environ, **switch},
                "files": [("stdout", str(out), "a"), ("stderr", str(out if both else err), "a")],
            }
        )
        return Stage(self, number, pid, out, err)

    def run(self, code: str, **options: Any) -> "Stage":
        stage = self.start(code, **options)
        stage.wait()
        return stage

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Stage:
    def __init__(self, dvc: Dvc, number: int, pid: int, out: Path, err: Path) -> None:
        self.dvc, self.number, self.pid, self._out, self._err = dvc, number, pid, out, err
        self.code = -1

    def wait(self) -> int:
        self.code = self.dvc.ask({"wait": self.number})
        return self.code

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()


def until(is_so: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.02)
    return bool(is_so())


def is_gone(pid: int) -> bool:
    return Process.find(pid) is None


@pytest.fixture
def project() -> Iterator[Project]:
    folder = tempfile.mkdtemp(prefix="warm-")  # tmp_path is too long for a socket
    yield Project(Path(folder))
    shutil.rmtree(folder)


@pytest.fixture
def dvc(project: Project) -> Iterator[Dvc]:
    dvc = Dvc(project)
    yield dvc
    dvc.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Dvc]:
    """One server for all tests that leave it as it is."""
    folder = tempfile.mkdtemp(prefix="warm-")
    dvc = Dvc(Project(Path(folder)))
    preload = f"{dvc.project.environ['BALLAST_WARM_PRELOAD']} numpy.random"  # brings OpenBLAS and its threads
    assert dvc.run("print(IS_WARM)", BALLAST_WARM_PRELOAD=preload).out == "True\n"
    yield dvc
    dvc.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "code",
    [
        "print('fine')",
        "sys.exit(3)",
        "sys.exit(143)",
        "sys.exit(-1)",
        "sys.exit('no such cell')",
        "print('before'); raise ValueError('wrong')",
        "raise KeyboardInterrupt",
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 15)",
        "print('lost?', end=''); os._exit(5)",
        "import atexit; atexit.register(print, 'goodbye'); print('hello', end=' ')",
        "import threading, time; threading.Timer(0.1, print, ['thread']).start(); print('main')",
        "print(__name__, sys.argv, __spec__.name, sys.path[0], sys.modules['__main__'].__file__)",
        "import signal; print([signal.getsignal(n) for n in (2, 15, 1, 13, 17, 14)])",
        "import own_part, logging; logging.warning(own_part.VALUE)",
    ],
)
def test_a_warm_stage_ends_and_prints_like_a_cold_one(shared: Dvc, code: str) -> None:
    cold, warm = shared.run(code, is_cold=True), shared.run(f"assert IS_WARM; {code}")
    assert (warm.code, warm.out.replace("assert IS_WARM; ", "")) == (cold.code, cold.out)
    assert warm.err.splitlines()[-1:] == cold.err.splitlines()[-1:]
    assert "warm_" not in warm.err  # no frame of ours in a traceback


def test_a_file_that_was_left_open_is_written(shared: Dvc) -> None:
    target = shared.project.root / "open.txt"
    assert shared.run(f"assert IS_WARM; sys.kept = open({str(target)!r}, 'w'); sys.kept.write('all of it')").code == 0
    assert target.read_text() == "all of it"


def test_output_and_errors_stay_apart_and_in_order(shared: Dvc) -> None:
    code = "assert IS_WARM\nfor i in range(3): print('out', i); print('err', i, file=sys.stderr)"
    apart, together = shared.run(code), shared.run(code, both=True)
    assert (apart.out, apart.err) == ("out 0\nout 1\nout 2\n", "err 0\nerr 1\nerr 2\n")
    assert together.out == "out 0\nerr 0\nout 1\nerr 1\nout 2\nerr 2\n"


def test_environment_folder_and_umask_are_the_stages_own(shared: Dvc) -> None:
    code = "print(IS_WARM, os.getcwd(), os.environ.get('BALLAST_CELL'), os.environ.get('DO_NOT_TRACK'), os.umask(0))"
    setting = os.environ.get("DO_NOT_TRACK")  # which the server has set for its imports
    assert shared.run(code, BALLAST_CELL="sft-1", umask=0o27).out == f"True {shared.project.root} sft-1 {setting} {0o27}\n"
    assert shared.run(code, umask=0o22).out == f"True {shared.project.root} None {setting} {0o22}\n"


def test_libraries_are_loaded_and_our_own_modules_are_not(shared: Dvc) -> None:
    names = "('colorsys', 'own_part', 'flows.warm_server', 'flows.warm_child')"
    assert shared.run(f"print(*[name in sys.modules for name in {names}])").out == "True False False False\n"
    assert "skipped no_such_library" in shared.project.log()


def test_an_edit_takes_effect_in_the_next_stage(shared: Dvc) -> None:
    code = "import own_part; assert IS_WARM; print(own_part.VALUE)"
    assert shared.run(code).out == "first\n"
    (shared.project.root / "own_part.py").write_text("VALUE = 'second'\n")
    assert shared.run(code).out == "second\n"
    (shared.project.root / "own_part.py").write_text("VALUE = 'first'\n")


@pytest.mark.parametrize("generator", ["random", "numpy.random"])
def test_two_stages_draw_different_numbers(shared: Dvc, generator: str) -> None:
    code = f"import {generator}; assert IS_WARM; print({generator}.random())"
    one, other = shared.run(code), shared.run(code)
    assert (one.code, other.code) == (0, 0)
    assert one.out != other.out


def test_two_stages_run_at_once(shared: Dvc) -> None:
    meet = """
import time
open(f"met-{os.getpid()}", "w")
while sum(name.startswith("met-") for name in os.listdir()) < 2: time.sleep(.01)
print(IS_WARM)
"""
    one, other = shared.start(meet), shared.start(meet)
    assert (one.wait(), one.out, other.wait(), other.out) == (0, "True\n", 0, "True\n")


def test_two_first_stages_share_one_server(dvc: Dvc) -> None:
    one, other = dvc.start("print(os.getppid())"), dvc.start("print(os.getppid())")
    assert (one.wait(), other.wait()) == (0, 0)
    assert one.out == other.out or dvc.process.pid in (int(one.out), int(other.out))  # between bind and listen: cold
    assert dvc.project.log().count("ready") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_client_reaches_the_stage_and_its_code_comes_back(shared: Dvc, number: int) -> None:
    handler = f"import signal, time; signal.signal({number:d}, lambda n, frame: sys.exit(100 + n))"
    stage = shared.start(f"{handler}; print(IS_WARM, flush=True); time.sleep(60)")
    assert until(lambda: stage.out == "True\n", 10)
    os.kill(stage.pid, number)
    assert stage.wait() == 100 + number


def test_a_killed_client_takes_its_stage_along(shared: Dvc) -> None:
    """Also one that ignores SIGTERM (after the grace, which is 10 s outside this test), and what it has started."""
    deaf = shared.start(
        "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN); child = subprocess.Popen(['sleep', '60'])\n"
        "print(os.getpid(), child.pid); time.sleep(60)"
    )
    polite = shared.start("import time; print(os.getpid()); time.sleep(60)")
    assert until(lambda: deaf.out and polite.out, 10)
    os.kill(deaf.pid, signal.SIGKILL)
    os.kill(polite.pid, signal.SIGKILL)
    assert until(lambda: is_gone(int(polite.out)), 5)
    assert until(lambda: all(is_gone(int(pid)) for pid in deaf.out.split()), 8)


def test_when_dvc_is_gone_nothing_is_left(dvc: Dvc) -> None:
    """Not even a stage that ignores SIGTERM, nor what a shell has started. The next server removes the log."""
    report = "import signal, time; print(os.getpid(), os.getppid(), IS_WARM, flush=True); time.sleep(60)"
    shell = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
    warm, cold = dvc.start(report, before=shell), dvc.start(report, before=shell, is_cold=True)
    deaf = dvc.start(f"import signal; signal.signal(15, signal.SIG_IGN); {report}")
    assert until(lambda: warm.out and cold.out and deaf.out, 10)
    pids = [int(pid) for stage in (warm, cold, deaf) for pid in stage.out.split()[:1]] + [warm.pid, cold.pid, deaf.pid]
    server = int(warm.out.split()[1])
    assert [stage.out.split()[2] for stage in (warm, cold, deaf)] == ["True", "False", "True"]
    dvc.process.kill()  # and not reaped yet: a zombie is gone, too
    assert until(lambda: all(is_gone(pid) for pid in (*pids, server)), 5)
    left = list(dvc.project.temporary.glob("ballast-*/*"))
    assert [path.suffix for path in left] == [".log"]
    successor = Dvc(dvc.project)
    assert successor.run("print(IS_WARM)").out == "True\n"
    successor.close()
    assert not left[0].exists()


def test_the_end_of_an_inner_dvc_ends_its_stage_but_not_the_server(dvc: Dvc) -> None:
    """As with `dvc queue kill`: the experiment's process goes, the worker above it stays."""
    folder = dvc.project.root
    stage = {
        "args": [sys.executable, "-m", "flows.stage", "import time; print(IS_WARM, os.getpid(), flush=True); time.sleep(60)"],
        "env": dvc.project.environ,
        "files": [("stdout", str(folder / "inner.out"), "a")],
    }
    (folder / "inner.in").write_text(f"{json.dumps(stage)}\n{json.dumps({'wait': 0})}\n")
    inner = dvc.ask(
        {
            "args": [sys.executable, str(folder / "dvc"), "repro"],
            "files": [("stdin", str(folder / "inner.in"), "r"), ("stdout", os.devnull, "a")],
        }
    )
    dvc.num_stages += 1
    assert until(lambda: (folder / "inner.out").exists() and (folder / "inner.out").read_text(), 10)
    is_warm, child = (folder / "inner.out").read_text().split()
    os.kill(inner, signal.SIGKILL)
    assert until(lambda: is_gone(int(child)), 5)
    assert (is_warm, dvc.run("print(IS_WARM)").out, dvc.project.log().count("ready")) == ("True", "True\n", 1)


def test_the_server_keeps_no_descriptor_of_the_stage_that_started_it(dvc: Dvc) -> None:
    stage = dvc.run("print(os.getppid())", before=("/bin/sh", "-c", 'exec "$@" 9>held', "sh"))
    server = Path(f"/proc/{int(stage.out)}/fd")
    held = [os.readlink(link) for link in server.iterdir()]
    assert all("/ballast-" in target or target.startswith(("socket:", "/dev/null")) for target in held), held


def test_when_dvc_is_gone_during_the_imports_nothing_is_left(project: Project) -> None:
    (project.root / "slow_library.py").write_text(
        "import os, time; print('pid', os.getpid(), flush=True)\nwhile 1: time.sleep(.1)"
    )
    dvc = Dvc(project)
    stage = dvc.start("print('never')", BALLAST_WARM_PRELOAD="slow_library")
    assert until(lambda: "pid" in project.log(), 10)
    server = int(project.log().split()[-1])
    dvc.close()
    assert until(lambda: is_gone(server) and is_gone(stage.pid), 3)
    assert stage.out == ""


def test_a_dead_server_kills_its_stage_and_later_stages_run_by_themselves(dvc: Dvc) -> None:
    stage = dvc.start("import time; print(os.getpid(), os.getppid(), flush=True); time.sleep(60)")
    assert until(lambda: stage.out, 10)
    child, server = map(int, stage.out.split())
    os.kill(server, signal.SIGKILL)
    assert stage.wait() == 137
    assert "the server is gone" in stage.err
    assert until(lambda: is_gone(child), 5)
    assert dvc.run("print(IS_WARM); sys.exit(3)").out == "False\n"


@pytest.mark.parametrize(
    ("library", "complaint"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "started threads"),
        ("import os; os._exit(1)", ""),
        ("from flows import warm_server; warm_server.READY = b'?'; __import__('__main__').READY = b'?'", "ready"),
        ("__import__('__main__').adopt = None", "ready"),
        ("__import__('__main__').receive_request = lambda *_: {}", "KeyError"),
    ],
)
def test_a_broken_server_costs_no_stage(dvc: Dvc, library: str, complaint: str) -> None:
    (dvc.project.root / "broken_library.py").write_text(library)
    for _ in range(2):
        stage = dvc.run("print(IS_WARM); sys.exit(4)", BALLAST_WARM_PRELOAD="broken_library")
        assert (stage.code, stage.out, stage.err) == (4, "False\n", "")
    assert complaint in dvc.project.log()


def test_a_stage_under_other_variables_or_options_runs_by_itself(shared: Dvc) -> None:
    assert shared.run("print(IS_WARM)", HF_HOME="/elsewhere").out == "False\n"
    assert shared.run("print(IS_WARM)", PYTHONWARNINGS="error").out == "False\n"
    assert shared.run("print(IS_WARM)", WORLD_SIZE="2", RANK="0").out == "False\n"
    assert shared.run("print(IS_WARM)", DVC_STAGE="compare", PREFECT_API_URL="http://localhost").out == "True\n"


def test_a_folder_that_others_may_write_is_not_used(project: Project) -> None:
    folder = project.temporary / f"ballast-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    dvc = Dvc(project)
    assert dvc.run("print(IS_WARM)").out == "False\n"
    assert list(folder.iterdir()) == []
    dvc.close()


@pytest.mark.parametrize(
    ("command", "is_dvc"),
    [
        ("/venv/bin/python /venv/bin/dvc repro", True),
        ("python3.11 -u -m dvc repro", True),
        ("/opt/dvc repro", True),
        ("/bin/sh -c dvc", False),
        ("python -m flows.dvc", False),
        ("python train.py dvc", False),
        ("", False),
    ],
)
def test_dvc_is_known_by_its_command(command: str, is_dvc: bool) -> None:
    assert _is_dvc(command.split()) is is_dvc


def test_a_reused_pid_is_another_process() -> None:
    this = Process.find(os.getpid())
    assert this is not None and this.is_running()
    assert not this._replace(start_ticks=this.start_ticks + 1).is_running()


@pytest.mark.timeout(60)
def test_a_real_dvc_repro_is_warm_and_leaves_nothing(project: Project) -> None:
    stages = {
        name: {"cmd": f"{sys.executable} -m flows.stage \"print('warm' if IS_WARM else 'cold', os.getppid())\"", "deps": deps}
        for name, deps in {"one": ["own_part.py"], "two": ["flows/stage.py"], "three": ["flows/warm_start.py"]}.items()
    }
    (project.root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    environ = {**project.environ, "DVC_NO_ANALYTICS": "1", "PATH": os.environ["PATH"]}
    del environ["DVC_ROOT"]

    def run_dvc(*arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=project.root, env=environ, capture_output=True, text=True, check=True).stdout

    run_dvc("init", "--no-scm", "--quiet")
    lines = [line.split() for line in run_dvc("repro").splitlines() if line.startswith(("warm", "cold"))]
    assert [line[0] for line in lines] == ["warm"] * 3
    assert len({line[1] for line in lines}) == 1
    assert until(lambda: is_gone(int(lines[0][1])), 3)
    single = run_dvc("repro", "--force", "--single-item", "one")
    assert "cold" in single and "warm" not in single.split("repro")[0].splitlines()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_real_libraries_can_be_forked_with(dvc: Dvc) -> None:
    """Or the server would end, and nobody would notice but for the time: a library that starts threads, or touches CUDA."""
    code = """
import torch
torch.set_num_threads(2)
a = torch.ones(400, 400)
print(IS_WARM, "transformers.trainer" in sys.modules, "mlflow" in sys.modules, torch.cuda.is_initialized(), float((a @ a).sum()))
print(torch.rand(1).item(), file=sys.stderr)
"""
    preload = subprocess.check_output(
        [sys.executable, "-c", "from flows.warm_server import PRELOAD; print(PRELOAD)"], cwd=ROOT, text=True
    )
    one, other = dvc.run(code, BALLAST_WARM_PRELOAD=preload), dvc.run(code)
    assert one.out == other.out == "True True True False 64000000.0\n", dvc.project.log()
    assert one.err != other.err
