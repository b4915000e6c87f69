"""Laws of the index: every record is found, nothing else is, however many names begin alike."""

from pathlib import Path

import numpy as np

from components.teacher_cache.record_index import DTYPES, MISSING, RecordIndex, build_index, concatenate, open_index, split_name

NAMES = [f"{number % 7:016x}{number:016x}" for number in range(300)]
"""Many share their first 8 bytes."""


def index_of(names: list[str], shard: int = 0) -> RecordIndex:
    keys = np.array([split_name(name) for name in names], dtype=np.uint64).reshape(-1, 2)
    columns = {name: np.arange(len(names)).astype(dtype) for name, dtype in DTYPES.items()}
    return build_index({**columns, "name_high": keys[:, 0], "name_low": keys[:, 1], "shard": np.full(len(names), shard)})


def test_every_record_is_found_and_a_stranger_is_not(tmp_path: Path) -> None:
    index_of(NAMES).write(tmp_path / "index")
    index = open_index(tmp_path / "index", "repair")
    strangers = [f"{3:016x}{9999:016x}", f"{99:016x}{3:016x}"]
    for name in NAMES:
        place = index.find(name)
        assert index.name(place) == name and index.first_token[place] == NAMES.index(name)
    assert [index.find(name) for name in strangers] == [MISSING, MISSING]
    assert index.find_all([*NAMES, *strangers]).tolist() == [index.find(name) for name in [*NAMES, *strangers]]


def test_an_empty_index_finds_nothing() -> None:
    assert index_of([]).find_all([NAMES[0]]).tolist() == [MISSING]


def test_several_indices_make_one_that_knows_the_shards_and_has_each_record_once() -> None:
    one = concatenate([index_of(NAMES[:100]), index_of(NAMES[50:200])])
    assert len(one) == 200
    assert [int(one.shard[one.find(name)]) for name in (NAMES[0], NAMES[60], NAMES[150])] == [0, 0, 1]
    assert len(concatenate([])) == 0
