"""From rows to a micro-batch: right-padded token ids, labels, and the teacher's columns of every target token.

Shapes: B rows, T positions, N = target tokens of the micro-batch in row-major order, K cached entries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from components.artifacts import fingerprint_row
from components.data.batching import pad_rows
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.writer import CacheRow, count_targets

TEACHER_COLUMNS = ("entry_ids", "entry_logprobs", "tail_logprob", "label_logprob")


class TeacherCollator:
    """Pads rows; with a cache, adds `teacher_*` tensors. Each row's record is looked up by its actual token ids."""

    def __init__(self, pad_token_id: int, cache: TeacherCacheReader | None) -> None:
        self.pad_token_id = pad_token_id
        self.cache = cache

    def __call__(self, rows: Sequence[CacheRow]) -> dict[str, Tensor]:
        batch = pad_rows(rows, self.pad_token_id)
        if self.cache is None:
            return batch
        records = [self.cache.read(fingerprint_row(row.input_ids, row.is_target), count_targets(row)) for row in rows]
        teacher = {f"teacher_{name}": torch.cat([record[name] for record in records]) for name in TEACHER_COLUMNS}
        return {**batch, **teacher}
