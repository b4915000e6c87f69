"""The mixed sparse target: cross-entropy on the label and KL to a teacher known by its top K entries and one tail.

Shapes: N target tokens, V vocabulary, K cached entries. Losses are in nats, per token, never reduced here.

Treating everything outside the K entries as one bucket is exact at student = teacher (value and gradient are zero) for every
K, is dense KL at K = V, and by the data processing inequality never exceeds dense KL.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MASKED_LOGIT = -1e30
"""Finite on purpose: the log-sum-exp of an empty tail (K = V) stays a number and its gradient is zero, not NaN."""


@dataclass(frozen=True)
class TeacherTargets:
    """What the cache holds of each target token; logprobs at the cache's temperature, except label_logprob (temperature 1).

    A token with fewer than K entries has empty ones at the end: logprob -inf, and the id of one of its entries again.
    """

    entry_ids_NK: Tensor
    entry_logprobs_NK: Tensor
    tail_logprob_N: Tensor
    label_logprob_N: Tensor

    @property
    def is_empty_NK(self) -> Tensor:
        return self.entry_logprobs_NK == float("-inf")

    def rows(self, rows: slice) -> "TeacherTargets":
        """The same of some of the tokens: views, no copies."""
        return TeacherTargets(
            self.entry_ids_NK[rows], self.entry_logprobs_NK[rows], self.tail_logprob_N[rows], self.label_logprob_N[rows]
        )


def join_targets(parts: Sequence[TeacherTargets]) -> TeacherTargets:
    """Tokens of several parts one after the other; narrower ones get empty entries."""
    width = max(part.entry_ids_NK.shape[1] for part in parts)
    return TeacherTargets(
        torch.cat([_widen(part.entry_ids_NK, width, part.entry_ids_NK[:, :1]) for part in parts]),
        torch.cat([_widen(part.entry_logprobs_NK, width, part.tail_logprob_N.new_tensor(float("-inf"))) for part in parts]),
        torch.cat([part.tail_logprob_N for part in parts]),
        torch.cat([part.label_logprob_N for part in parts]),
    )


def _widen(values_NK: Tensor, width: int, filling: Tensor) -> Tensor:
    missing = width - values_NK.shape[1]
    return torch.cat([values_NK, filling.to(values_NK.dtype).expand(len(values_NK), missing)], dim=1) if missing else values_NK


def sparse_kl(logits_NV: Tensor, teacher: TeacherTargets, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) over the K entries and the tail, [N]; >= 0, gradient through the student only.

    The factor T^2 keeps the gradient's size when the temperature changes (Hinton et al. 2015).
    """
    scaled_NV = logits_NV / temperature
    log_partition_N1 = scaled_NV.logsumexp(1, keepdim=True)
    student_NK = scaled_NV.gather(1, teacher.entry_ids_NK) - log_partition_N1
    rest_NV = scaled_NV.scatter(1, teacher.entry_ids_NK, MASKED_LOGIT)
    student_tail_N = rest_NV.logsumexp(1) - log_partition_N1.squeeze(1)
    student_NB = torch.cat([student_NK, student_tail_N[:, None]], dim=1)
    teacher_NB = normalise(teacher)
    gap_NB = torch.where(teacher_NB > MASKED_LOGIT / 2, teacher_NB - student_NB, torch.zeros_like(student_NB))
    return temperature**2 * (teacher_NB.exp() * gap_NB).sum(1)


def normalise(teacher: TeacherTargets) -> Tensor:
    """Teacher logprobs of K entries and the tail, [N, K+1], rescaled to sum to one after rounding to 16 bits."""
    buckets_NB = torch.cat([teacher.entry_logprobs_NK, teacher.tail_logprob_N[:, None]], dim=1)
    buckets_NB = buckets_NB.to(torch.promote_types(buckets_NB.dtype, torch.float32))  # float64 stays: gradcheck needs it
    buckets_NB = buckets_NB.clamp(min=MASKED_LOGIT)
    return buckets_NB - buckets_NB.logsumexp(1, keepdim=True)


def label_nll(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy of the label, [N]."""
    return torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
