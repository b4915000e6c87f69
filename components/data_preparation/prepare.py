"""From files to tokenised splits: read, render, split, check. Rows in = rows used + rows quarantined, always."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from components.artifacts import fingerprint_bytes, fingerprint_json
from components.data.embedded_files import read_laws
from components.data.rendering import RenderedExample, UnrenderableError, render
from components.data.sources import Conversation, Rejection, list_sources, read_source
from components.data.tokenized import SPLITS, TokenizedRow
from components.data_contract.overlap import OverlapIndex, normalised_fingerprint
from components.data_contract.validation import RowSummary
from components.errors import DataError
from components.params import DataParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SplitOf = Callable[[Conversation], str]


@dataclass
class PreparedData:
    """Rows per split, their summaries for validation, and every rejected row with its reason."""

    splits: dict[str, list[TokenizedRow]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    summaries: list[RowSummary] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    num_rows_in: int = 0
    num_rows_cut: int = 0

    def counts(self) -> dict[str, Any]:
        """Rows in, used, quarantined and cut short (the last exchanges did not fit), target tokens per split; sums must agree."""
        used = {split: len(rows) for split, rows in self.splits.items()}
        assert self.num_rows_in == sum(used.values()) + len(self.rejections), "a row was lost"
        return {
            "rows_in": self.num_rows_in,
            "rows_used": used,
            "rows_quarantined": len(self.rejections),
            "rows_cut": self.num_rows_cut,
            "target_tokens": {split: sum(row.num_targets for row in rows) for split, rows in self.splits.items()},
            "schemas": dict(sorted(Counter(row.schema for rows in self.splits.values() for row in rows).items())),
        }


def always(split: str) -> SplitOf:
    """For data that come already split."""
    return lambda _: split


def split_by_content(params: DataParams) -> SplitOf:
    """Held-out splits by a hash of the conversation: stable when rows are added, and copies of a row share its split."""

    def split_of(conversation: Conversation) -> str:
        share = _content_share(conversation, "split")
        if share < params.test_fraction:
            return "test"
        return "validation" if share < params.test_fraction + params.validation_fraction else "train"

    return split_of


def _content_share(conversation: Conversation, salt: str) -> float:
    """A number in [0, 1) that depends on the conversation's words only."""
    words = "\n".join(normalised_fingerprint(message["content"]) for message in conversation.messages)
    return _share(words.encode(), salt)


def _share(content: bytes, salt: str) -> float:
    return int(fingerprint_bytes(salt.encode(), content)[:13], 16) / 16**13


def prepare_files(
    path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    params: DataParams,
    split_of: SplitOf,
    overlaps: OverlapIndex,
    into: PreparedData,
) -> PreparedData:
    """Read every file at `path` into `into`; a row that cannot be used is quarantined with its reason."""
    for file in list_sources(path):
        laws = read_laws(file)
        for index, row in tqdm(_sample(file, params.max_examples), desc=file.name, unit="row"):
            into.num_rows_in += 1
            if isinstance(row, Rejection):
                into.rejections.append(row)
                continue
            try:
                rendered = render(row.messages, tokenizer, params.max_length)
            except UnrenderableError as fault:
                into.rejections.append(Rejection(row.row_id, row.source, str(fault)))
                continue
            into.num_rows_cut += rendered.num_turns_cut > 0
            split = split_of(row)
            truth = None if laws is None else laws_as_json(laws[index], rendered, tokenizer)
            into.splits[split].append(_tokenized(row, rendered, truth))
            into.summaries.append(_summarise(row, rendered, split, overlaps, tokenizer))
    return into


