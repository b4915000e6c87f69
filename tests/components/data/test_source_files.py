"""Laws of the list of sources: every data file by its path below the folder, nothing passed over, no entry for nothing."""

import os
import socket
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data import source_files
from components.data.file_kinds import SUFFIXES, is_data, is_passed_over
from components.data.hub_sets import HubSet
from components.data.source_files import SourceFile, list_source_files
from components.data_params import DataParams, HubDataParams
from components.errors import DataError

REVISION = "0123456789abcdef" * 2 + "01234567"


def lay(folder: Path, *names: str, text: str = "{}") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def listed(root: Path, path: str = ".", **params: Any) -> list[SourceFile]:
    return list_source_files(DataParams(source="files", path=path, **params), root, root / ".cache")


def names(root: Path, path: str = ".") -> list[str]:
    return [file.name for file in listed(root, path)]


def refusal(root: Path, path: str = ".", **params: Any) -> str:
    with pytest.raises(DataError) as error:
        listed(root, path, **params)
    return str(error.value)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two sets of two files each, as if fetched."""

    def fetch(params: HubDataParams, cache: Path) -> HubSet:
        paths = {f"{params.hub_id}/{params.split}-{index}.parquet": tmp_path / "elsewhere" for index in (0, 1)}
        return HubSet(params.hub_id, params.revision, "default", params.split, "cc-by-4.0", paths)

    monkeypatch.setattr(source_files, "fetch_hub_set", fetch)


def hub_entries(*hub_ids: str) -> list[dict[str, str]]:
    return [{"hub_id": hub_id, "revision": REVISION} for hub_id in hub_ids]


def test_a_folder_gives_its_data_files_at_any_depth_in_name_order_named_by_their_path(tmp_path: Path) -> None:
    lay(tmp_path, "b.jsonl", "a.json", "z/y/x.parquet", "z/a.json.gz", "z/b.jsonl.gz", "c.json.zst", "c.jsonl.zst")
    found = listed(tmp_path)
    assert [file.name for file in found] == [
        *("a.json", "b.jsonl", "c.json.zst", "c.jsonl.zst"),
        *("z/a.json.gz", "z/b.jsonl.gz", "z/y/x.parquet"),
    ]
    assert all(file.path == tmp_path / file.name and file.group == file.name for file in found)
    assert len({Path(file.name).name.split(".", 1)[1] for file in found}) == len(SUFFIXES), "every kind"


def test_a_single_file_is_named_by_its_name(tmp_path: Path) -> None:
    lay(tmp_path, "deep/er/b.jsonl")
    assert [(file.name, file.path) for file in listed(tmp_path, "deep/er/b.jsonl")] == [("b.jsonl", tmp_path / "deep/er/b.jsonl")]


def test_harmless_files_and_the_laws_of_the_embedded_world_are_passed_over(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "a.json",
        "a.json.laws.jsonl",
        "README.md",
        "notes.txt",
        "LICENSE",
        "LICENCE.openai",
        ".gitkeep",
        ".hidden/b.json",
    )
    lay(tmp_path, "a.json.dvc", "NOTICE")
    assert names(tmp_path) == ["a.json"]


@given(
    st.text(string.ascii_letters + ".-_", min_size=1, max_size=12), st.sampled_from([".csv", ".arrow", ".zip", ".tar", ".tsv.gz"])
)
def test_no_name_makes_a_table_or_archive_harmless(stem: str, suffix: str) -> None:
    assert is_passed_over(stem + suffix) == stem.startswith(".")
    assert all(is_passed_over(f"{name}{suffix}") is False and not is_data(f"{name}{suffix}") for name in ("README", "LICENSE"))


@pytest.mark.parametrize(
    ("name", "repair"),
    [
        ("t.csv", "pandas.read_csv"),
        ("t.tsv.gz", "pandas.read_csv"),
        ("t.arrow", "to_parquet"),
        ("t.zip", "Unpack it"),
        ("t.tar.gz", "Unpack it"),
        ("t.xlsx", "Save it as .csv"),
        ("t.jsonl.xz", "gzip or zstd"),
        ("t.parquet.gz", "Parquet is compressed inside"),
        ("t.JSONL", "small letters"),
        ("t.ndjson", "Name it .jsonl"),
        ("t.png", "Convert it to .jsonl, or move it out"),
        ("noending", "Convert it to .jsonl, or move it out"),
        ("README_rows.csv", "pandas.read_csv"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_the_way_to_repair_it(tmp_path: Path, name: str, repair: str) -> None:
    lay(tmp_path, "a.json", f"sub/{name}")
    said = refusal(tmp_path)
    assert f"data.path: {tmp_path}/sub/{name} is of no kind that is read (.json, .jsonl, " in said and repair in said
    assert repair in refusal(tmp_path, f"sub/{name}"), "also when it is data.path itself"


def test_a_path_without_data_is_refused_with_what_is_there(tmp_path: Path) -> None:
    assert f"data.path: {tmp_path}/absent does not exist. Set data.path in params.yaml" in refusal(tmp_path, "absent")
    lay(tmp_path, "README.md")
    assert "holds no .json, .jsonl, " in (said := refusal(tmp_path)) and "(found: README.md). Put your data there" in said
    (tmp_path / "empty").mkdir()
    assert "(found: nothing)" in refusal(tmp_path, "empty")


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    lay(tmp_path / "elsewhere", "far.json", "deep/b.jsonl")
    lay(tmp_path / "data", "a.json", "sub/c.json")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "one.json").symlink_to(tmp_path / "elsewhere" / "far.json")
    (tmp_path / "data" / "sub" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "sub" / "self").symlink_to(tmp_path / "data" / "sub")
    assert names(tmp_path, "data") == ["a.json", "linked/deep/b.jsonl", "linked/far.json", "one.json", "sub/c.json"]
    (tmp_path / "also").symlink_to(tmp_path / "data")
    assert names(tmp_path, "also") == names(tmp_path, "data")


def test_a_data_file_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to(tmp_path / "gone.json")
    assert f"{tmp_path}/a.json is a link to {tmp_path}/gone.json, and that cannot be reached" in refusal(tmp_path)
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.json").symlink_to(tmp_path / "a.json")
    assert "cannot be reached" in refusal(tmp_path)


def test_what_is_no_regular_file_is_named_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    assert "a.json is no regular file (a pipe, socket or device)" in refusal(tmp_path)
    (tmp_path / "a.json").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "b.json"))
        assert "b.json is no regular file" in refusal(tmp_path)


def test_a_folder_with_the_name_of_a_file_is_a_folder(tmp_path: Path) -> None:
    lay(tmp_path, "a.json/b.jsonl", "README/c.json", "x.csv/d.json")
    assert names(tmp_path) == ["README/c.json", "a.json/b.jsonl", "x.csv/d.json"]


def test_odd_names_are_kept_and_those_that_no_report_can_hold_are_refused(tmp_path: Path) -> None:
    odd = ["a b.json", "ünï→😀.json", "中文\u3000表.jsonl", "c:1#2.json", "%2e%2e.json", "x\\y.json", "👩\u200d🔬.json"]
    lay(tmp_path, *odd)
    assert names(tmp_path) == sorted(odd)
    for bad in (b"li\nne.json", b"esc\x1b.json", b"latin\xe9.json"):
        folder = tmp_path.parent / f"{tmp_path.name}-{bad[:3].hex()}"
        folder.mkdir()
        (folder / os.fsdecode(bad)).write_text("{}")
        said = refusal(folder)
        assert "in its name. Rename it" in said and said.isprintable()


def test_an_entry_speaks_for_a_file_or_for_all_files_of_a_folder_as_one_group(tmp_path: Path) -> None:
    lay(tmp_path, "a.json", "set/b.json", "set/c.json", "settle.json", "set/deep/d.json", "set/deep/e.json")
    sources = {"a.json": {"weight": 2.0}, "./set/": {"max_examples": 7, "licence": "MIT"}, "set/deep/e.json": {"weight": 1.0}}
    found = {file.name: file for file in listed(tmp_path, sources=sources, max_examples=50)}
    assert (found["a.json"].weight, found["a.json"].max_examples, found["a.json"].group) == (2.0, 50, "a.json")
    for name in ("set/b.json", "set/c.json", "set/deep/d.json"):
        assert (found[name].group, found[name].max_examples, found[name].licence) == ("set", 7, "MIT")
    most_specific = found["set/deep/e.json"]
    assert (most_specific.group, most_specific.weight, most_specific.licence) == ("set/deep/e.json", 1.0, None)
    assert (found["settle.json"].group, found["settle.json"].weight) == ("settle.json", None), "set/ is no part of its name"


@given(st.permutations(["s", "s/t", "s/t/a.json"]))
def test_the_order_of_the_entries_does_not_matter(order: list[str]) -> None:
    entries = source_files._entries({key: source_files.SourceParams(licence=key) for key in order}, ["s/t/a.json", "s/b.json"])
    assert source_files._key_of("s/t/a.json", entries) == "s/t/a.json"
    assert source_files._key_of("s/b.json", entries) == "s"


@pytest.mark.parametrize("key", ["b.json", "se", "set/b", "../x", "/", "", "A.json", "org/set", "set/../a.json"])
def test_an_entry_that_speaks_of_nothing_is_refused_with_what_there_is(tmp_path: Path, key: str) -> None:
    lay(tmp_path, "a.json", "set/c.json")
    said = refusal(tmp_path, sources={key: {"weight": 1.0}})
    assert "data.sources: no file, folder or hub id is called" in said and "There are: set, a.json, set/c.json." in said


def test_two_entries_for_one_source_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, "set/c.json")
    assert "two entries speak of the same source: set, set/" in refusal(tmp_path, sources={"set": {}, "set/": {}})


def test_a_licence_is_the_entrys_or_else_the_first_line_of_the_file_beside_the_data(tmp_path: Path) -> None:
    lay(tmp_path, "a.json", "b/c.json", "d/e.json")
    lay(tmp_path, "b/LICENCE.txt", text="\ufeff\n \n# MIT License\nmore")
    lay(tmp_path, "d/LICENSE", text="x" * 5000)
    lay(tmp_path, "d/LICENSE.jsonl")
    found = {file.name: file.licence for file in listed(tmp_path)}
    assert found == {
        "a.json": None,
        "b/c.json": "MIT License (LICENCE.txt)",
        "d/LICENSE.jsonl": f"{'x' * 80} (LICENSE)",
        "d/e.json": f"{'x' * 80} (LICENSE)",
    }
    assert {file.licence for file in listed(tmp_path, "b", sources={"c.json": {"licence": "CC0"}})} == {"CC0"}


def test_a_licence_file_that_is_binary_or_empty_says_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    lay(tmp_path, "a.json")
    (tmp_path / "LICENSE").write_bytes(b"\n\n")
    (tmp_path / "LICENSE.bin").write_bytes(b"\xff\xfe\x00terms")
    [file] = listed(tmp_path)
    assert file.licence is not None and file.licence.endswith("terms (LICENSE.bin)") and file.licence.isprintable()


def test_hub_sets_follow_the_files_and_each_is_one_group_with_its_cards_licence(tmp_path: Path, hub: None) -> None:
    lay(tmp_path, "a.json")
    found = listed(tmp_path, hub=hub_entries("org/one", "two"), sources={"two": {"weight": 3.0}, "a.json": {"weight": 1.0}})
    assert [file.name for file in found] == [
        "a.json",
        *(f"{name}/train-{i}.parquet" for name in ("org/one", "two") for i in (0, 1)),
    ]
    assert [file.group for file in found] == ["a.json", "org/one", "org/one", "two", "two"]
    assert [file.weight for file in found] == [1.0, None, None, 3.0, 3.0]
    assert {file.licence for file in found[1:]} == {"cc-by-4.0"}
    assert [file.origin for file in found] == [None, *[f"org/one@{REVISION}"] * 2, *[f"two@{REVISION}"] * 2]


def test_with_a_hub_set_nothing_needs_to_lie_at_the_default_path_but_at_a_path_of_yours(tmp_path: Path, hub: None) -> None:
    entries = hub_entries("org/one")
    assert len(listed(tmp_path, "inputs/data", hub=entries)) == 2
    lay(tmp_path, "inputs/data/.gitkeep")
    assert len(listed(tmp_path, "inputs/data", hub=entries)) == 2
    assert "does not exist" in refusal(tmp_path, "inputs/dta", hub=entries)


def test_a_file_that_is_read_twice_is_refused(tmp_path: Path, hub: None) -> None:
    lay(tmp_path, "a.json")
    assert "org/one/train-0.parquet is read twice" in refusal(tmp_path, hub=hub_entries("org/one", "org/one"))
    lay(tmp_path, "org/two/train-1.parquet")
    assert "org/two/train-1.parquet is read twice" in refusal(tmp_path, hub=hub_entries("org/two"))


def test_a_folder_is_looked_through_for_its_licence_once_however_many_files_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once per file it took minutes for a folder of 5,000."""
    lay(tmp_path, *(f"{index}.json" for index in range(30)), "sub/a.json", "sub/b.json")
    looked: list[Path] = []
    monkeypatch.setattr(source_files, "_licence_in", looked.append)
    assert len(listed(tmp_path)) == 32 and sorted(looked) == [tmp_path, tmp_path / "sub"]
