"""One batch through the frozen teacher: hidden states of the tokens that are kept, and their laws reduced chunk by chunk.

Shapes: B rows, T positions, N kept tokens in row-major order, V vocabulary, H hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components.data.training_rows import TargetRow, TrainingRow, count_targets
from components.errors import ModelError
from components.objectives.model_head import causal_lm, head_of, hidden_of, probe_head
from components.teacher_cache.reduction import ReducedLaws, Scratch, reduce_hidden, reduce_logits


@dataclass(frozen=True)
class LawSettings:
    """What a law is reduced to, whatever batch it is in."""

    max_entries: int
    temperature: float
    positions: str


def count_kept(row: TargetRow, positions: str) -> int:
    """Tokens whose laws the cache keeps: the targets, or all that something predicts."""
    return count_targets(row) if positions == "targets" else len(row.input_ids) - 1


class LawCapture:
    """The teacher with its head fused into the reduction, or by way of whole logits where its head is no plain projection."""

    def __init__(self, model: nn.Module, settings: LawSettings) -> None:
        self._model = model.eval()
        self._settings = settings
        self._scratch = Scratch()
        head = head_of(model)
        reason = head if isinstance(head, str) else probe_head(causal_lm(model), head)
        self._head = None if reason else head
        self.goes_through_logits: str | None = reason

    @torch.no_grad()
    def __call__(self, rows: Sequence[TrainingRow]) -> ReducedLaws:
        """Laws of the rows' kept tokens, one row after the other, on the CPU."""
        device = next(self._model.parameters()).device
        input_BT, is_present_BT, is_kept_BT = (tensor.to(device) for tensor in pad_kept(rows, self._settings.positions))
        labels_N = input_BT.roll(-1, dims=1)[is_kept_BT]
        inputs = {"input_ids": input_BT}
        if not bool(is_present_BT.all()):
            inputs["attention_mask"] = is_present_BT.long()
        laws = self._reduce(inputs, is_kept_BT, labels_N)
        refuse_non_finite(laws.label_logprob_N, is_kept_BT.sum(1).cpu(), rows)
        return laws

    def _reduce(self, inputs: dict[str, Tensor], is_kept_BT: Tensor, labels_N: Tensor) -> ReducedLaws:
        settings: Any = {"max_entries": self._settings.max_entries, "temperature": self._settings.temperature}
        settings["scratch"] = self._scratch
        if self._head is not None:
            return reduce_hidden(hidden_of(self._model, inputs, is_kept_BT), self._head, labels_N, **settings)  # type: ignore[arg-type]
        logits_NV = self._model(**inputs, use_cache=False).logits[is_kept_BT]
        return reduce_logits(logits_NV, labels_N, **settings)


def pad_kept(rows: Sequence[TargetRow], positions: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, presence, and the positions whose hidden state predicts a kept token, [B, T] each."""
    width = max(len(row.input_ids) for row in rows)
    input_BT = torch.zeros((len(rows), width), dtype=torch.long)
    is_present_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    is_kept_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        input_BT[index, :length] = torch.tensor(row.input_ids)
        is_present_BT[index, :length] = True
        is_kept_BT[index, : length - 1] = torch.tensor(row.is_target[1:]) if positions == "targets" else True
    return input_BT, is_present_BT, is_kept_BT


def refuse_non_finite(label_logprob_N: Tensor, counts_B: Tensor, rows: Sequence[TrainingRow]) -> None:
    """A base that gives NaN, or rules a target out, would only be noticed as a broken loss deep in the training."""
    is_broken_N = ~torch.isfinite(label_logprob_N)
    if is_broken_N.any():
        row = rows[int((counts_B.cumsum(0) > int(is_broken_N.int().argmax())).int().argmax())]
        raise ModelError(
            f"the base model's loss is not finite on row {row.fingerprint} (it begins with tokens {row.input_ids[:8]}). "
            "Try teacher_cache.precision: fp32, check the model's weights, or remove that row from the data"
        )