def _sample(file: Path, max_examples: int | None) -> Iterator[tuple[int, Conversation | Rejection]]:
    """Rows with their index in the file: all, or the `max_examples` good ones with the smallest content hash, which stay when
    rows are added. Of the bad rows the same share is kept, so that `max_rejected_fraction` means the same for a sample."""
    if max_examples is None:
        yield from enumerate(read_source(file))
        return
    rows = list(enumerate(read_source(file)))
    ranked = sorted((_content_share(row, "sample"), index) for index, row in rows if isinstance(row, Conversation))
    kept = {index for _, index in ranked[:max_examples]}
    share = len(kept) / len(ranked) if ranked else 1.0
    for index, row in rows:
        if index in kept or (isinstance(row, Rejection) and _share(f"{row.row_id} {row.reason}".encode(), "sample") < share):
            yield index, row


def laws_as_json(laws: list[dict[str, float]], rendered: RenderedExample, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The true law of each target token, by token id; the laws of exchanges that were cut off are left out."""
    kept = laws[: sum(rendered.is_target)]
    return json.dumps([{str(tokenizer.convert_tokens_to_ids(word)): share for word, share in law.items()} for law in kept])


def require_rows(prepared: PreparedData) -> None:
    """Every split must have something in it; the message says what became of the rows."""
    for split, rows in prepared.splits.items():
        if not rows:
            reasons = Counter(rejection.reason for rejection in prepared.rejections).most_common(2)
            first = {rejection.reason: rejection.row_id for rejection in reversed(prepared.rejections)}
            told = "; ".join(f"{count} x {reason}, first {first[reason]}" for reason, count in reasons) or "no row was rejected"
            raise DataError(
                f"the {split} split is empty: {prepared.num_rows_in} rows in, {len(prepared.rejections)} quarantined ({told}). "
                "Add data, or raise data.max_length, data.validation_fraction or data.test_fraction in params.yaml"
            )


def train_fingerprint(rows: Sequence[TokenizedRow]) -> str:
    return fingerprint_json([row.fingerprint for row in rows])


def _tokenized(row: Conversation, rendered: RenderedExample, laws: str | None) -> TokenizedRow:
    return TokenizedRow(row.row_id, row.source, row.schema, rendered.fingerprint, rendered.input_ids, rendered.is_target, laws)


def _summarise(
    row: Conversation, rendered: RenderedExample, split: str, overlaps: OverlapIndex, tokenizer: "PreTrainedTokenizerBase"
) -> RowSummary:
    roles = [message["role"] for message in row.messages if message["role"] != "system"]
    texts = [message["content"] for message in row.messages]
    answers = [message["content"] for message in row.messages if message["role"] == "assistant"]
    targets = [token for token, is_target in zip(rendered.input_ids, rendered.is_target, strict=True) if is_target]
    return RowSummary(
        row_id=row.row_id,
        split=split,
        source=row.source,
        schema=row.schema,
        num_turns=len(row.messages),
        num_tokens=len(rendered.input_ids),
        num_target_tokens=len(targets),
        starts_with_user=roles[0] == "user",
        ends_with_assistant=roles[-1] == "assistant",
        end_of_turn_is_target=bool(targets) and targets[-1] in _closing_ids(tokenizer),
        prompt_characters=sum(map(len, texts)) - sum(map(len, answers)),
        target_characters=sum(map(len, answers)),
        fingerprint=fingerprint_bytes(rendered.text.encode()),
        num_ood_overlaps=sum(len(overlaps.find(text)) for text in texts) if split == "train" else 0,
        has_replacement_character=any("\ufffd" in text for text in texts),
        answer_is_well_formed=_has_number(answers[-1]) if row.schema == "gsm8k" else None,
    )


@lru_cache(maxsize=4)  # Gemma has 6,400 added tokens
def _closing_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """What may close a turn as its last target: the end of sequence or any special token of the chat format."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({tokenizer.eos_token_id, *tokenizer.all_special_ids, *special})


def _has_number(answer: str) -> bool:
    tail = answer.rpartition("####")[2].strip().replace(",", "").removeprefix("$")
    return tail.removeprefix("-").replace(".", "", 1).isdigit()
