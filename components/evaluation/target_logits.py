"""Logits at the target positions only: backbone once, then the head on the rows that are asked for, a chunk at a time.

Where the head's form is not known (see `components.objectives.model_head`), the model's own logits are taken and cut.
Shapes: B rows, T positions, N predicting positions, V vocabulary.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from components.objectives.head import Head, naive_logits
from components.objectives.model_head import causal_lm, head_of, probe_head

LogitsOf = Callable[[slice], Tensor]
"""Of a piece of the predicting positions, [n, V]."""

_proofs: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def known_head(model: nn.Module) -> Head | None:
    """The head, read anew (weights may have been replaced), if the probe, made once, found its form to be the whole story."""
    lm = causal_lm(model)
    if not hasattr(lm, "get_output_embeddings"):
        return None
    head = head_of(model)
    if isinstance(head, str):
        return None
    if lm not in _proofs:
        _proofs[lm] = probe_head(lm, head)
    return head if _proofs[lm] is None else None


def target_logits(model: nn.Module, inputs: dict[str, Any], at: tuple[Tensor, Tensor] | Tensor) -> LogitsOf:
    """`at` picks the predicting positions of [B, T]: a mask, or row and position of each (one may be named twice)."""
    head = known_head(model)
    if head is None:
        logits_NV: Tensor = model(**inputs).logits[at]
        return lambda piece: logits_NV[piece]
    hidden_NH: Tensor = causal_lm(model).base_model(**inputs).last_hidden_state[at]
    return lambda piece: naive_logits(head, hidden_NH[piece])


def pieces(count: int, num_columns: int, entries: int) -> list[slice]:
    """Slices of at most `entries` logits; one empty slice where there is nothing."""
    chunk = max(1, entries // num_columns)
    return [slice(start, start + chunk) for start in range(0, max(1, count), chunk)]
