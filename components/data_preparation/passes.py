"""The passes over the rows, each a pure function of a table: parse, tokenise, inspect, look for overlaps.

The columns that they leave are the contract between them: PARSED, TOKENISED, INSPECTED, OVERLAPS.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from components.artifacts import fingerprint_json
from components.data.conversations import encode_conversation
from components.data.faults import BadRowError
from components.data.file_blocks import Block, RawRow, read_block
from components.data.rendering import template_fingerprint, tokenizer_fingerprint
from components.data.schemas import parse_rows
from components.data.tokenising import TOKENISED, tokenise_table
from components.data_contract.content_hash import content_hash
from components.data_contract.inspection import INSPECTED, OVERLAPS, find_overlaps, inspect_table
from components.data_contract.overlap import OverlapIndex
from components.data_preparation.cached_pass import Pass

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARSED = pa.schema(
    [
        ("place", pa.int64()),
        ("part", pa.int32()),
        ("schema", pa.string()),
        ("conversation", pa.string()),
        ("content_hash", pa.uint64()),
        ("fault_kind", pa.string()),
        ("fault", pa.string()),
    ]
)
STORED_INSPECTED = pa.schema(
    [field.with_type(pa.binary()) if pa.types.is_fixed_size_binary(field.type) else field for field in INSPECTED]
)
"""`datasets` knows no binary of a fixed size."""


def parse_pass() -> Pass:
    return Pass("parse", _parse_blocks, PARSED, "parse", batch_size=1)


def tokenise_pass(tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Pass:
    settings = [tokenizer_fingerprint(tokenizer), template_fingerprint(tokenizer), tokenizer.special_tokens_map, max_length]
    return Pass("tokenise", partial(_tokenise, tokenizer, max_length), TOKENISED, fingerprint_json(settings))


def inspect_pass() -> Pass:
    return Pass("inspect", _inspect, STORED_INSPECTED, "inspect")


def overlap_pass(held_out: OverlapIndex, test: OverlapIndex) -> Pass:
    """Beside the inspection, which other held-out sets do not change."""
    return Pass("overlap", partial(_overlap, held_out, test), OVERLAPS, f"{held_out.fingerprint} {test.fingerprint}")


def _inspect(rows: pa.Table) -> pa.Table:
    return inspect_table(rows).cast(STORED_INSPECTED)


def _overlap(held_out: OverlapIndex, test: OverlapIndex, rows: pa.Table) -> pa.Table:
    return find_overlaps(rows, held_out, test)


def _tokenise(tokenizer: "PreTrainedTokenizerBase", max_length: int, rows: pa.Table) -> pa.Table:
    return tokenise_table(rows.column("conversation"), tokenizer, max_length)


def _parse_blocks(blocks: pa.Table) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in PARSED.names}
    for block in blocks.to_pylist():
        for raw in read_block(Block(**block)):
            for row in _parse_row(raw):
                for name, values in columns.items():
                    values.append(row.get(name))
    return pa.table(columns, schema=PARSED)


def _parse_row(raw: RawRow) -> list[dict[str, Any]]:
    try:
        if isinstance(raw.value, BadRowError):
            raise raw.value
        schema, examples = parse_rows(raw.value)
    except BadRowError as fault:
        return [{"place": raw.place, "part": 1, "schema": "", "fault_kind": fault.kind.value, "fault": str(fault)}]
    return [
        {
            "place": raw.place,
            "part": part,
            "schema": schema,
            "conversation": encode_conversation(messages),
            "content_hash": content_hash([(message["role"], message["content"]) for message in messages]),
        }
        for part, messages in enumerate(examples, start=1)
    ]
