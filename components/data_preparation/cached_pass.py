"""One pass over the rows: a pure function of a table, run on all cores by `datasets`, its results kept by content.

A pass works chunk by chunk (a chunk is what one process does at a time, and what a killed run has to do again at most). The
result of a chunk is a file of the `datasets` cache, named by what decides its content: the pass and its settings, the code's
version (ours, and the libraries'), and the rows. The fingerprints that `datasets` makes by itself follow modification times and
pickled code. So the same rows are never worked on twice: not after a kill, not when a limit of the contract changes, not when
rows are added at the end (but by the search for overlaps, where other test rows are drawn).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, disable_progress_bars
from tqdm import tqdm

from components.artifacts import fingerprint_bytes, fingerprint_file, fingerprint_json
from components.data_preparation.workers import map_on_cores

CODE = ("data/*.py", "data_contract/*.py", "data_preparation/passes.py")
LIBRARIES = ("transformers", "tokenizers", "ftfy", "py3langid", "pyarrow")


@dataclass(frozen=True)
class Pass:
    """`settings`: fingerprint of all that decides the result beside the rows; `schema`: the columns it leaves."""

    name: str
    function: Callable[[pa.Table], pa.Table]
    schema: pa.Schema
    settings: str
    batch_size: int = 1000


@dataclass(frozen=True)
class Chunk:
    """Rows that one process works on: those of `file`, or only the rows `indices` of them.

    `key`: fingerprint of what they hold. `blocks` in place of a file: the first pass, which reads bytes.
    """

    key: str
    file: Path | None = None
    blocks: dict[str, list[Any]] = field(default_factory=dict)
    indices: Any = None

    def open(self) -> Dataset:
        """Memory-mapped, so what is not looked at costs nothing."""
        if self.file is None:
            return Dataset.from_dict(self.blocks)
        rows = Dataset.from_file(str(self.file))
        return rows if self.indices is None else rows.select(self.indices)

    @property
    def row_key(self) -> str:
        return self.key if self.indices is None else fingerprint_bytes(self.key.encode(), self.indices.tobytes())


def run_pass(step: Pass, chunks: Sequence[Chunk], folder: Path) -> list[Path]:
    """The file that the pass leaves of each chunk, in order; what is there already is not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{step.name}-{_key(step, chunk)}.arrow" for chunk in chunks]
    missing = [(chunk, target) for chunk, target in zip(chunks, targets, strict=True) if not target.exists()]
    bar = tqdm(total=len(chunks), initial=len(chunks) - len(missing), desc=step.name, unit="chunk")
    with bar:
        for _ in map_on_cores(partial(_apply, step), missing):
            bar.update()
    return targets


def forget_others(folder: Path, kept: Sequence[Path]) -> None:
    """Remove what no pass of this run has left or used: the cache holds one state of the data, not their history."""
    names = {file.name for file in kept}
    for file in folder.iterdir():
        if file.name not in names and (file.suffix == ".arrow" or file.name.startswith("tmp")):
            file.unlink(missing_ok=True)


def _apply(step: Pass, task: tuple[Chunk, Path]) -> None:
    chunk, target = task
    disable_progress_bars()  # one bar over all chunks is enough
    rows = chunk.open()
    rows.with_format("arrow").map(
        step.function,
        batched=True,
        batch_size=step.batch_size,
        remove_columns=rows.column_names,
        features=Features.from_arrow_schema(step.schema),
        cache_file_name=str(target),
        new_fingerprint=target.stem,
    )


def _key(step: Pass, chunk: Chunk) -> str:
    return fingerprint_bytes(_code_key().encode(), step.settings.encode(), chunk.row_key.encode())


@lru_cache(maxsize=1)
def _code_key() -> str:
    """What the passes are made of: our modules that take part, byte for byte, and the libraries' versions."""
    parent = Path(__file__).parent.parent
    files = sorted(file for pattern in CODE for file in parent.glob(pattern))
    return fingerprint_json(
        [[file.name, fingerprint_file(file)] for file in files] + [[name, version(name)] for name in LIBRARIES]
    )
