"""How a mask moves: what enters, what leaves, how much two masks have in common.

Shapes: N target tokens, always the same ones in the same order.
"""

from typing import Any

import torch
from torch import Tensor


def jaccard(first_N: Tensor, second_N: Tensor) -> float:
    """Tokens in both masks as a share of those in either, in [0, 1]; two empty masks are equal."""
    either = int((first_N | second_N).sum())
    return int((first_N & second_N).sum()) / either if either else 1.0


class MaskHistory:
    """State: (epoch, mask) of earlier looks, no more of them than a later look can still be compared with."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, Tensor]] = []

    def compare_and_add(self, epoch: float, selected_N: Tensor) -> dict[str, Any]:
        """`entered`, `left` (tokens) and `jaccard` since the look before; `jaccard_epoch` with the newest mask that is at least
        one pass over the data older. None where there is none."""
        compared: dict[str, Any] = dict.fromkeys(("entered", "left", "jaccard", "jaccard_epoch"))
        if self._seen:
            previous_N = self._seen[-1][1]
            compared["entered"] = int((selected_N & ~previous_N).sum())
            compared["left"] = int((previous_N & ~selected_N).sum())
            compared["jaccard"] = jaccard(previous_N, selected_N)
        older = [mask_N for seen, mask_N in self._seen if seen <= epoch - 1]
        if older:
            compared["jaccard_epoch"] = jaccard(older[-1], selected_N)
        self._seen = [*self._seen[max(0, len(older) - 1) :], (epoch, selected_N)]
        return compared

    def state_dict(self) -> list[list[Any]]:
        return [[epoch, "".join("01"[bit] for bit in mask_N.tolist())] for epoch, mask_N in self._seen]

    def load_state_dict(self, state: list[list[Any]]) -> None:
        self._seen = [(epoch, torch.tensor([bit == "1" for bit in bits], dtype=torch.bool)) for epoch, bits in state]
