"""Held-out sets as files: which there are, their rows, and the texts that no training row may repeat."""

import json
from pathlib import Path
from typing import Any

from components.data.sources import LAWS_SUFFIX
from components.errors import DataError

SUFFIXES = (".json", ".jsonl", ".txt")
MIN_WORDS = 4
"""A held-out text with fewer words (a bare answer) says nothing when a training turn equals it."""
Row = dict[str, Any]


def list_ood_files(path: Path) -> list[Path]:
    """Every set file at `path`: one file, or all of a folder and its subfolders, in name order."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    found = [file for file in files if file.suffix in SUFFIXES and not file.name.endswith(LAWS_SUFFIX)]
    if not found:
        raise DataError(f"data.ood_path: no .json, .jsonl or .txt set at {path}. Put held-out sets there or set data.ood_path")
    return found


def read_json_rows(file: Path) -> list[Row]:
    """The rows of a .json list, a .jsonl file or a BIG-Bench Hard file (`examples`)."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        lines = text.split("\n")
        rows = [json.loads(line) for line in lines if line.strip()] if file.suffix == ".jsonl" else json.loads(text)
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: cannot be read as a held-out set ({error}). Mend or remove the file") from None
    rows = rows.get("examples", []) if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: a held-out set must be a list of JSON objects")
    return rows


def ood_texts(file: Path) -> list[str]:
    """Texts of a set, one entry per string value (what is asked of a conversation, lines of a plain text)."""
    if file.suffix == ".txt":
        texts = file.read_text(encoding="utf-8").splitlines()
    else:
        texts = [text for row in read_json_rows(file) for text in _strings(row)]
    return [text for text in texts if len(text.split()) >= MIN_WORDS]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict) and value.get("role", "user") != "user":
        return []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in _strings(part)]
