"""Laws of faults in the middle of a real training, below a real Prefect server, MLflow server and workers on loopback.

One training suffers all of these, in the order of the file: each test goes on with what the one before has left, and the last one
lets it come to its end. Five trainings would each start servers' clients and libraries twice more, for minutes;
`python -m benchmarks.faults` gives every fault one of its own, and has more of them. docs/faults.md.
"""

from collections.abc import Iterator

import pytest

from tests.infra import faults
from tests.infra.training_ground import Ground

pytestmark = [pytest.mark.prefect, pytest.mark.mlflow_server, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    ground = Ground(tmp_path_factory.mktemp("faults") / "project")
    try:
        ground.make_reference()
        ground.up()
        yield ground
    finally:
        ground.down()


def test_a_killed_worker_s_run_is_crashed_in_a_minute_with_nothing_left_and_the_next_worker_goes_on(ground: Ground) -> None:
    measured = faults.kill_worker(ground)
    assert measured.noticed is not None and measured.noticed < faults.NOTICED_SECONDS


def test_a_worker_that_is_told_to_stop_leaves_a_checkpoint_of_the_last_step_and_the_next_one_goes_on(ground: Ground) -> None:
    """SIGTERM, as a preempted machine sends it; the benchmark sends it to every process of the machine."""
    measured = faults.terminate_worker(ground)
    assert measured.gone is not None and measured.gone < faults.GONE_SECONDS


def test_a_cancelled_stage_s_processes_end_in_ten_seconds_with_a_checkpoint_of_their_last_step(ground: Ground) -> None:
    measured = faults.cancel_stage(ground)
    assert measured.gone is not None and measured.gone < faults.CANCELLED_SECONDS


def test_after_a_reboot_the_old_runs_are_crashed_and_a_new_one_goes_on_from_the_last_checkpoint(ground: Ground) -> None:
    assert faults.reboot(ground).states == "Crashed, Crashed"


def test_a_training_goes_on_without_its_prefect_server_and_its_run_when_that_is_back(ground: Ground) -> None:
    faults.kill_prefect(ground)


def test_after_all_that_weights_and_curves_equal_an_undisturbed_training_s(ground: Ground) -> None:
    assert ground.finish() > 0
    ground.require_equal()
    ground.require_sound_records()
