"""Teacher-forced scoring: statistics of every target token, for one model and (for drift) the base beside it.

Shapes: B rows, T positions, N target tokens of the batch, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from components.evaluation.items import ItemRow, Law
from components.evaluation.target_logits import pieces, target_logits
from components.uncertainty.calibration import law_brier
from components.uncertainty.scores import kl_divergence, token_entropy, token_nll
from components.uncertainty.truth import against_laws

CHUNK_ENTRIES = 1 << 26
"""How many logits are turned into statistics at a time: 256 MiB in fp32, of which a few copies are made."""


@dataclass(frozen=True)
class TokenStatistics:
    """Per target token [N], on the CPU: nll and entropy in nats, whether the label is the first choice, the confidence in the
    first choice, the Brier score of the whole law, KL(base || model) in nats; against the true law where known (else NaN): its
    entropy and KL(truth || model)."""

    nll: Tensor
    entropy: Tensor
    is_correct: Tensor
    confidence: Tensor
    brier: Tensor
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
    inputs = {"input_ids": input_BT, "attention_mask": present_BT, "use_cache": False}
    at_BT = nn.functional.pad(target_BT, (0, 1))
    logits_of = target_logits(model, inputs, at_BT)
    base_of = logits_of if base is model else target_logits(base, inputs, at_BT)
    labels_N = input_BT[:, 1:][target_BT]
    laws: list[Law | None] = []
    for row in rows:
        laws += row.laws if row.laws is not None else [None] * sum(row.is_target)
    assert len(laws) == len(labels_N), "one law for each target token"
    parts = [
        _token_statistics(logits_of(piece), base_of(piece), labels_N[piece], laws[piece])
        for piece in pieces(len(labels_N), logits_of(slice(0)).shape[1], CHUNK_ENTRIES)
    ]
    ends = target_BT.sum(1).cumsum(0).tolist()
    return [join(parts).slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def _token_statistics(logits_NV: Tensor, base_logits_NV: Tensor, labels_N: Tensor, laws: Sequence[Law | None]) -> TokenStatistics:
    logprobs_NV = logits_NV.float().log_softmax(1)
    base_NV = base_logits_NV.float().log_softmax(1)
    best_N = logprobs_NV.max(1)
    true_entropy_N, true_kl_N = against_laws(laws, logprobs_NV)
    return TokenStatistics(
        nll=token_nll(logprobs_NV, labels_N).cpu(),
        entropy=token_entropy(logprobs_NV).cpu(),
        is_correct=(best_N.indices == labels_N).cpu(),
        confidence=best_N.values.exp().cpu(),
        brier=law_brier(logprobs_NV, labels_N).cpu(),
        drift_kl=kl_divergence(base_NV, logprobs_NV).cpu(),
        true_entropy=true_entropy_N,
        true_kl=true_kl_N,
    )
