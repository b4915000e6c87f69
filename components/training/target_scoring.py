"""A look at a model in the middle of its training: statistics of every target token, without a graph and without a trace.

Shapes: B rows, T positions, N target tokens of a chunk, V vocabulary, H hidden width, K cached entries of the teacher.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from components.data.batching import pad_rows
from components.data.training_rows import TargetRow, count_targets
from components.objectives.labels import IGNORED_LABEL
from components.objectives.objective import NUM_TOP_ENTRIES
from components.objectives.sparse_target import TeacherTargets, join_targets, sparse_kl
from components.uncertainty.calibration import law_brier
from components.uncertainty.scores import token_entropy, token_nll, top_entropy
from components.uncertainty.truth import against_laws

CHUNK_ENTRIES = 1 << 26
"""Logits held at a time: 256 MiB in fp32, of which a few copies are made."""
Laws = Sequence[Mapping[int, float]]


class ScoredRow(TargetRow, Protocol):
    """A row with what its targets are told from, where that is known: the true law of each, the teacher's entries."""

    @property
    def laws(self) -> Laws | None: ...
    @property
    def teacher(self) -> TeacherTargets | None: ...


@dataclass(frozen=True)
class ScoredTokens:
    """Per target token [N], on the CPU, fp32; NaN where it is not known.

    `top_entropy`: of the most likely tokens (components.objectives.objective.NUM_TOP_ENTRIES); `confidence` in the first choice;
    `brier` of the whole law; `true_entropy` and `true_kl` = KL(truth || model); `teacher_kl` = KL(teacher || model) over the
    cached entries and their tail, at the cache's temperature. In nats.
    """

    nll: Tensor
    entropy: Tensor
    top_entropy: Tensor
    confidence: Tensor
    is_correct: Tensor
    brier: Tensor
    true_entropy: Tensor
    true_kl: Tensor
    teacher_kl: Tensor

    def __len__(self) -> int:
        return len(self.nll)


def join_scored(parts: Sequence[ScoredTokens]) -> ScoredTokens:
    return ScoredTokens(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(ScoredTokens)}
    )


@torch.no_grad()
def score_targets(
    model: nn.Module, rows: Sequence[ScoredRow], *, pad_token_id: int, batch_tokens: int, temperature: float = 1.0
) -> list[ScoredTokens]:
    """Statistics of each row's targets, in the order given. `temperature`: that of the teacher's entries.

    Every rank of a sharded model must call this with the same rows: the forward passes gather the weights.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    scored: dict[int, ScoredTokens] = {}
    with evaluating(model):
        for batch in batches(rows, batch_tokens, max(1, CHUNK_ENTRIES // num_columns(head))):
            parts = list(_score_batch(model, head, [rows[index] for index in batch], pad_token_id, temperature))
            whole, start = join_scored(parts), 0
            for index in batch:
                stop = start + count_targets(rows[index])
                columns = {field.name: getattr(whole, field.name)[start:stop] for field in fields(ScoredTokens)}
                scored[index], start = ScoredTokens(**columns), stop
    empty = ScoredTokens(**{field.name: torch.empty(0) for field in fields(ScoredTokens)})
    return [scored.get(index, empty) for index in range(len(rows))]


def num_columns(head: Any) -> int:
    """Columns of the logits; a sharded weight does not show them."""
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])


def batches(rows: Sequence[TargetRow], batch_tokens: int, max_targets: int) -> Iterator[list[int]]:
    """Rows that have targets, by length: padded tokens and targets of a batch within the limits, or one row alone."""
    batch: list[int] = []
    num_targets = 0
    for index in sorted((i for i in range(len(rows)) if count_targets(rows[i])), key=lambda i: len(rows[i].input_ids)):
        count = count_targets(rows[index])
        is_full = (len(batch) + 1) * len(rows[index].input_ids) > batch_tokens or num_targets + count > max_targets
        if batch and is_full:
            yield batch
            batch, num_targets = [], 0
        batch.append(index)
        num_targets += count
    if batch:
        yield batch


def _score_batch(
    model: nn.Module, head: nn.Module, rows: list[ScoredRow], pad_token_id: int, temperature: float
) -> Iterator[ScoredTokens]:
    """A chunk of targets at a time; a row with more targets than a chunk costs a forward pass for each."""
    device = next(model.parameters()).device
    inputs, place_N2 = place_targets(rows, pad_token_id, device)
    labels_N = inputs["input_ids"][place_N2[:, 0], place_N2[:, 1] + 1]
    laws = [law for row in rows for law in _laws_of(row)]
    teacher = _join_teachers([row.teacher for row in rows], device)
    size = max(1, CHUNK_ENTRIES // num_columns(head))
    for start in range(0, len(labels_N), size):
        chunk = slice(start, start + size)
        logits_NV = logits_at(model, head, inputs, place_N2[chunk])
        piece = None if teacher is None else _slice_teacher(teacher, chunk)
        yield _statistics(logits_NV, labels_N[chunk], laws[chunk], piece, temperature)


def place_targets(rows: Sequence[TargetRow], pad_token_id: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Padded inputs of a batch, and the (row, position) place that predicts each target, [N, 2], row by row."""
    padded = pad_rows(rows, pad_token_id)
    inputs = {name: padded[name].to(device) for name in ("input_ids", "attention_mask")}
    return inputs, (padded["labels"][:, 1:] != IGNORED_LABEL).nonzero().to(device)


