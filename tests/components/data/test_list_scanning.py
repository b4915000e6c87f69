"""Laws of the scan of a list: a long element costs time in proportion, and one over the limit is passed by and not held."""

import json
from pathlib import Path

import pytest

from components.data import list_scanning
from components.data.list_scanning import Element, Window, close_list, elements, open_list
from components.errors import DataError


def scan(file: Path, max_bytes: int) -> list[Element]:
    with file.open("rb") as handle:
        window = Window(file, handle, 0, file.stat().st_size, max_bytes)
        open_list(window)
        found = list(elements(window, is_whole_list=True))
        close_list(window)
        assert len(window.text) <= 4 * max(max_bytes, list_scanning.WINDOW)
        return found


@pytest.mark.parametrize("window", [1, 3, 16, 1 << 18])
@pytest.mark.parametrize(
    "long",
    [{"a": '"]}' * 200, "b": [[{"c": "\\"}]]}, ["\\\\", "[" * 500, {}], "\\" * 300 + '"'],
    ids=["object", "list", "text"],
)
def test_an_element_over_the_limit_is_passed_by_whatever_is_in_it(
    long: object, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_scanning, "WINDOW", window)
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"a": 1}, long, {"b": 2}]), encoding="utf-8")
    first, second, third = scan(file, 100)
    content = file.read_bytes()
    assert (first.raw, second.raw, third.raw) == (b'{"a": 1}', None, b'{"b": 2}')
    assert json.loads(content[second.start : second.stop]) == long


def test_an_element_that_grows_over_many_windows_is_decoded_a_number_of_times_that_grows_with_its_logarithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_scanning, "WINDOW", 64)
    calls = []
    decode = list_scanning.LENIENT.raw_decode
    monkeypatch.setattr(list_scanning.LENIENT, "raw_decode", lambda text, at: calls.append(len(text)) or decode(text, at))
    (tmp_path / "a.json").write_text(json.dumps(["a" * 100_000]), encoding="utf-8")
    [element] = scan(tmp_path / "a.json", 1 << 20)
    assert element.raw is not None and len(element.raw) == 100_002
    assert len(calls) < 15 and sum(calls) < 4 * 100_002


@pytest.mark.parametrize("end", ["", '"', "]", ' {"b": 1}'])
def test_an_element_over_the_limit_that_never_ends_is_an_error(end: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": "b"},\n{"c": [' + '"d", ' * 500 + end, encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json:2:\d+: not valid JSON: "):
        scan(tmp_path / "a.json", 100)
