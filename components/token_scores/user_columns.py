"""A user's own scores, read from JSON lines: every target token of every training row has one number in every column.

    {"fingerprint": "8d2f…", "difficulty": [0.5, 2, 0.25]}

The fingerprint is that of the row in artifacts/data/train.arrow (docs/token-scores.md shows how to list them). A row that is
missing, unknown or given twice, a wrong number of scores and a value that is no finite number are refused with file, line,
value and repair.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.artifacts import fingerprint_file, fingerprint_json
from components.data.faults import BadRowError
from components.data.json_rows import read_rows
from components.data.strict_json import kind_of
from components.data.training_rows import TrainingRow, count_targets
from components.errors import DataError

LARGEST = float(torch.finfo(torch.float32).max)
LISTING = "docs/token-scores.md shows how to list the rows"


def read_user_columns(path: Path, names: Sequence[str], rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
    """Columns `names` of distinct `rows`, [N] each, from one file or all .jsonl files of a folder."""
    counts = {row.fingerprint: count_targets(row) for row in rows}
    found: dict[str, dict[str, Tensor]] = {}
    places: dict[str, str] = {}
    for file in column_files(path):
        for line, value in read_rows(file):
            place = f"{file}:{line}"
            fingerprint, scores = _read_row(place, value, names, counts)
            if fingerprint in found:
                raise DataError(f"{place}: row {fingerprint} was given at {places[fingerprint]} already. Remove one of the lines")
            found[fingerprint], places[fingerprint] = scores, place
    missing = [fingerprint for fingerprint in counts if fingerprint not in found]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(counts)} training rows have no scores, the first is {missing[0]} "
            f"({counts[missing[0]]} target tokens). Add a line for each; {LISTING}"
        )
    return {name: torch.cat([found[fingerprint][name] for fingerprint in counts]) for name in names}


def column_files(path: Path) -> list[Path]:
    """The file itself, or the .jsonl files of a folder by name."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() and file.suffix == ".jsonl" for file in files):
        raise DataError(
            f"{path} is no .jsonl file and no folder that holds one. Put your columns there, set token_scores.columns_path, "
            "or set token_scores.columns: []"
        )
    return files


def files_fingerprint(path: Path) -> str:
    """Fingerprint of the files' content, whatever their names."""
    return fingerprint_json([fingerprint_file(file) for file in column_files(path)])


def _read_row(place: str, value: Any, names: Sequence[str], counts: Mapping[str, int]) -> tuple[str, dict[str, Tensor]]:
    if isinstance(value, BadRowError):
        raise DataError(f"{place}: {value}. Mend this line")
    if not isinstance(value, dict) or not isinstance(value.get("fingerprint"), str):
        found = kind_of(value.get("fingerprint")) + " as fingerprint" if isinstance(value, dict) else kind_of(value)
        raise DataError(f'{place}: a line must be {{"fingerprint": "<of the row>", "{names[0]}": [numbers]}}, found {found}')
    fingerprint = value["fingerprint"]
    if fingerprint not in counts:
        raise DataError(f"{place}: {fingerprint!r} is no training row. Remove the line or make the file anew; {LISTING}")
    for name in sorted(value.keys() - {"fingerprint", *names}):
        raise DataError(f"{place}: unknown column {name!r}. Add it to token_scores.columns, now {list(names)}, or remove it")
    return fingerprint, {name: _scores(f"{place}: {name}", value.get(name), counts[fingerprint]) for name in names}


def _scores(place: str, value: Any, num_targets: int) -> Tensor:
    if not isinstance(value, list):
        found = "nothing" if value is None else kind_of(value)
        raise DataError(f"{place} must be a list of {num_targets} numbers, one per target token, found {found}. Mend this line")
    if len(value) != num_targets:
        raise DataError(
            f"{place} has {len(value)} numbers, the row has {num_targets} target tokens (a row's first token is never one). "
            f"Mend this line; {LISTING}"
        )
    for index, number in enumerate(value):
        is_number = type(number) in (int, float)  # a truth value is an int to Python
        if not (is_number and abs(number) <= LARGEST):
            shown = repr(number)[:40] if is_number else kind_of(number)
            raise DataError(f"{place}[{index}] must be a finite number that float32 can hold, found {shown}. Mend this value")
    return torch.tensor(value, dtype=torch.float32)
