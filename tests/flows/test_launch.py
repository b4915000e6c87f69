"""Laws of starting ranks: which command, whose words are passed on, which failure is told."""

import signal
from pathlib import Path
from typing import Any

import pytest

from components.errors import InterruptedStageError, ParamsError
from components.run_params import LaunchParams
from flows import launch

DDP = LaunchParams(engine="ddp", num_processes=2)
TORCHRUN_SAYS = """
W1128 17:16:28.471000 26509 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 26584 closing signal SIGTERM
E1128 17:16:28.936000 26509 torch/api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 26585) of binary: python
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : {first} (pid: 26584)  (SIGTERM)
  error_file: <N/A>
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {second} (pid: 26585)  (SIGKILL)
"""


@pytest.fixture(autouse=True)
def _nobody_is_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", launch.REPORTS, "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


def told(first: int, second: int, reports: dict[int, dict[str, Any]], lines: tuple[str, ...] = ()) -> tuple[int, str]:
    said = launch.Said()
    for line in (*TORCHRUN_SAYS.format(first=first, second=second).splitlines(), *lines):
        said.hear(line)
    error = launch.failure_of(reports, said, 1, Path("logs"))
    return error.exit_code, str(error)


def test_a_killed_rank_is_named_and_not_the_one_that_the_launcher_ended_after_it() -> None:
    code, message = told(-15, -9, {})
    assert code == 128 + signal.SIGKILL and message.startswith("rank 1 (process 26585) was killed by signal 9 (SIGKILL)")


def test_a_rank_s_own_words_count_more_than_the_signal_that_the_others_got_for_it() -> None:
    reports = {1: {"code": 3, "message": "a row is bad", "seconds": 5.0}, 0: {"code": 1, "message": "later", "seconds": 6.0}}
    assert told(-15, 3, reports) == (3, "a row is bad")
    assert told(-6, 3, {1: reports[1]}) == (3, "a row is bad"), "NCCL aborts those that waited in vain"


def test_a_failure_without_a_report_is_told_by_the_last_words_of_its_rank_alone() -> None:
    lines = ("[default0]:fine here", "[default1]:Traceback (most recent call last):", "[default1]:ZeroDivisionError: division")
    code, message = told(-15, 1, {}, lines)
    assert code == 1 and "rank 1 failed" in message and "ZeroDivisionError" in message
    assert "fine here" not in message and "ChildFailedError" not in message


def test_the_first_rank_s_lines_are_the_stage_s_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    said = launch.Said()
    for line in ("[default0]:step 1", "[default1]:step 1", "W1128 torch: Setting OMP_NUM_THREADS"):
        said.hear(line)
    assert capsys.readouterr().out == "step 1\n"


def test_torchrun_starts_what_it_can_and_accelerate_what_has_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    command = launch.launch_command("post_train", ["sft", "0"], DDP, Path("logs"))
    assert command[2:6] == ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert command[-4:] == ["--module", "flows.post_train", "sft", "0"]
    own = DDP.model_copy(update={"config": "infra/accelerate/ddp.yaml"})
    command = launch.launch_command("post_train", ["sft", "0"], own, Path("logs"))
    assert command[2] == "accelerate.commands.launch" and command[4].endswith("/infra/accelerate/ddp.yaml")
    with pytest.raises(ParamsError, match=r"launch\.config 'no\.yaml' is no file"):
        launch.launch_command("post_train", [], DDP.model_copy(update={"config": "no.yaml"}), Path("logs"))
    zero3 = LaunchParams(engine="deepspeed_zero3", num_processes=2)
    with pytest.raises(ParamsError, match="pip install deepspeed"):
        launch.launch_command("post_train", [], zero3, Path("logs"))
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
    assert launch.launch_command("post_train", [], zero3, Path("logs"))[4].endswith(launch.DEEPSPEED)


@pytest.mark.parametrize("variable", ["RANK", launch.REPORTS])
def test_a_rank_starts_no_ranks_and_neither_does_a_single_process(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def post_train() -> dict[str, Any]:
        return {}

    assert launch.in_ranks(post_train, [], None) is post_train and launch.in_ranks(post_train, [], LaunchParams()) is post_train
    started = launch.in_ranks(post_train, [], DDP)
    assert started is not post_train and started.__name__ == "post_train"
    monkeypatch.setenv(variable, "0")
    assert launch.in_ranks(post_train, [], DDP) is post_train


def test_a_rank_gets_no_address_of_prefect_for_the_flow_run_is_the_stage_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    variables = launch.environment_of_ranks(Path("reports"))
    assert "PREFECT_API_URL" not in variables and variables[launch.REPORTS] == "reports"


def test_what_a_rank_says_when_it_is_stopped_is_what_the_stage_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told_to_stop(*_: Any, **__: Any) -> int:
        launch.write_json(
            tmp_path / "launch/post_train-sft-0/rank-0.json", {"code": 143, "message": "stopped at step 5", "seconds": 1}
        )
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(launch, "WORK", tmp_path)
    monkeypatch.setattr(launch, "run_child", told_to_stop)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedStageError, match="stopped at step 5"):
        launch.run_ranks("post_train", ["sft", "0"], DDP)
    assert signal.getsignal(signal.SIGTERM) is before
