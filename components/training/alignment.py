"""The proof, before the first step, that cache and rows belong together: the base model's loss must be the cached one.

Shapes: B rows, T positions, N target tokens of the batch, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from components.data.batching import IGNORED_LABEL
from components.errors import CacheMismatchError
from components.objectives.sparse_target import label_nll
from components.teacher_cache.format import REPAIR

TOLERANCE_NATS = {"fp32": 0.005, "bf16": 0.2}
"""Mean difference per token that rounding may explain, by the cache's precision. One position of shift costs whole nats."""


def target_logits(model: nn.Module, inputs: dict[str, Any], labels_BT: Tensor) -> tuple[Tensor, Tensor, Any]:
    """`logits_NV` (fp32) and `labels_N` of the target tokens, row by row, and the model's whole output."""
    outputs = model(**inputs, use_cache=False)
    is_target_BT = labels_BT[:, 1:] != IGNORED_LABEL
    return outputs.logits[:, :-1][is_target_BT].float(), labels_BT[:, 1:][is_target_BT], outputs


@torch.no_grad()
def prove_alignment(base: nn.Module, batch: dict[str, Tensor], precision: str) -> None:
    """Refuse a cache whose label logprobs are not those of `base` on this batch; one more forward pass, without dropout."""
    device = next(base.parameters()).device
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    was_training = base.training
    base.eval()
    logits_NV, labels_N, _ = target_logits(base, inputs, batch["labels"].to(device))
    base.train(was_training)
    gap_N = (label_nll(logits_NV, labels_N) + batch["teacher_label_logprob"].to(device)).abs()
    gap = float(gap_N.mean()) if len(gap_N) else 0.0
    if not gap <= TOLERANCE_NATS[precision]:  # so that NaN is refused too
        raise CacheMismatchError(
            f"the base model's loss differs from the teacher cache by {gap:.3f} nats per token before the first step (rounding "
            f"explains {TOLERANCE_NATS[precision]}), so cache and rows are not aligned. Run: {REPAIR}"
        )
