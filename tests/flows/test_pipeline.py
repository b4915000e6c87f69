"""Laws of the pipeline as a command, on a throw-away git and DVC repository: without a server, with one, and when it is killed.

The server is real: one `prefect server start` on loopback for all tests that need it.
"""

import http.server
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from flows.pipeline import ask_server
from flows.run_artifacts import render_methods
from flows.warm_start import Process
from tests.flows.toy_pipeline import ROOT, STAGES, Repository, outcomes, until
from tests.prefect_server import FlowRun, free_port

# ---- without a server ----


def test_all_stages_run_and_their_lines_are_shown(finished: Repository) -> None:
    out: str = finished.first_output  # type: ignore[attr-defined]
    assert outcomes(out) == dict.fromkeys(STAGES, "ran")
    assert out.splitlines()[-1] == "5 ran"
    assert "hello from b with []" in out.splitlines()
    assert out.count("  0%|") == 5 and "50%" not in out
    assert (finished.root / "registered").read_text() == "register1"


def test_a_second_run_asks_once_and_runs_nothing(repo: Repository) -> None:
    code, out = repo.run()
    assert (code, outcomes(out)) == (0, dict.fromkeys(STAGES, "cached"))
    assert "hello" not in out and "skipping" not in out


def test_without_a_server_prefect_is_not_imported_and_nobody_listens(repo: Repository) -> None:
    code = """
import atexit, sys, psutil
@atexit.register
def look():
    myself = psutil.Process()
    processes = [myself, *myself.children(recursive=True)]
    print("listening", [c for p in processes for c in p.net_connections("inet")], "children", len(processes) - 1)
    print("imported", sorted({name.partition(".")[0] for name in sys.modules} & {"prefect", "fastapi", "torch", "mlflow"}))
from flows.pipeline import main
main()
"""
    repo.set(num_rows=2)
    code_, out = repo.run(code=code)
    assert (code_, outcomes(out)["prepare"]) == (0, "ran")
    assert out.splitlines()[-2:] == ["listening [] children 0", "imported []"]
    assert not (repo.root / "prefect-home").exists()


def test_a_target_runs_with_its_ancestors(repo: Repository) -> None:
    repo.set(num_rows=2)
    code, out = repo.run("train@b")
    assert (code, outcomes(out)) == (0, {"prepare": "ran", "train@b": "ran"})


def test_a_stage_downstream_of_a_change_is_asked_anew(repo: Repository) -> None:
    (repo.root / "source").write_text("other rows")  # prepare runs, and makes what it has made before
    code, out = repo.run()
    assert (code, outcomes(out)) == (0, {"prepare": "ran", **dict.fromkeys(STAGES[1:], "cached")})
    assert "Stage 'train@a' didn't change, skipping" in out


def test_a_failing_stage_stops_what_depends_on_it_and_tells_why(repo: Repository) -> None:
    repo.set(fail="a")
    code, out = repo.run()
    states = {"prepare": "cached", "train@a": "failed", "train@b": "ran", "compare": "not reached", "register": "not reached"}
    assert (code, outcomes(out)) == (1, states)
    message = "train@a failed: error: no rows in source\nPut some there.\n(exit code 1)\n"
    assert out.endswith(f"error: 1 ran, 1 cached, 1 failed, 2 not reached\n{message}")


def test_an_unknown_target_or_flag_runs_nothing(repo: Repository) -> None:
    code, out = repo.run("train@c")
    assert (code, "train@c" in out, len(out.splitlines())) == (1, True, 1)
    assert repo.run("--force")[0] == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_ends_the_stage_and_all_above_it(repo: Repository, number: int, code: int) -> None:
    repo.set(nap="a")
    pipeline = repo.start()
    napper = repo.napper()
    descendants = psutil.Process(pipeline.pid).children(recursive=True)
    assert napper in [process.pid for process in descendants]
    pipeline.send_signal(number)
    out, _ = pipeline.communicate(timeout=10)
    assert pipeline.returncode == code, out
    assert "Traceback" not in out
    assert until(lambda: not any(Process.find(process.pid) for process in descendants), seconds=5)
    repo.set()
    assert repo.run("train@a")[0] == 0  # nothing half made, no lock left


def test_a_second_pipeline_is_refused_at_once(repo: Repository) -> None:
    repo.set(nap="a")
    first = repo.start()
    repo.napper()
    code, out = repo.run()
    assert (code, len(out.splitlines())) == (1, 1)
    assert f"another pipeline (pid {first.pid}) is running" in out
    first.terminate()
    first.communicate()


def test_a_dvc_repro_at_work_is_told_as_such(repo: Repository) -> None:
    repo.set(nap="a")
    command = "from flows.child_process import run_child as run; import sys; run([sys.executable, '-m', 'dvc', 'repro', 'train@a'], print)"  # noqa: E501
    other = repo.start(code=command)
    repo.napper()
    code, out = repo.run("train@a")
    assert (code, "another DVC process works in this repository" in out) == (1, True)
    other.terminate()
    other.communicate()


