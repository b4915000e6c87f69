"""Where the tokens of a micro-batch are: which positions predict something, their labels, rows and turn starts.

Shapes: B rows (1 when packed), T positions, N predicted tokens in row-major order. Position t predicts the token at t + 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from components.artifacts import fingerprint_row
from components.objectives.labels import IGNORED_LABEL


@dataclass(frozen=True)
class TokenLayout:
    """`predicts_BT`: positions whose hidden state enters the loss; the rest is per predicted token, [N].

    A prompt token that is only distilled has the label IGNORED_LABEL and `is_target` False.
    """

    predicts_BT: Tensor
    labels_N: Tensor
    is_target_N: Tensor
    row_N: Tensor
    is_turn_start_N: Tensor
    num_rows: int


def layout_of(inputs: dict[str, Tensor], labels_BT: Tensor, with_prompt: bool) -> TokenLayout:
    """The layout of padded rows (`attention_mask`) or of packed ones (`position_ids`, restarting at 0 with every row)."""
    has_next_BT = _has_next(inputs, labels_BT)
    next_label_BT = labels_BT.roll(-1, dims=1)
    next_label_BT = torch.where(has_next_BT, next_label_BT, IGNORED_LABEL)
    predicts_BT = has_next_BT if with_prompt else next_label_BT != IGNORED_LABEL
    labels_N = next_label_BT[predicts_BT]
    is_target_N = labels_N != IGNORED_LABEL
    row_BT = _row_numbers(inputs, labels_BT)
    return TokenLayout(
        predicts_BT=predicts_BT,
        labels_N=labels_N,
        is_target_N=is_target_N,
        row_N=row_BT[predicts_BT],
        is_turn_start_N=(labels_BT == IGNORED_LABEL)[predicts_BT] & is_target_N,
        num_rows=int(row_BT.max()) + 1 if row_BT.numel() else 0,
    )


def _has_next(inputs: dict[str, Tensor], labels_BT: Tensor) -> Tensor:
    """True where the next position holds a token of the same row."""
    if "position_ids" in inputs:
        is_next_BT = inputs["position_ids"].roll(-1, dims=1) > 0
    else:
        is_next_BT = inputs["attention_mask"].roll(-1, dims=1) > 0
    is_next_BT[:, -1] = False
    return is_next_BT


def _row_numbers(inputs: dict[str, Tensor], labels_BT: Tensor) -> Tensor:
    if "position_ids" in inputs:
        return (inputs["position_ids"] == 0).long().cumsum(1) - 1
    return torch.arange(len(labels_BT), device=labels_BT.device)[:, None].expand_as(labels_BT)


def fingerprints_of(inputs: dict[str, Tensor], labels_BT: Tensor) -> list[str]:
    """The fingerprint of each row of a micro-batch, from its own tokens: what a message names."""
    rows_BT = _row_numbers(inputs, labels_BT)
    is_token_BT = inputs["attention_mask"] > 0 if "attention_mask" in inputs else torch.ones_like(rows_BT, dtype=torch.bool)
    found = []
    for row in range(int(rows_BT.max()) + 1):
        is_own_BT = (rows_BT == row) & is_token_BT
        ids = inputs["input_ids"][is_own_BT].tolist()
        found.append(fingerprint_row(ids, (labels_BT[is_own_BT] != IGNORED_LABEL).tolist()))
    return found
