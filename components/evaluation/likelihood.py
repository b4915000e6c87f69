"""Teacher-forced scoring: statistics of every target token, for one model and (for drift) the base beside it.

Shapes: B rows, T positions, N target tokens of the batch, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from components.evaluation.items import ItemRow
from components.uncertainty.scores import kl_divergence, token_entropy, token_nll


@dataclass(frozen=True)
class TokenStatistics:
    """Per target token [N], on the CPU: nll and entropy in nats, whether the label is the first choice, the confidence in the
    first choice, KL(base || model) in nats; and against the true law where known (else NaN): its entropy and KL(truth || model)."""

    nll: Tensor
    entropy: Tensor
    is_correct: Tensor
    confidence: Tensor
    drift_kl: Tensor
    true_entropy: Tensor
    true_kl: Tensor

    def slice(self, start: int, stop: int) -> "TokenStatistics":
        return TokenStatistics(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})

    def keep(self, mask_N: Tensor) -> "TokenStatistics":
        return TokenStatistics(**{field.name: getattr(self, field.name)[mask_N] for field in fields(self)})


def join(parts: Sequence[TokenStatistics]) -> TokenStatistics:
    return TokenStatistics(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(TokenStatistics)}
    )


def score_rows(model: nn.Module, base: nn.Module, rows: Sequence[ItemRow], batch_tokens: int) -> list[TokenStatistics]:
    """Statistics of each row's targets, in the order given; rows of like length share a batch of about `batch_tokens`."""
    results: dict[int, TokenStatistics] = {}
    for batch in _batches(rows, batch_tokens):
        for index, statistics in zip(batch, _score_batch(model, base, [rows[i] for i in batch]), strict=True):
            results[index] = statistics
    return [results[index] for index in range(len(rows))]


def _batches(rows: Sequence[ItemRow], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids)):
        if batch and (len(batch) + 1) * len(rows[index].input_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def _score_batch(model: nn.Module, base: nn.Module, rows: list[ItemRow]) -> list[TokenStatistics]:
    width = max(len(row.input_ids) for row in rows)
    device = next(model.parameters()).device
    input_BT = torch.tensor([[*row.input_ids, *[0] * (width - len(row.input_ids))] for row in rows], device=device)
    present_BT = torch.tensor([[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows], device=device)
    target_BT = torch.tensor([[*row.is_target, *[False] * (width - len(row.is_target))] for row in rows], device=device)[:, 1:]
    logprobs_NV = _target_logprobs(model, input_BT, present_BT, target_BT)
    base_NV = logprobs_NV if base is model else _target_logprobs(base, input_BT, present_BT, target_BT)
    labels_N = input_BT[:, 1:][target_BT]
    best_N = logprobs_NV.max(1)
    true_entropy_N, true_kl_N = _against_truth(rows, logprobs_NV)
    statistics = TokenStatistics(
        nll=token_nll(logprobs_NV, labels_N).cpu(),
        entropy=token_entropy(logprobs_NV).cpu(),
        is_correct=(best_N.indices == labels_N).cpu(),
        confidence=best_N.values.exp().cpu(),
        drift_kl=kl_divergence(base_NV, logprobs_NV).cpu(),
        true_entropy=true_entropy_N,
        true_kl=true_kl_N,
    )
    ends = target_BT.sum(1).cumsum(0).tolist()
    return [statistics.slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def _target_logprobs(model: nn.Module, input_BT: Tensor, present_BT: Tensor, target_BT: Tensor) -> Tensor:
    logits_BTV = model(input_ids=input_BT, attention_mask=present_BT, use_cache=False).logits[:, :-1]
    return torch.log_softmax(logits_BTV[target_BT].float(), dim=1)


def _against_truth(rows: list[ItemRow], logprobs_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of the true law and KL(truth || model) of each target, [N]; NaN where the law is not known."""
    entropies: list[float] = []
    divergences: list[float] = []
    position = 0
    for row in rows:
        count = sum(row.is_target)
        if row.laws is None:
            entropies += [float("nan")] * count
            divergences += [float("nan")] * count
        else:
            assert len(row.laws) == count, "one law for each target token"
            for offset, law in enumerate(row.laws):
                probabilities = torch.tensor(list(law.values()))
                surprise = logprobs_NV[position + offset, list(law)].cpu()
                entropy = -(probabilities * probabilities.log()).sum()
                entropies.append(float(entropy))
                divergences.append(float(-(probabilities * surprise).sum() - entropy))
        position += count
    return torch.tensor(entropies), torch.tensor(divergences)
