"""The proof, before the first step, that cache and rows belong together: the base model's loss must be the cached one.

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


@torch.no_grad()
def prove_alignment(base: nn.Module, batch: dict[str, Tensor], precision: str) -> None:
    """Refuse a cache whose label logprobs are not those of `base` on this batch; one more forward pass, without dropout."""
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
        raise CacheMismatchError(
            f"the base model's loss differs from the teacher cache by {gap:.3f} nats per token before the first step (rounding "
            f"explains {TOLERANCE_NATS[precision]}), so cache and rows are not aligned{_shift(own_N, cached_N, precision)}. "
            f"Run: {REPAIR}"
        )


def _mean_gap(own_N: Tensor, cached_N: Tensor) -> float:
    """Over the tokens that the cache knows; imported laws have NaN where a label was not among their entries."""
    is_known_N = ~cached_N.isnan()
    return float((own_N - cached_N)[is_known_N].abs().mean()) if bool(is_known_N.any()) else 0.0


def _shift(own_N: Tensor, cached_N: Tensor, precision: str) -> str:
    """The commonest fault by its name: the same numbers, one position off."""
    for offset, side in ((1, "before"), (-1, "after")):
        moved_N = cached_N.roll(-offset)[1:-1]  # the ends have come round
        if len(moved_N) and _median_gap(own_N[1:-1], moved_N) <= TOLERANCE_NATS[precision]:
            return f": the cached values are those of one position {side} their own"
    return ""


def _median_gap(own_N: Tensor, cached_N: Tensor) -> float:
    return float((own_N - cached_N).abs().nanmedian())
