"""Laws of GPU leases: one stage per GPU, for as long as its last process lives. CUDA_VISIBLE_DEVICES stands for GPUs."""

import os
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from components.errors import BallastError
from flows.child_process import StoppedError
from flows.gpu_lease import hold_gpus, visible_gpus


@pytest.fixture(autouse=True)
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")


def test_two_stages_get_a_gpu_each_and_the_third_waits_for_one() -> None:
    said: list[str] = []
    with ExitStack() as stages:
        leases = [stages.enter_context(hold_gpus(1, said.append)) for _ in range(2)]
        assert [lease.environ["CUDA_VISIBLE_DEVICES"] for lease in leases] == ["GPU-a", "GPU-b"] and not said
        stopping = threading.Event()

        def stop(line: str) -> None:
            said.append(line)
            stopping.set()

        with pytest.raises(StoppedError), hold_gpus(1, stop, stopping):
            pass
    assert said == ["waiting for 1 of 2 GPUs: other stages have them"]
    with hold_gpus(2, pytest.fail) as lease:
        assert lease.environ == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}


def test_a_stage_that_wants_two_does_not_sit_on_one_while_it_waits() -> None:
    stopping = threading.Event()
    with hold_gpus(1, pytest.fail):
        waiting = threading.Thread(target=_wait_for_two, args=(stopping,))
        waiting.start()
        time.sleep(0.2)
        with hold_gpus(1, pytest.fail) as lease:
            assert lease.environ == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
        stopping.set()
        waiting.join()


def _wait_for_two(stopping: threading.Event) -> None:
    with pytest.raises(StoppedError), hold_gpus(2, lambda _: None, stopping):
        pass


def test_a_gpu_is_free_when_the_last_process_that_uses_it_is_gone() -> None:
    with hold_gpus(1, pytest.fail) as lease:
        stage = subprocess.Popen(["sleep", "60"], pass_fds=lease.held_files)
    with hold_gpus(1, pytest.fail) as other:
        assert other.environ == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    stage.kill()
    stage.wait()
    with hold_gpus(2, pytest.fail):
        pass


def test_more_gpus_than_there_are_are_refused_with_the_knob_that_asks_for_them() -> None:
    with pytest.raises(BallastError, match=r"wants 3 GPUs.*shows 2.*launch.num_processes"), hold_gpus(3, pytest.fail):
        pass


def test_without_gpus_or_without_need_of_one_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_gpus(0, pytest.fail) as lease:
        assert lease == ({}, ())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with hold_gpus(1, pytest.fail) as lease:
        assert lease == ({}, ())


def test_gpus_are_asked_of_nvidia_smi_where_no_variable_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-1\necho GPU-2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus() == ["GPU-1", "GPU-2"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []
