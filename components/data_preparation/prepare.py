"""From files to rows with everything that is known of them: parse, draw, tokenise, inspect, compare.

rows read = rows in + rows not drawn; rows in = rows used + rows quarantined. Always.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from components.artifacts import fingerprint_bytes, fingerprint_file
from components.data.file_blocks import TARGET_BYTES, Block, cut_blocks
from components.data.source_files import SourceFile
from components.data.tokenized import SPLITS
from components.data_contract.inspection import index_of_questions
from components.data_contract.overlap import OverlapIndex
from components.data_params import DataContractParams, DataParams
from components.data_preparation.cached_pass import Chunk, Pass, forget_others, run_pass
from components.data_preparation.drawn_rows import DrawnChunk, DrawnRows
from components.data_preparation.findings import Findings, find
from components.data_preparation.passes import inspect_pass, overlap_pass, parse_pass, tokenise_pass
from components.data_preparation.sampling import SourceRows, draw_rows, draw_table
from components.data_preparation.splits import TEST, split_by_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """A file to read; `split`: what all its rows are for, or None where their content decides."""

    file: SourceFile
    split: str | None = None


@dataclass(frozen=True)
class Prepared:
    """`rows`: those drawn; `num_read`: all rows of each source."""

    rows: DrawnRows
    found: Findings
    num_read: tuple[int, ...]


def prepare(
    sources: Sequence[Source],
    tokenizer: "PreTrainedTokenizerBase",
    params: DataParams,
    contract: DataContractParams,
    held_out: OverlapIndex,
    work: Path,
) -> Prepared:
    """Everything up to the verdict; `work` keeps the passes' results for the next run."""
    (work / "unpacked").mkdir(parents=True, exist_ok=True)
    chunks, owners = _cut(sources, work / "unpacked")
    _forget_other_unpacked(work / "unpacked", chunks)
    parsed = run_pass(parse_pass(), chunks, work)
    rows, num_read = _draw(sources, parsed, chunks, owners, params)
    split = _split(rows, params)
    used = [*parsed]
    used += _run(rows, "tokenised", tokenise_pass(tokenizer, params.max_length), work)
    used += _run(rows, "inspected", inspect_pass(), work)
    used += _run(rows, "overlapped", overlap_pass(held_out, _test_index(rows, split, contract.overlap_words)), work)
    found = find(rows, split, contract, work)
    forget_others(work, used)
    return Prepared(rows, found, num_read)


def _cut(sources: Sequence[Source], unpacked: Path) -> tuple[list[Chunk], list[int]]:
    """One chunk per block, and the number of the source that it is of."""
    chunks, owners = [], []
    for number, source in enumerate(sources):
        fingerprint_once = cache(fingerprint_file)
        for block in cut_blocks(source.file.path, work=unpacked):
            about = f"{block.form} {block.start} {block.first_place}".encode()
            key = fingerprint_bytes(about, _content(block, fingerprint_once))
            chunks.append(Chunk(key, blocks={name: [value] for name, value in vars(block).items()}))
            owners.append(number)
    return chunks, owners


def _forget_other_unpacked(unpacked: Path, chunks: Sequence[Chunk]) -> None:
    """Remove what was unpacked of files that are not read any more, or was begun by a killed run."""
    read = {path for chunk in chunks for path in chunk.blocks["path"]}
    for file in unpacked.iterdir():
        if str(file) not in read:
            file.unlink(missing_ok=True)


def _content(block: Block, fingerprint_of: Callable[[Path], str]) -> bytes:
    """What the block holds, as far as it decides its rows. A row of any length is never held whole."""
    if block.form == "parquet":
        return f"{fingerprint_of(Path(block.path))} {block.stop}".encode()
    content = b""
    with open(block.path, "rb") as opened:
        opened.seek(block.start)
        while piece := opened.read(min(TARGET_BYTES, block.stop - opened.tell())):
            content = fingerprint_bytes(content, piece).encode()
    return content


def _draw(
    sources: Sequence[Source], parsed: Sequence[Path], chunks: Sequence[Chunk], owners: Sequence[int], params: DataParams
) -> tuple[DrawnRows, tuple[int, ...]]:
    """The rows that are taken of each source, as chunks; and how many rows each source has."""
    whole = _whole(sources, parsed, chunks, owners)
    hashes, is_rejected = whole.numbers("parsed.content_hash"), whole.is_null("parsed.conversation")
    of_source = np.repeat([chunk.source for chunk in whole.chunks], [chunk.num_rows for chunk in whole.chunks])
    bounds = np.searchsorted(of_source, np.arange(len(sources) + 1))  # rows stand in the order of the sources
    asked = [
        SourceRows(
            name=source.file.name,
            group=source.file.group if source.split is None else source.file.name,
            content_hash=hashes[bounds[number] : bounds[number + 1]],
            is_rejected=is_rejected[bounds[number] : bounds[number + 1]],
            weight=source.file.weight if source.split is None else None,
            max_examples=source.file.max_examples if source.split is None else None,
        )
        for number, source in enumerate(sources)
    ]
    masks = draw_rows(asked)
    drawn = np.concatenate(masks) if masks else np.empty(0, dtype=bool)
    if not drawn.all():
        print(draw_table(asked, masks), flush=True)
    taken, start = [], 0
    for chunk in whole.chunks:
        marks = drawn[chunk.start : chunk.start + chunk.num_rows]
        indices = None if marks.all() else np.flatnonzero(marks)
        if marks.any():
            parsed_rows = Chunk(chunk.parsed.key, chunk.parsed.file, indices=indices)
            taken.append(DrawnChunk(chunk.source, parsed_rows, start, int(marks.sum()), block=chunk.block))
            start += int(marks.sum())
    return DrawnRows(whole.sources, whole.fixed_splits, taken), tuple(len(one.is_rejected) for one in asked)


def _whole(sources: Sequence[Source], parsed: Sequence[Path], chunks: Sequence[Chunk], owners: Sequence[int]) -> DrawnRows:
    whole, start = [], 0
    for file, chunk, owner in zip(parsed, chunks, owners, strict=True):
        read = Chunk(fingerprint_bytes(chunk.key.encode()), file)
        num_rows = len(read.open())
        block = Block(**{name: values[0] for name, values in chunk.blocks.items()})
        whole.append(DrawnChunk(owner, read, start, num_rows, block=block))
        start += num_rows
    return DrawnRows([source.file for source in sources], [source.split for source in sources], whole)


def _split(rows: DrawnRows, params: DataParams) -> npt.NDArray[np.int8]:
    """0, 1, 2: train, validation, test, [R]; with a test set of one's own no row is drawn for testing."""
    has_test = any(split == "test" for split in rows.fixed_splits)
    by_content = split_by_hash(
        rows.numbers("parsed.content_hash"), 0.0 if has_test else params.test_fraction, params.validation_fraction
    )
    for chunk in rows.chunks:
        if (fixed := rows.fixed_splits[chunk.source]) is not None:
            by_content[chunk.start : chunk.start + chunk.num_rows] = SPLITS.index(fixed)
    return by_content


def _run(rows: DrawnRows, name: str, step: Pass, work: Path) -> list[Path]:
    files = run_pass(step, [chunk.parsed for chunk in rows.chunks], work)
    for chunk, file in zip(rows.chunks, files, strict=True):
        chunk.files[name] = file
    return files


def _test_index(rows: DrawnRows, split: npt.NDArray[np.int8], n: int) -> OverlapIndex:
    """What the in-domain test rows ask, so that no training row repeats it."""
    names, conversations = [], []
    for start, _, table in rows.tables(["parsed.conversation"]):
        texts = table.column(0).to_pylist()
        for position in np.flatnonzero(split[start : start + len(texts)] == TEST):
            if texts[position] is not None:
                names.append(rows.row_id(start + int(position)))
                conversations.append(texts[position])
    return index_of_questions(names, conversations, n)