def logits_at(model: nn.Module, head: nn.Module, inputs: dict[str, Tensor], place_N2: Tensor) -> Tensor:
    """The model's own logits at these (row, position) places alone, [N, V] fp32: its head is shown no other hidden state.

    Whatever the model does to its logits afterwards (a softcap, a scale) is done to each by itself, so it still holds.
    """

    def show_places(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTH = given[0]
        return (hidden_BTH[place_N2[:, 0], place_N2[:, 1]][None], *given[1:])

    hook = head.register_forward_pre_hook(show_places)
    try:
        logits_1NV: Tensor = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits_1NV[0].float()


def _statistics(
    logits_NV: Tensor, labels_N: Tensor, laws: Sequence[Mapping[int, float] | None], teacher: TeacherTargets | None, t: float
) -> ScoredTokens:
    logprobs_NV = logits_NV.log_softmax(1)
    best_N = logprobs_NV.max(1)
    true_entropy_N, true_kl_N = against_laws(laws, logprobs_NV)
    unknown_N = torch.full((len(labels_N),), float("nan"))
    return ScoredTokens(
        nll=token_nll(logprobs_NV, labels_N).cpu(),
        entropy=token_entropy(logprobs_NV).cpu(),
        top_entropy=top_entropy(logprobs_NV, NUM_TOP_ENTRIES).cpu(),
        confidence=best_N.values.exp().cpu(),
        is_correct=(best_N.indices == labels_N).float().cpu(),
        brier=law_brier(logprobs_NV, labels_N).cpu(),
        true_entropy=true_entropy_N,
        true_kl=true_kl_N,
        teacher_kl=unknown_N if teacher is None else (sparse_kl(logits_NV, teacher, t) / t**2).cpu(),
    )


def _laws_of(row: ScoredRow) -> Sequence[Mapping[int, float] | None]:
    if row.laws is None:
        return [None] * count_targets(row)
    assert len(row.laws) == sum(row.is_target), "one law for each target token"
    return row.laws[int(row.is_target[0]) :]


def _join_teachers(teachers: Sequence[TeacherTargets | None], device: torch.device) -> TeacherTargets | None:
    """All rows' entries, or None as soon as one row has none."""
    known = [teacher for teacher in teachers if teacher is not None]
    if len(known) < len(teachers):
        return None
    joined = join_targets(known)
    return TeacherTargets(**{name: values.to(device) for name, values in vars(joined).items()})


def _slice_teacher(teacher: TeacherTargets, chunk: slice) -> TeacherTargets:
    return TeacherTargets(**{field.name: getattr(teacher, field.name)[chunk] for field in fields(TeacherTargets)})


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode (no dropout, no random number drawn), and afterwards each in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
