"""From files to tokenised splits: read, render, split, check. Rows in = rows used + rows quarantined, always."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from components.artifacts import fingerprint_bytes, fingerprint_json
from components.data.embedded_files import read_laws
from components.data.overlap import OverlapIndex, normalised_fingerprint
from components.data.rendering import DoesNotFitError, RenderedExample, render
from components.data.sources import Conversation, Rejection, list_sources, read_source
from components.data.tokenized import SPLITS, TokenizedRow
from components.data.validation import RowSummary
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

    def counts(self) -> dict[str, Any]:
        """Rows in, used and quarantined, and target tokens per split; the sums must agree."""
        used = {split: len(rows) for split, rows in self.splits.items()}
        assert self.num_rows_in == sum(used.values()) + len(self.rejections), "a row was lost"
        return {
            "rows_in": self.num_rows_in,
            "rows_used": used,
            "rows_quarantined": len(self.rejections),
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
    return int(fingerprint_bytes(salt.encode(), words.encode())[:13], 16) / 16**13


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
        for index, row in enumerate(tqdm(_sample(file, params.max_examples), desc=file.name, unit="row")):
            into.num_rows_in += 1
            if isinstance(row, Rejection):
                into.rejections.append(row)
                continue
            try:
                rendered = render(row.messages, tokenizer, params.max_length)
            except DoesNotFitError as fault:
                into.rejections.append(Rejection(row.row_id, row.source, str(fault)))
                continue
            split = split_of(row)
            truth = None if laws is None else json.dumps([_law_of_ids(law, tokenizer) for law in laws[index]])
            into.splits[split].append(_tokenized(row, rendered, truth))
            into.summaries.append(_summarise(row, rendered, split, overlaps, tokenizer))
    return into


def _sample(file: Path, max_examples: int | None) -> Iterable[Conversation | Rejection]:
    """All rows, or the `max_examples` good ones with the smallest content hash: a random sample that stays when rows are added."""
    if max_examples is None:
        return read_source(file)
    rows = list(read_source(file))
    ranked = sorted((_content_share(row, "sample"), index) for index, row in enumerate(rows) if isinstance(row, Conversation))
    kept = {index for _, index in ranked[:max_examples]}
    return [row for index, row in enumerate(rows) if isinstance(row, Rejection) or index in kept]


def require_rows(prepared: PreparedData) -> None:
    """Every split must have something in it; the message says what became of the rows."""
    for split, rows in prepared.splits.items():
        if not rows:
            reasons = Counter(rejection.reason for rejection in prepared.rejections).most_common(2)
            told = "; ".join(f"{count} x {reason}" for reason, count in reasons) or "no row was rejected"
            raise DataError(
                f"the {split} split is empty: {prepared.num_rows_in} rows in, {len(prepared.rejections)} quarantined ({told}). "
                "Add data, or raise data.max_length, data.validation_fraction or data.test_fraction in params.yaml"
            )


def train_fingerprint(rows: Sequence[TokenizedRow]) -> str:
    return fingerprint_json([row.fingerprint for row in rows])


def _tokenized(row: Conversation, rendered: RenderedExample, laws: str | None) -> TokenizedRow:
    return TokenizedRow(row.row_id, row.source, row.schema, rendered.fingerprint, rendered.input_ids, rendered.is_target, laws)


def _law_of_ids(law: dict[str, float], tokenizer: "PreTrainedTokenizerBase") -> dict[str, float]:
    return {str(tokenizer.convert_tokens_to_ids(word)): probability for word, probability in law.items()}


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
        end_of_turn_is_target=bool(targets) and _ends_turn(targets[-1], tokenizer),
        prompt_characters=sum(map(len, texts)) - sum(map(len, answers)),
        target_characters=sum(map(len, answers)),
        fingerprint=fingerprint_bytes(rendered.text.encode()),
        num_ood_overlaps=sum(len(overlaps.find(text)) for text in texts) if split == "train" else 0,
        has_replacement_character=any("\ufffd" in text for text in texts),
        answer_is_well_formed=_has_number(answers[-1]) if row.schema == "gsm8k" else None,
    )


def _ends_turn(token: int, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """The last target closes the turn: the end-of-sequence token or any special token of the chat format."""
    return token == tokenizer.eos_token_id or token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder


def _has_number(answer: str) -> bool:
    tail = answer.rpartition("####")[2].strip().replace(",", "").removeprefix("$")
    return tail.removeprefix("-").replace(".", "", 1).isdigit()
