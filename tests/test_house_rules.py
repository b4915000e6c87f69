"""The rules of the house that a linter does not know: short functions, short modules, telling names, empty packages."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.artifacts import ROOT

MODULES = sorted(path for folder in ("components", "flows") for path in (ROOT / folder).rglob("*.py"))
MAX_FUNCTION_LINES = 50
MAX_MODULE_LINES = 400
LONGER_FUNCTIONS: dict[str, str] = {}
"""`<module>.<function>`: why it must stay longer."""
NAMES_OF_NOTHING = {"util", "utils", "helper", "helpers", "common", "misc"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines, signature and docstring included, decorators not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{name_of(path)}.{node.name}", node.end_lineno - node.lineno + 1


def test_no_function_is_longer_than_fifty_lines() -> None:
    assert MODULES, "the test must find the house"
    long = {name: lines for path in MODULES for name, lines in functions(path) if lines > MAX_FUNCTION_LINES}
    assert long.keys() == LONGER_FUNCTIONS.keys(), f"split it, or give its reason in LONGER_FUNCTIONS: {long}"


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > MAX_MODULE_LINES} == {}


def test_no_module_or_package_has_a_name_that_says_nothing() -> None:
    parts = {part for path in MODULES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not parts & NAMES_OF_NOTHING


@pytest.mark.parametrize("file", [path for path in MODULES if path.name == "__init__.py"], ids=name_of)
def test_package_files_are_empty_because_imports_are_cache_keys(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == ""


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
