"""Laws of the seal: a checkpoint counts whole and unchanged or not at all, and the newest that counts wins."""

import json
import random
from pathlib import Path

import pytest

from components.training.checkpoints import SEAL, is_sealed, latest_checkpoint, seal_checkpoint


def make(folder: Path, step: int, *, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "nested").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(random.Random(step).randbytes(300))
    (checkpoint / "nested" / "optimizer.pt").write_bytes(random.Random(step + 1).randbytes(200))
    (checkpoint / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    (checkpoint / "empty").touch()
    if sealed:
        seal_checkpoint(checkpoint)
    return checkpoint


def test_the_newest_sealed_checkpoint_wins_by_step_not_by_name_or_time(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        make(tmp_path, step)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_an_unsealed_newest_checkpoint_is_removed_and_the_one_before_wins(tmp_path: Path) -> None:
    make(tmp_path, 10)
    half = make(tmp_path, 20, sealed=False)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not half.exists()


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "missing") is None
    make(tmp_path, 5, sealed=False)
    assert latest_checkpoint(tmp_path) is None


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("checkpoint-best", "runs", "checkpoint-"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) is None and len(list(tmp_path.iterdir())) == 3


def test_every_flipped_bit_of_a_checkpoint_breaks_the_seal_or_changes_nothing(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 1)
    contents = {file: file.read_bytes() for file in checkpoint.rglob("*") if file.is_file()}
    draw = random.Random(0)
    for file, whole in contents.items():
        for _ in range(60 if whole else 0):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            harmless = file.name == SEAL and _read(damaged) == _read(whole)  # a space became a tab
            assert not is_sealed(checkpoint) or harmless, file
        file.write_bytes(whole)
    assert is_sealed(checkpoint)


def _read(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize("name", ["model.safetensors", "nested/optimizer.pt", "trainer_state.json", "empty", SEAL])
def test_a_missing_or_truncated_file_breaks_the_seal(tmp_path: Path, name: str) -> None:
    checkpoint = make(tmp_path, 1)
    whole = (checkpoint / name).read_bytes()
    if whole:
        (checkpoint / name).write_bytes(whole[:-1] if name != SEAL else whole[: len(whole) // 2])
        assert not is_sealed(checkpoint)
    (checkpoint / name).unlink()
    assert not is_sealed(checkpoint)


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '{"model.safetensors": 5}', '{"model.safetensors": [1]}', '{"a\\u0000b": [1, ""]}']
)
def test_json_that_is_no_seal_seals_nothing(tmp_path: Path, text: str) -> None:
    checkpoint = make(tmp_path, 1, sealed=False)
    (checkpoint / SEAL).write_text(text)
    assert not is_sealed(checkpoint)
