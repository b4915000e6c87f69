"""From rows to a micro-batch: token ids, labels, and the columns of every predicted token (teacher's laws, token scores).

Shapes: N = predicted tokens of the micro-batch in row-major order, K cached entries.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from components.artifacts import fingerprint_row
from components.data.batching import pack_rows, pad_rows
from components.data.training_rows import TrainingRow, count_targets
from components.teacher_cache.reader import RecordRequest, TeacherCacheReader

TEACHER_COLUMNS = ("entry_ids", "entry_logprobs", "tail_logprob", "label_logprob")
TEACHER_PREFIX, SCORE_PREFIX = "teacher_", "score_"


class ScoreSource(Protocol):
    """What holds scores per target token; components.token_scores.reader.TokenScoreReader does."""

    def read(self, fingerprint: str, num_targets: int) -> Mapping[str, Tensor]: ...


class TeacherCollator:
    """Pads or packs rows; with a cache adds `teacher_*`, with scores `score_<column>`.

    Each row's record is looked up by its actual token ids. A cache of all positions (`positions: all`) also has the prompt's:
    `with_prompt` says whether the objective wants them.
    """

    def __init__(
        self,
        pad_token_id: int,
        cache: TeacherCacheReader | None,
        *,
        scores: ScoreSource | None = None,
        columns: Sequence[str] = (),
        packing: bool = False,
        with_prompt: bool = False,
    ) -> None:
        self.pad_token_id = pad_token_id
        self.cache = cache
        self.scores = scores
        self.columns = tuple(columns)
        self.packing = packing
        self.with_prompt = with_prompt

    def __call__(self, rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
        batch = pack_rows(rows) if self.packing else pad_rows(rows, self.pad_token_id)
        names = [fingerprint_row(row.input_ids, row.is_target) for row in rows]
        if self.cache is not None:
            columns = self._teacher_columns(self.cache, rows, names)
            batch |= {f"{TEACHER_PREFIX}{name}": columns[name] for name in TEACHER_COLUMNS}
        if self.columns:
            assert self.scores is not None, "columns come from artifacts/token_scores"
            found = [self._scores(self.scores, row, name) for row, name in zip(rows, names, strict=True)]
            batch |= {f"{SCORE_PREFIX}{name}": torch.cat([record[name] for record in found]) for name in self.columns}
        return batch

    def _teacher_columns(self, cache: TeacherCacheReader, rows: Sequence[TrainingRow], names: Sequence[str]) -> dict[str, Tensor]:
        """Columns of the rows' predicted tokens: their targets, or all of them."""
        if self.with_prompt and cache.holds_prompt:
            return cache.read_batch([RecordRequest(name, len(row.input_ids) - 1) for row, name in zip(rows, names, strict=True)])
        columns = cache.read_batch([cache.targets_of(name, row.is_target) for row, name in zip(rows, names, strict=True)])
        if not self.with_prompt:
            return columns
        # Only with an online teacher: the cache serves the base's logprob of the labels, and of a prompt token none is looked at.
        is_target_N = torch.cat([torch.tensor(row.is_target[1:]) for row in rows])
        return {column: spread_targets(values, is_target_N) for column, values in columns.items()}

    def _scores(self, scores: ScoreSource, row: TrainingRow, name: str) -> dict[str, Tensor]:
        """Scores are of targets; a prompt token that is only distilled has none, and 0 in its place is never looked at."""
        record = scores.read(name, count_targets(row))
        if not self.with_prompt:
            return dict(record)
        is_target_N = torch.tensor(row.is_target[1:])
        return {column: spread_targets(record[column].float(), is_target_N) for column in self.columns}


def spread_targets(values: Tensor, is_target_N: Tensor) -> Tensor:
    """Values of target tokens among all predicted tokens, [N, ...]; 0 in the place of prompt tokens."""
    spread = torch.zeros(len(is_target_N), *values.shape[1:], dtype=values.dtype)
    spread[is_target_N] = values
    return spread
