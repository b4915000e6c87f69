"""The proof, before the first step, that cache and rows belong together: the base model's laws must be the cached ones.

Shapes: B rows, T positions, N target tokens of the batch, V vocabulary.
"""

import torch
from torch import Tensor, nn

from components.errors import CacheMismatchError
from components.objectives.sparse_target import label_nll
from components.teacher_cache.format import REPAIR
from components.training.student_loss import predicted_logits
from components.training.token_layout import layout_of

TOLERANCE_NATS = {"fp32": 0.005, "bf16": 0.2}
"""Mean difference per token that rounding may explain, by the cache's precision. One position of shift costs whole nats."""
ENTRY_TOLERANCE_NATS = {"fp32": 0.03, "bf16": 0.3}
"""The same of the entries, by their probability: 8 bits of a probability explain .01."""


@torch.no_grad()
def prove_alignment(base: nn.Module, batch: dict[str, Tensor], precision: str, temperature: float = 1.0) -> None:
    """Refuse a cache whose laws are not those of `base` on this batch; one more forward pass, without dropout.

    Compared are the labels' logprobs, where the cache knows them, and the entries at the cache's `temperature`.
    """
    device = next(base.parameters()).device
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[name].to(device) for name in names if name in batch}
    layout = layout_of(inputs, batch["labels"].to(device), with_prompt=False)
    was_training = base.training
    base.eval()
    logits_NV = predicted_logits(base, inputs, layout.predicts_BT)
    base.train(was_training)
    own_N, cached_N = -label_nll(logits_NV, layout.labels_N), batch["teacher_label_logprob"].to(device)
    gap = _mean_gap(own_N, cached_N)
    if not gap <= TOLERANCE_NATS[precision]:  # so that NaN is refused too
        raise _misaligned("loss", gap, TOLERANCE_NATS[precision], precision, _shift(own_N, cached_N, precision))
    gap = _entry_gap(logits_NV, batch, temperature)
    if not gap <= ENTRY_TOLERANCE_NATS[precision]:
        raise _misaligned(f"law at temperature {temperature}", gap, ENTRY_TOLERANCE_NATS[precision], precision, "")


def _misaligned(what: str, gap: float, allowed: float, precision: str, shift: str) -> CacheMismatchError:
    hint = (
        " Or, if the laws were made in 16 bits, set teacher_cache.precision: bf16." if precision == "fp32" and gap < 0.3 else ""
    )
    return CacheMismatchError(
        f"the base model's {what} differs from the teacher cache by {gap:.3f} nats per token before the first step (rounding "
        f"explains {allowed}), so cache and rows are not aligned{shift}. Run: {REPAIR}{hint}"
    )


def _mean_gap(own_N: Tensor, cached_N: Tensor) -> float:
    """Over the tokens that the cache knows; imported laws have NaN where a label was not among their entries."""
    is_known_N = ~cached_N.isnan()
    return float((own_N - cached_N)[is_known_N].abs().mean()) if bool(is_known_N.any()) else 0.0


def _entry_gap(logits_NV: Tensor, batch: dict[str, Tensor], temperature: float) -> float:
    """Mean over tokens of sum_k p_k |log q_k - log p_k| over the cached entries."""
    entry_ids_NK, entry_logprobs_NK = (batch[f"teacher_entry_{name}"].to(logits_NV.device) for name in ("ids", "logprobs"))
    if not len(entry_ids_NK):
        return 0.0
    own_NK = (logits_NV / temperature).log_softmax(1).gather(1, entry_ids_NK.long())
    is_entry_NK = entry_logprobs_NK > -torch.inf
    gap_NK = torch.where(is_entry_NK, entry_logprobs_NK.exp() * (own_NK - entry_logprobs_NK).abs(), 0.0)
    return float(gap_NK.sum(1).mean())


def _shift(own_N: Tensor, cached_N: Tensor, precision: str) -> str:
    """The commonest fault by its name: the same numbers, one position off."""
    for offset, side in ((1, "before"), (-1, "after")):
        moved_N = cached_N.roll(-offset)[1:-1]  # the ends have come round
        if len(moved_N) and _median_gap(own_N[1:-1], moved_N) <= TOLERANCE_NATS[precision]:
            return f": the cached values are those of one position {side} their own"
    return ""


def _median_gap(own_N: Tensor, cached_N: Tensor) -> float:
    return float((own_N - cached_N).abs().nanmedian())
