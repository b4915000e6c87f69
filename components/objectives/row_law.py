"""A student's law of some rows, split into K entries and the rest (the tail), computed in place of the logits in one softmax.

Shapes: C rows, V vocabulary, K entries, B = K + 1 buckets (the tail last). Logprobs are in nats.

With q the law, q_tail the tail's probability and r the law within the tail (q_v = q_tail * r_v outside the entries),

    d/dz_v of  w * lse(z) - u * sum_bucket p_bucket * z_bucket  =  w * q_v - u * p_v           for an entry,
                                                                   r_v * (w * q_tail - u * p_tail)  in the tail,

so the gradient of nll and KL together costs one factor per row and K writes. q_tail is never 1 - sum(q): that cancels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from components.objectives.sparse_target import MASKED_LOGIT


@dataclass(frozen=True)
class RowLaw:
    """`within_tail_CV` is the memory the logits were in. Without entries everything is tail."""

    within_tail_CV: Tensor
    entry_ids_CK: Tensor | None
    bucket_logprobs_CB: Tensor
    log_partition_C: Tensor


def split_law_(logits_CV: Tensor, entry_ids_CK: Tensor | None = None, is_empty_CK: Tensor | None = None) -> RowLaw:
    """The law of `logits_CV`, which are overwritten. An empty tail (K = V) or entry has logprob MASKED_LOGIT."""
    entry_logits_CK = logits_CV[:, :0] if entry_ids_CK is None else logits_CV.gather(1, entry_ids_CK)
    if is_empty_CK is not None:
        entry_logits_CK = entry_logits_CK.masked_fill_(is_empty_CK, MASKED_LOGIT)
    if entry_ids_CK is not None:
        logits_CV.scatter_(1, entry_ids_CK, MASKED_LOGIT)
    tail_logits_C1 = softmax_(logits_CV)
    bucket_logits_CB = torch.cat([entry_logits_CK, tail_logits_C1], dim=1)
    log_partition_C1 = bucket_logits_CB.logsumexp(1, keepdim=True)
    return RowLaw(logits_CV, entry_ids_CK, bucket_logits_CB - log_partition_C1, log_partition_C1.squeeze(1))


def softmax_(logits_CV: Tensor) -> Tensor:
    """Softmax in place; returns the log-sum-exp of what was there, [C, 1].

    The softmax kernel keeps its sum to itself, but the largest entry's probability is 1 / sum: two cheap reads find it again,
    where torch's logsumexp and exp alone cost four times this softmax.
    """
    largest_C1 = logits_CV.amax(1, keepdim=True)
    torch.softmax(logits_CV, 1, out=logits_CV)
    return largest_C1 - logits_CV.amax(1, keepdim=True).log_()


def law_entropy(law: RowLaw) -> Tensor:
    """Entropy of the whole law, [C]: that of the buckets, plus that within the tail. Only sums of terms >= 0."""
    within_tail_C = torch.special.entr(law.within_tail_CV).sum(1)
    bucket_probs_CB = law.bucket_logprobs_CB.exp()
    entropy_C: Tensor = bucket_probs_CB[:, -1] * within_tail_C - (bucket_probs_CB * law.bucket_logprobs_CB).sum(1)
    return entropy_C


def bucket_kl(teacher_logprobs_CB: Tensor, law: RowLaw) -> Tensor:
    """KL(teacher || student) over the buckets, [C]; a bucket that the teacher gives nothing counts nothing."""
    gap_CB = teacher_logprobs_CB - law.bucket_logprobs_CB
    gap_CB = gap_CB.masked_fill_(teacher_logprobs_CB <= MASKED_LOGIT / 2, 0.0)
    return (teacher_logprobs_CB.exp() * gap_CB).sum(1)


def gradient_(law: RowLaw, weight_C: Tensor, pull_C: Tensor | None, teacher_logprobs_CB: Tensor | None) -> Tensor:
    """Overwrite the law by `weight * q - pull * p`, [C, V]; without a teacher by `weight * q`."""
    buckets_CB = weight_C[:, None] * law.bucket_logprobs_CB.exp()
    if pull_C is not None and teacher_logprobs_CB is not None:
        buckets_CB = buckets_CB - pull_C[:, None] * teacher_logprobs_CB.exp()
    gradient_CV = law.within_tail_CV.mul_(buckets_CB[:, -1:])
    if law.entry_ids_CK is not None:
        # Added, to what is zero there: an empty entry repeats another's id, and would overwrite it with its own nothing.
        gradient_CV.scatter_add_(1, law.entry_ids_CK, buckets_CB[:, :-1])
    return gradient_CV
