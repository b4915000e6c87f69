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
    gap_N = (label_nll(logits_NV, layout.labels_N) + batch["teacher_label_logprob"].to(device)).abs()
    gap = float(gap_N.mean()) if len(gap_N) else 0.0
    if not gap <= TOLERANCE_NATS[precision]:  # so that NaN is refused too
        raise CacheMismatchError(
            f"the base model's loss differs from the teacher cache by {gap:.3f} nats per token before the first step (rounding "
            f"explains {TOLERANCE_NATS[precision]}), so cache and rows are not aligned. Run: {REPAIR}"
        )
