"""Rows into a batch: padded to the longest, or packed one after the other.

Shapes: B rows, T positions (the longest row; packed: all rows together).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from components.data.training_rows import TargetRow
from components.objectives.labels import IGNORED_LABEL


def pad_rows(rows: Sequence[TargetRow], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `labels`, each [B, T]; a label is IGNORED_LABEL wherever there is no target."""
    width = max(len(row.input_ids) for row in rows)
    input_BT = torch.full((len(rows), width), pad_token_id)
    is_present_BT = torch.zeros((len(rows), width), dtype=torch.long)
    labels_BT = torch.full((len(rows), width), IGNORED_LABEL)
    for index, row in enumerate(rows):
        ids_T = torch.tensor(row.input_ids)
        input_BT[index, : len(ids_T)] = ids_T
        is_present_BT[index, : len(ids_T)] = 1
        labels_BT[index, : len(ids_T)] = _labels(row)
    return {"input_ids": input_BT, "attention_mask": is_present_BT, "labels": labels_BT}


def pack_rows(rows: Sequence[TargetRow]) -> dict[str, Tensor]:
    """`input_ids`, `position_ids`, `labels`, each [1, T], without padding.

    Positions restart with every row; without an attention mask transformers takes a restart for the border of a document that
    attention does not cross.
    """
    return {
        "input_ids": torch.cat([torch.tensor(row.input_ids) for row in rows])[None],
        "position_ids": torch.cat([torch.arange(len(row.input_ids)) for row in rows])[None],
        "labels": torch.cat([_labels(row) for row in rows])[None],
    }


def _labels(row: TargetRow) -> Tensor:
    """Labels of one row, [T]. Nothing predicts its first token, so that is never a target."""
    labels_T = torch.where(torch.tensor(row.is_target), torch.tensor(row.input_ids), IGNORED_LABEL)
    labels_T[:1] = IGNORED_LABEL
    return labels_T
