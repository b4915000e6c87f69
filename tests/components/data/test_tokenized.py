"""Laws of prepared rows on disk: what is written is read, the same rows give the same bytes, a damaged file is refused."""

from pathlib import Path

import pyarrow as pa
import pytest

from components.data.tokenized import TokenizedRow, TokenizedRows, read_split, write_rows
from components.errors import ArtifactError


def row(index: int, laws: str | None = None) -> TokenizedRow:
    ids = [(index * 7919 + position) % 260_000 for position in range(1 + index % 50)]
    marks = [position % 3 == 1 for position in range(len(ids))]
    return TokenizedRow(f"a.json:{index}", "a.json", "alpaca", f"{index:032x}", ids, marks, laws)


ROWS = [row(index, '[{"7": 0.25, "9": 0.75}]' if index % 2 else None) for index in range(2500)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train.arrow", ROWS)
    write_rows(folder / "empty.arrow", [])
    return folder


def test_what_is_written_is_read_in_order_and_by_index(folder: Path) -> None:
    rows = read_split(folder, "train")
    assert len(rows) == len(ROWS)
    assert list(rows) == ROWS
    assert [rows[index] for index in (0, 1023, 1024, 2499, -1, -2500)] == [ROWS[index] for index in (0, 1023, 1024, 2499, -1, 0)]
    assert len(read_split(folder, "empty")) == 0


@pytest.mark.parametrize("index", [2500, -2501, 10**9])
def test_an_index_outside_is_an_index_error(folder: Path, index: int) -> None:
    with pytest.raises(IndexError):
        read_split(folder, "train")[index]


def test_laws_come_back_by_token_id(folder: Path) -> None:
    rows = read_split(folder, "train")
    assert rows[0].true_laws() is None
    assert rows[1].true_laws() == [{7: 0.25, 9: 0.75}]
    assert rows[40].num_targets == sum(ROWS[40].is_target)


def test_the_same_rows_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "again.arrow", ROWS)
    assert (tmp_path / "again.arrow").read_bytes() == (folder / "train.arrow").read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 1000, -1])
def test_a_cut_file_is_refused_with_the_command_that_repairs_it(folder: Path, tmp_path: Path, kept: int) -> None:
    (tmp_path / "train.arrow").write_bytes((folder / "train.arrow").read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"train\.arrow cannot be read .*dvc repro -f -s prepare_data"):
        read_split(tmp_path, "train")


def test_a_missing_file_is_refused_with_the_command_that_repairs_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"test\.arrow cannot be read .*dvc repro -f -s prepare_data"):
        read_split(tmp_path, "test")


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"]})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ArtifactError, match=r"has the columns \['text'\], not those of prepared rows"):
        TokenizedRows(tmp_path / "x.arrow")
