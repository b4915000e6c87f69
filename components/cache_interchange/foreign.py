"""Reading the teacher caches of others, record by record: DistillKit's parquet files, vLLM's prompt logprobs as JSON lines.

    for record in read_foreign(Path("capture/"), vocabulary_size): ...

Memory is that of one line or row. What such a cache cannot tell is said in components.cache_interchange.foreign_laws,
the files themselves are described in foreign_jsonl and foreign_distillkit.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from components.cache_interchange.distillkit_codec import SETTINGS_FILE, read_settings
from components.cache_interchange.foreign_distillkit import read_distillkit
from components.cache_interchange.foreign_jsonl import read_prompt_logprobs
from components.cache_interchange.foreign_laws import ForeignRecord
from components.errors import DataError


def read_foreign(path: Path, vocabulary_size: int, *, settings_file: Path | None = None) -> Iterator[ForeignRecord]:
    """All records of a .parquet or .jsonl file, or of a folder of such files in the order of their numbers.

    `settings_file`: the settings of a DistillKit capture; without it the file beside the parquet files is used if there is one.
    """
    readers: dict[str, Callable[[Path], Iterator[ForeignRecord]]] = {
        ".jsonl": lambda file: read_prompt_logprobs(file, vocabulary_size),
        ".parquet": lambda file: _read_parquet(file, vocabulary_size, settings_file),
    }
    if not path.exists():
        raise DataError(f"{path} does not exist. Name the file or folder of the laws in teacher_cache.import_path in params.yaml")
    files = sorted((file for file in path.iterdir() if file.suffix in readers), key=_by_number) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no {' or '.join(readers)} file. Name the folder of the capture")
    for file in files:
        if file.suffix not in readers:
            raise DataError(f"{file}: neither {' nor '.join(readers)}. Unpack it, or convert it to one of them")
        yield from readers[file.suffix](file)


def _read_parquet(file: Path, vocabulary_size: int, settings_file: Path | None) -> Iterator[ForeignRecord]:
    beside = file.parent / SETTINGS_FILE
    if settings_file is None and beside.exists():
        settings_file = beside
    settings = None if settings_file is None else read_settings(settings_file)
    return read_distillkit(file, vocabulary_size, settings)


def _by_number(file: Path) -> list[int | str]:
    """data_2 before data_10; texts and numbers take turns, so any two names compare."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", file.name)]
