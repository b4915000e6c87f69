"""How far stored laws are from the full ones: the gradient of KL(teacher || student) near the teacher, and KL at the teacher.

Shapes: C tokens of a chunk, N probed tokens, V vocabulary, K entries, B = K + 1 buckets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from components.data.training_rows import TrainingRow
from components.objectives.head import Head, naive_logits, slices
from components.objectives.model_head import head_of, hidden_of
from components.objectives.row_law import bucket_kl, gradient_, split_law_
from components.objectives.sparse_target import TeacherTargets, normalise
from components.teacher_cache.capture import pad_kept
from components.teacher_cache.encoding import encode, logprob_of_code, pad_entries
from components.teacher_cache.reduction import ReducedLaws, reduce_logits

MAX_TOKENS, MAX_LOGITS = 2000, 1 << 27
"""Probed tokens: so many, and fewer where the vocabulary is large (1,046 of 128,256 columns)."""
MAX_ROWS = 48
CHUNK_LOGITS = 1 << 24
"""Full logits held at a time: 64 MiB in fp32, of which a few copies are made."""
NOISE, NOISE_SEED = 0.1, 0


@dataclass(frozen=True)
class EntryChoice:
    """How many entries a token keeps: until at most `tail_mass` is left outside, `max_entries` at most (0: always)."""

    max_entries: int
    tail_mass: float


@dataclass(frozen=True)
class LawError:
    """`gradient`: ||g - g_full|| / ||g_full|| (Frobenius, all probed tokens) at teacher logits + Gaussian noise of NOISE;
    `kl_nats`: mean KL of the stored law to the teacher itself, which rounding alone keeps from 0."""

    gradient: float
    kl_nats: float


def cut_laws(laws: ReducedLaws, max_entries: int) -> ReducedLaws:
    """The same laws with fewer entries."""
    kept = {name: getattr(laws, name)[:, :max_entries] for name in ("entry_ids_NK", "entry_logprobs_NK", "outside_logprob_NK")}
    return replace(laws, **kept)


def stored_targets(laws: ReducedLaws, tail_mass: float, probability_bits: int) -> TeacherTargets:
    """The laws as the cache hands them out again: cut, rounded, padded."""
    tokens = encode(laws, tail_mass, probability_bits)
    logprobs_M = logprob_of_code(probability_bits)[tokens.entry_codes_M]
    ids_NK, logprobs_NK = pad_entries(tokens.entry_ids_M, logprobs_M, tokens.columns["num_entries"])
    tail_N = torch.from_numpy(tokens.columns["tail_logprob"].astype("float32"))
    return TeacherTargets(ids_NK.long(), logprobs_NK, tail_N, laws.label_logprob_N)


@torch.no_grad()
def law_errors(
    chunks: Iterator[tuple[Tensor, Tensor]], choices: Sequence[EntryChoice], *, probability_bits: int, temperature: float
) -> tuple[dict[EntryChoice, LawError], int]:
    """Errors of each choice over all chunks of (teacher's logits_CV fp32, labels_C), and how many tokens these were."""
    noise = torch.Generator().manual_seed(NOISE_SEED)
    squared, kl_sum = dict.fromkeys(choices, 0.0), dict.fromkeys(choices, 0.0)
    full_squared, num_tokens = 0.0, 0
    for logits_CV, labels_C in chunks:
        student_CV = (logits_CV + NOISE * torch.randn(logits_CV.shape, generator=noise).to(logits_CV.device)) / temperature
        teacher_CV = logits_CV / temperature
        full_CV = student_CV.softmax(1) - teacher_CV.softmax(1)
        full_squared += float(full_CV.double().square().sum())
        num_tokens += len(logits_CV)
        widest = max(choice.max_entries for choice in choices)
        laws = reduce_logits(logits_CV, labels_C, max_entries=widest, temperature=temperature)
        for choice in choices:
            stored = _on(stored_targets(cut_laws(laws, choice.max_entries), choice.tail_mass, probability_bits), logits_CV)
            squared[choice] += _squared_error(student_CV, stored, full_CV)
            kl_sum[choice] += temperature**2 * _kl_sum(teacher_CV, stored)
    errors = {choice: LawError((squared[choice] / full_squared) ** 0.5, kl_sum[choice] / num_tokens) for choice in choices}
    return errors, num_tokens


def _squared_error(student_CV: Tensor, stored: TeacherTargets, full_CV: Tensor) -> float:
    """|| d KL(stored || student) / dz - full ||^2, z the softened logits."""
    ones_C = torch.ones(len(student_CV), device=student_CV.device)
    law = split_law_(student_CV.clone(), stored.entry_ids_NK, stored.is_empty_NK)
    gradient_CV = gradient_(law, ones_C, ones_C, normalise(stored))
    return float(gradient_CV.sub_(full_CV).double().square().sum())


def _kl_sum(teacher_CV: Tensor, stored: TeacherTargets) -> float:
    """KL(stored || teacher) over the buckets, summed; in float64, where it cannot come out below 0."""
    law = split_law_(teacher_CV.double(), stored.entry_ids_NK, stored.is_empty_NK)
    exact = replace(stored, entry_logprobs_NK=stored.entry_logprobs_NK.double(), tail_logprob_N=stored.tail_logprob_N.double())
    return float(bucket_kl(normalise(exact), law).sum())


def _on(targets: TeacherTargets, like: Tensor) -> TeacherTargets:
    return TeacherTargets(**{name: values.to(like.device) for name, values in vars(targets).items()})


@torch.no_grad()
def probed_logits(
    model: nn.Module, rows: Sequence[TrainingRow], positions: str, *, through_logits: bool, num_columns: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Full logits of kept tokens at even distances, row after row, as chunks of (logits_CV fp32, labels_C) on the model's device.

    `through_logits`: the model's head is no plain projection, so one row's whole logits are held, as the capture does.
    """
    model.eval()
    rows = [rows[place * len(rows) // min(MAX_ROWS, len(rows))] for place in range(min(MAX_ROWS, len(rows)))]
    device = next(model.parameters()).device
    kept = [pad_kept([row], positions)[2][0].nonzero().squeeze(1) for row in rows]
    total = sum(len(places) for places in kept)
    step, before = max(1.0, total / min(MAX_TOKENS, max(1, MAX_LOGITS // num_columns))), 0
    size = max(1, CHUNK_LOGITS // num_columns)
    head = None if through_logits else head_of(model)
    for row, places in zip(rows, kept, strict=True):
        numbers = torch.arange(before, before + len(places))
        before += len(places)
        places = places[(numbers / step).floor() != ((numbers - 1) / step).floor()]  # the first of each stretch of `step`
        if len(places):
            input_1T = torch.tensor(row.input_ids, device=device)[None]
            labels_N = input_1T[0, places.to(device) + 1]
            source_NX = _states(model, input_1T, places.to(device), head)
            for chunk in slices(0, len(labels_N), size):
                logits_CV = naive_logits(head, source_NX[chunk]) if isinstance(head, Head) else source_NX[chunk]
                yield logits_CV.float(), labels_N[chunk]


def _states(model: nn.Module, input_1T: Tensor, places_N: Tensor, head: Any) -> Tensor:
    """Hidden states of the places, [N, H], where the head is known, else their logits, [N, V]."""
    if isinstance(head, Head):
        is_place_1T = torch.zeros_like(input_1T, dtype=torch.bool)
        is_place_1T[0, places_N] = True
        return hidden_of(model, {"input_ids": input_1T}, is_place_1T)
    logits_NV: Tensor = model(input_ids=input_1T, use_cache=False).logits[0, places_N]
    return logits_NV
