"""Laws of what travels between stages: a fingerprint is content alone, and a file or folder is there whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import artifacts
from components.artifacts import (
    ROOT,
    fingerprint_bytes,
    fingerprint_file,
    fingerprint_files,
    fingerprint_json,
    fingerprint_row,
    publish_folder,
    read_csv,
    read_json,
    write_csv,
    write_json,
    write_text,
)
from components.errors import ArtifactError
from tests.conftest import end_of_child, start_child


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "WORK", tmp_path / ".work")


def scratch_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_fingerprints_of_different_parts_differ_even_where_their_bytes_join_to_the_same(
    one: list[bytes], other: list[bytes]
) -> None:
    assert (fingerprint_bytes(*one) == fingerprint_bytes(*other)) == (one == other)


def test_a_fingerprint_is_content_not_time_or_path_and_the_same_in_every_process(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * 5_000_000)
    os.utime(tmp_path / "b", (1, 1))
    assert len({*fingerprint_files(tmp_path, ["b", "a"]).values(), fingerprint_file(tmp_path / "a")}) == 1
    assert fingerprint_json({"b": 1, "a": [2.5, None, "ä"]}) == fingerprint_json({"a": [2.5, None, "ä"], "b": 1})
    asked = "print(fingerprint_json({'a': 1}), fingerprint_row([1, 2], [False, True]))"
    script = f"from components.artifacts import fingerprint_json, fingerprint_row; {asked}"
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [fingerprint_json({"a": 1}), fingerprint_row([1, 2], [False, True])]


@given(
    st.lists(st.tuples(st.integers(0, 300_000), st.booleans()), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 300_000), st.booleans()), min_size=1, max_size=6),
)
def test_a_rows_fingerprint_knows_every_token_and_every_target_mark(one: Any, other: Any) -> None:
    named = [fingerprint_row([token for token, _ in row], [mark for _, mark in row]) for row in (one, other)]
    assert (named[0] == named[1]) == (one == other)
    assert len(bytes.fromhex(named[0])) == 16


def test_json_comes_back_and_a_number_that_is_none_is_refused_before_the_old_file_is_touched(tmp_path: Path) -> None:
    file = tmp_path / "new" / "value.json"
    write_json(file, {"b": 0.1 + 0.2, "a": "ä"})
    assert read_json(file, made_by="x") == {"a": "ä", "b": 0.1 + 0.2}
    before = file.read_bytes()
    with pytest.raises(ValueError):
        write_json(file, {"b": float("nan")})
    assert file.read_bytes() == before and scratch_files(tmp_path) == [file]
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_table_comes_back_without_its_empty_cells_columns_in_order_of_appearance(tmp_path: Path) -> None:
    rows = [{"step": 1.0, "loss": 0.5}, {"step": 2.0, "loss": 1 / 3, "threshold": 2.0}]
    write_csv(tmp_path / "t.csv", rows)
    assert read_csv(tmp_path / "t.csv", made_by="x") == rows
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == "step,loss,threshold"


@pytest.mark.parametrize("reader", [read_json, read_csv])
def test_a_missing_file_names_itself_and_the_command_that_makes_it(tmp_path: Path, reader: Any) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.x is missing\. Make it with: dvc repro some_stage"):
        reader(tmp_path / "gone.x", made_by="some_stage")


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        (read_json, b"{"),
        (read_json, b"\xff\xfe"),
        (read_json, b""),
        (read_csv, b"a\nword\n"),
        (read_csv, b"a\n1,2\n"),
        (read_csv, b"\xff"),
    ],
)
def test_a_damaged_file_names_itself_and_the_command_that_makes_it_again(tmp_path: Path, reader: Any, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bad is not .*dvc repro -f -s some_stage"):
        reader(tmp_path / "bad", made_by="some_stage")


def test_a_writer_killed_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_text(file, "old")

    def work() -> None:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        write_text(file, "new")

    assert end_of_child(start_child(work)) == -signal.SIGKILL
    assert file.read_text() == "old"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    for content in ("one", "two"):
        with publish_folder(target) as staging:
            (staging / content).write_text(content)
            assert not (target / content).exists()
        assert [path.name for path in target.iterdir()] == [content]
    assert target.stat().st_mode & 0o777 == 0o755 and scratch_files(tmp_path / ".work") == []


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_folder_whose_making_fails_is_not_published_and_the_old_one_stays(tmp_path: Path, fault: type[BaseException]) -> None:
    target = tmp_path / "target"
    with publish_folder(target) as staging:
        (staging / "old").touch()
    with pytest.raises(fault), publish_folder(target) as staging:
        (staging / "new").touch()
        raise fault
    assert [path.name for path in target.iterdir()] == ["old"] and scratch_files(tmp_path / ".work") == []


def test_a_killed_publication_leaves_the_old_folder_and_its_scratch_outside_of_it(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with publish_folder(target) as staging:
        (staging / "old").touch()

    def work() -> None:
        with publish_folder(target) as staging:
            (staging / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert end_of_child(start_child(work)) == -signal.SIGKILL
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in scratch_files(tmp_path / ".work")] == ["half"]