# ---- the server ----


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Something that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"


@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_a_server_that_cannot_be_reached_is_one_clear_error(repo: Repository, silent_url: str, kind: str) -> None:
    url = silent_url if kind == "silent" else f"http://127.0.0.1:{free_port()}/api"
    started = time.monotonic()
    code, out = repo.run(url=url)
    assert time.monotonic() - started < 10
    assert (code, len(out.splitlines())) == (1, 1)
    assert f"PREFECT_API_URL={url}" in out and "`prefect server start`" in out


def test_only_what_answers_like_prefect_is_taken_for_it() -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, _, text = self.path.strip("/").split("/")[0].partition("-")
            self.send_response(int(status))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *words: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert ask_server(f"{url}/200-true") == ""
        assert ask_server(f"{url}/401/") == ""  # it wants a password: Prefect's client knows it
        assert "ends in /api" in ask_server(f"{url}/200-<html>")
        assert "HTTP 404" in ask_server(f"{url}/404")
        assert ask_server(f"{url}/503") == "HTTP 503"
        assert "SSL" in ask_server(f"https://127.0.0.1:{server.server_port}/200-true")
        server.shutdown()
    assert ask_server("no url") != ""


def test_the_table_of_methods_has_a_row_for_each_metric() -> None:
    table = render_methods({"base": {"nll": 1.23456}, "sft": {"nll": 1, "ece": 0.1}})
    assert table == "| metric | base | sft |\n| --- | ---: | ---: |\n| nll | 1.235 | 1 |\n| ece |  | 0.1 |"


@pytest.mark.prefect
def test_a_flow_run_shows_stages_logs_and_tables_and_the_next_one_is_all_cached(fresh: Repository, api_url: str) -> None:
    code, out = fresh.run(url=api_url)
    assert code == 0, out
    run = FlowRun(api_url, out)
    assert run.state() == ("Completed", "5 ran")
    assert run.tasks(5) == dict.fromkeys(STAGES, "Completed")
    assert "hello from b with []" in run.log("hello from register")
    tables = run.artifacts()
    assert [(row["stage"], row["state"]) for row in tables["stages"]] == [(stage, "ran") for stage in STAGES]
    assert all(row["seconds"] > 0 for row in tables["stages"])
    assert "| accuracy | 0.5 | 0.9877 |" in tables["methods"]
    assert FlowRun(api_url, out).ask("flow_runs/count", {"flows": {"name": {"any_": ["prepare", "train"]}}}) == 0

    code, out = fresh.run(url=api_url)
    second = FlowRun(api_url, out)
    assert (code, second.state()) == (0, ("Completed", "5 cached"))
    assert second.tasks(5) == dict.fromkeys(STAGES, "Cached")
    assert "methods" in second.artifacts()


@pytest.mark.prefect
def test_a_failing_stage_makes_the_flow_run_fail_with_its_message(repo: Repository, api_url: str) -> None:
    repo.set(fail="b")
    code, out = repo.run(url=api_url)
    run = FlowRun(api_url, out)
    name, message = run.state()
    assert (code, name) == (1, "Failed")
    assert "train@b failed: error: no rows in source\nPut some there." in message
    assert out.rstrip().endswith(message)
    assert run.tasks(3) == {"prepare": "Cached", "train@a": "Completed", "train@b": "Failed"}
    tables = run.artifacts()
    assert [row["state"] for row in tables["stages"]] == ["cached", "ran", "failed", "not reached", "not reached"]
    assert "methods" not in tables  # those of an earlier run


@pytest.mark.prefect
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_stage_and_the_flow_run_is_crashed(repo: Repository, api_url: str, number: int, code: int) -> None:
    repo.set(nap="a")
    pipeline = repo.start(url=api_url)
    napper = repo.napper()
    pipeline.send_signal(number)
    out, _ = pipeline.communicate(timeout=20)
    assert (pipeline.returncode, FlowRun(api_url, out).state()[0]) == (code, "Crashed")
    assert Process.find(napper) is None


@pytest.mark.prefect
def test_a_second_pipeline_is_refused_as_a_failed_flow_run(repo: Repository, api_url: str) -> None:
    repo.set(nap="a")
    first = repo.start()
    repo.napper()
    code, out = repo.run(url=api_url)
    name, message = FlowRun(api_url, out).state()
    assert (code, name) == (1, "Failed")
    assert f"another pipeline (pid {first.pid}) is running" in message
    assert "Traceback" not in out
    first.terminate()
    first.communicate()


@pytest.mark.prefect
def test_the_flow_can_be_deployed() -> None:
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    for entrypoint in (f"{ROOT / 'flows/pipeline.py'}:pipeline", "flows.pipeline.pipeline"):
        flow: Any = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        assert (flow.name, flow.persist_result, flow.retries) == ("pipeline", False, 0)
        choices = parameter_schema(flow).properties["targets"]["anyOf"]
        assert {"type": "array", "items": {"type": "string"}} in choices
