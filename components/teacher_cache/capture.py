"""Reducing the teacher's logits to what the cache keeps.

Shapes: N target tokens, V vocabulary, K entries.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class CapturedTokens:
    """The per-token columns of components.teacher_cache.format, on the CPU."""

    entry_ids: Tensor
    entry_logprobs: Tensor
    tail_logprob: Tensor
    label_logprob: Tensor
    label_rank: Tensor
    entropy: Tensor
    log_partition: Tensor
    margin: Tensor

    def slice(self, start: int, stop: int) -> "CapturedTokens":
        return CapturedTokens(**{column.name: getattr(self, column.name)[start:stop] for column in fields(self)})


def concatenate(parts: list[CapturedTokens]) -> dict[str, Tensor]:
    return {column.name: torch.cat([getattr(part, column.name) for part in parts]) for column in fields(CapturedTokens)}


def capture_tokens(logits_NV: Tensor, labels_N: Tensor, num_entries: int, temperature: float) -> CapturedTokens:
    """Top-K entries and tail at `temperature`, and exact statistics of the law at temperature 1. Works in fp32."""
    logits_NV = logits_NV.float()
    log_partition_N = logits_NV.logsumexp(1)
    logprobs_NV = logits_NV - log_partition_N[:, None]
    label_logprob_N = logprobs_NV.gather(1, labels_N[:, None]).squeeze(1)
    scaled_NV = logprobs_NV if temperature == 1.0 else (logits_NV / temperature).log_softmax(1)
    entry_logprobs_NK, entry_ids_NK = scaled_NV.topk(min(num_entries, logits_NV.shape[1]), dim=1)
    top2_N2 = logits_NV.topk(2, dim=1).values
    return CapturedTokens(
        entry_ids=entry_ids_NK.int().cpu(),
        entry_logprobs=entry_logprobs_NK.half().cpu(),
        tail_logprob=tail_logprob(scaled_NV, entry_ids_NK).half().cpu(),
        label_logprob=label_logprob_N.cpu(),
        label_rank=(logprobs_NV > label_logprob_N[:, None]).sum(1).int().cpu(),
        entropy=-(logprobs_NV.exp() * logprobs_NV).sum(1).cpu(),
        log_partition=log_partition_N.cpu(),
        margin=(top2_N2[:, 0] - top2_N2[:, 1]).cpu(),
    )


def tail_logprob(logprobs_NV: Tensor, entry_ids_NK: Tensor) -> Tensor:
    """Log of the probability outside the entries, [N]; -inf where there is nothing outside."""
    return logprobs_NV.scatter(1, entry_ids_NK, float("-inf")).logsumexp(1)
