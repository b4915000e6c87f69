"""Token scores: how unsure a model is of each target token.

Shapes: N target tokens, V vocabulary, M members of an ensemble. Every score is in nats and higher means less sure.
Pure functions of tensors; the caller decides what is detached.
"""

import math

import torch
from torch import Tensor

SMALLEST_LOGPROB = -1e30
"""Finite on purpose: a token ruled out (logprob -inf) counts nothing in an entropy, where 0 * -inf would be NaN."""


def token_nll(logprobs_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of the realised token, [N]. Mixes epistemic and aleatoric uncertainty."""
    return -logprobs_NV.gather(1, labels_N[:, None]).squeeze(1)


def token_entropy(logprobs_NV: Tensor) -> Tensor:
    """Entropy of the predictive law, [N]. Also a mixture of the two, but independent of the realised token."""
    return -(logprobs_NV.exp() * logprobs_NV.clamp(min=SMALLEST_LOGPROB)).sum(-1)


def top_entropy(logprobs_NV: Tensor, num_entries: int) -> Tensor:
    """Entropy of the law renormalised over its `num_entries` most likely tokens, [N]: at most log(num_entries).

    Raw logits give the same, since the renormalisation undoes any constant.
    """
    top_NK = logprobs_NV.topk(min(num_entries, logprobs_NV.shape[1]), dim=1, sorted=False).values
    return token_entropy(top_NK.log_softmax(1))


def excess_loss(student_nll_N: Tensor, reference_nll_N: Tensor) -> Tensor:
    """Loss above a reference model's, [N]: what is learnable, if the reference knows the noise (Mindermann et al. 2022)."""
    return student_nll_N - reference_nll_N


def mutual_information(logprobs_MNV: Tensor) -> Tensor:
    """Entropy of the ensemble's mean law minus the mean entropy of its members, [N] (Houlsby et al. 2011): epistemic only."""
    mean_NV = torch.logsumexp(logprobs_MNV, dim=0) - math.log(len(logprobs_MNV))
    return token_entropy(mean_NV) - token_entropy(logprobs_MNV).mean(0)


def kl_divergence(logprobs_p_NV: Tensor, logprobs_q_NV: Tensor) -> Tensor:
    """KL(p || q) of full laws, [N]. Entries with p = 0 (logprob -inf) count nothing."""
    p_NV = logprobs_p_NV.exp()
    gap_NV = torch.where(p_NV > 0, logprobs_p_NV - logprobs_q_NV, torch.zeros_like(p_NV))
    return (p_NV * gap_NV).sum(1)


def probability_gain(reference_nll_N: Tensor, teacher_nll_N: Tensor) -> Tensor:
    """How much more probability a reference gives the realised token than the teacher does, [N] in [-1, 1]."""
    return (-reference_nll_N).exp() - (-teacher_nll_N).exp()
