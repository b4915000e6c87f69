"""The table of laws in docs/objective.md names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`((?:\w+/)+test_\w+\.py)::(test_\w+)`")


def test_every_law_of_the_documentation_names_a_test_that_exists() -> None:
    laws = NAMED.findall((ROOT / "docs" / "objective.md").read_text(encoding="utf-8"))
    assert len(laws) > 30
    for file, name in laws:
        tree = ast.parse((ROOT / "tests" / "components" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
