"""Laws of the combined objective, against a literal reference written token by token."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.objectives.sparse_target import TeacherTargets
from components.objectives.token_loss import objective_terms, selection_mask, token_scores
from components.teacher_cache.capture import capture_tokens
from components.uncertainty.scores import token_entropy
from components.uncertainty.selection import quantile_threshold

N, V, K = 12, 19, 5


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(N) % V


def teacher(seed: int = 0, temperature: float = 1.0) -> TeacherTargets:
    kept = capture_tokens(logits(seed), LABELS, K, temperature)
    return TeacherTargets(kept.entry_ids.long(), kept.entry_logprobs.float(), kept.tail_logprob.float(), kept.label_logprob)


def mask_of(objective: Objective, student: Tensor) -> Tensor:
    nll_N = torch.nn.functional.cross_entropy(student.detach(), LABELS, reduction="none")
    scores_N = token_scores(objective, student, nll_N, teacher())
    threshold = quantile_threshold(scores_N, objective.keep, objective.select) if objective.needs_threshold else None
    if objective.select == "random":
        scores_N = torch.rand(N, generator=torch.Generator().manual_seed(3))
    return selection_mask(objective, scores_N, threshold)


def literal_reference(objective: Objective, student: Tensor, held: TeacherTargets, selected_N: Tensor) -> Tensor:
    """The formula of components.objectives.presets, one token and one entry at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for token in range(N):
        q = student[token].double().softmax(0)
        if selected_N[token]:
            total = total - q[LABELS[token]].log()
        pulled = {"none": False, "all": True, "rest": not selected_N[token], "selected": bool(selected_N[token])}
        if not pulled[objective.distil_on]:
            continue
        softened = (student[token].double() / objective.temperature).softmax(0)
        ids = held.entry_ids_NK[token]
        weights = torch.cat([held.entry_logprobs_NK[token], held.tail_logprob_N[token][None]]).double().exp()
        weights = weights / weights.sum()
        rest = 1 - softened[ids].sum()
        buckets = torch.cat([softened[ids], rest[None]])
        kl = (weights * (weights.log() - buckets.log())).sum()
        total = total + objective.distil_weight * objective.temperature**2 * kl
    return total


KINDS = {
    **PRESETS,
    "weighted": replace(PRESETS["uncertainty_aware"], distil_weight=0.3, keep=0.25),
    "selected": replace(PRESETS["uncertainty_aware"], distil_on="selected"),
    "low": replace(PRESETS["uncertainty_aware"], select="low"),
    "hot": replace(PRESETS["sft_kl"], temperature=2.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_preset_equals_the_literal_reference_in_value_and_gradient(kind: str) -> None:
    objective = KINDS[kind]
    student = logits(1).requires_grad_()
    selected_N = mask_of(objective, student)
    held = teacher(temperature=objective.temperature)
    terms = objective_terms(objective, student, LABELS, held, selected_N)
    expected = literal_reference(objective, student, held, selected_N)
    torch.testing.assert_close(terms.loss_sum.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value, student)[0] for value in (terms.loss_sum, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_selecting_every_target_is_cross_entropy_in_value_and_gradient() -> None:
    student = logits(1).requires_grad_()
    expected = torch.nn.functional.cross_entropy(student, LABELS, reduction="sum")
    for objective in (PRESETS["sft"], replace(PRESETS["uncertainty_aware"], keep=1.0), replace(PRESETS["masked_mle"], keep=1.0)):
        terms = objective_terms(objective, student, LABELS, teacher(), mask_of(objective, student))
        assert torch.equal(terms.loss_sum, expected)
        gradients = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in (terms.loss_sum, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


def test_unselected_tokens_get_no_likelihood_gradient() -> None:
    student = logits(1).requires_grad_()
    for name in ("masked_mle", "random_mask"):
        selected_N = mask_of(PRESETS[name], student)
        terms = objective_terms(PRESETS[name], student, LABELS, None, selected_N)
        (gradient,) = torch.autograd.grad(terms.loss_sum, student)
        assert 0 < int(selected_N.sum()) < N
        assert torch.equal(gradient[~selected_N], torch.zeros(int((~selected_N).sum()), V))
        assert (gradient[selected_N].abs().sum(1) > 0).all()


def test_a_student_equal_to_its_teacher_feels_likelihood_alone() -> None:
    student = logits(0).requires_grad_()
    selected_N = mask_of(PRESETS["uncertainty_aware"], student)
    both, alone = (
        objective_terms(PRESETS[name], student, LABELS, teacher(0), selected_N).loss_sum
        for name in ("uncertainty_aware", "masked_mle")
    )
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value, student)[0] for value in (both, alone)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=2e-3)


def test_masks_are_disjoint_from_the_distilled_rest_and_cover_the_targets() -> None:
    objective = PRESETS["uncertainty_aware"]
    selected_N = mask_of(objective, logits(1))
    terms = objective_terms(objective, logits(1), LABELS, teacher(), selected_N)
    inverse = objective_terms(objective, logits(1), LABELS, teacher(), ~selected_N)
    every = objective_terms(PRESETS["sft_kl"], logits(1), LABELS, teacher(), torch.ones(N, dtype=torch.bool))
    torch.testing.assert_close(terms.loss_sum + inverse.loss_sum, every.loss_sum)
    assert int(terms.num_selected) + int(inverse.num_selected) == terms.num_targets == N


def test_permuting_tokens_changes_nothing() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    held, objective = teacher(), PRESETS["uncertainty_aware"]
    selected_N = mask_of(objective, logits(1))
    moved = TeacherTargets(
        held.entry_ids_NK[order], held.entry_logprobs_NK[order], held.tail_logprob_N[order], held.label_logprob_N[order]
    )
    straight = objective_terms(objective, logits(1), LABELS, held, selected_N).loss_sum
    shuffled = objective_terms(objective, logits(1)[order], LABELS[order], moved, selected_N[order]).loss_sum
    torch.testing.assert_close(straight, shuffled)


@pytest.mark.parametrize("name", PRESETS)
def test_without_targets_the_loss_is_a_zero_with_a_graph(name: str) -> None:
    student = logits(1).requires_grad_()
    held = teacher()
    none = TeacherTargets(held.entry_ids_NK[:0], held.entry_logprobs_NK[:0], held.tail_logprob_N[:0], held.label_logprob_N[:0])
    terms = objective_terms(PRESETS[name], student[:0], LABELS[:0], none, torch.ones(0, dtype=torch.bool))
    terms.loss_sum.backward()
    assert float(terms.loss_sum.detach()) == 0.0 and student.grad is not None and float(student.grad.abs().sum()) == 0.0


def test_a_vocabulary_entry_ruled_out_by_the_model_does_not_poison_the_loss() -> None:
    """Models that pad their vocabulary give the padding -inf."""
    student = logits(1)
    student[:, -1] = float("-inf")
    for name in PRESETS:
        objective = PRESETS[name]
        kept = capture_tokens(student, LABELS % (V - 1), K, 1.0)
        held = TeacherTargets(kept.entry_ids.long(), kept.entry_logprobs.float(), kept.tail_logprob.float(), kept.label_logprob)
        moved = student.clone().requires_grad_()
        terms = objective_terms(objective, moved, LABELS % (V - 1), held, torch.arange(N) % 2 == 0)
        (gradient,) = torch.autograd.grad(terms.loss_sum, moved)
        assert torch.isfinite(terms.loss_sum) and torch.isfinite(gradient).all(), name


def test_scores_are_what_their_names_say() -> None:
    student = logits(1)
    nll_N = torch.nn.functional.cross_entropy(student, LABELS, reduction="none")
    held = teacher()
    by_name = {
        "student_nll": nll_N,
        "teacher_nll": -held.label_logprob_N,
        "excess": nll_N + held.label_logprob_N,
        "entropy": token_entropy(student.log_softmax(1)),
    }
    for name, expected in by_name.items():
        torch.testing.assert_close(token_scores(Objective(score=name), student, nll_N, held), expected)  # type: ignore[arg-type]


def test_a_score_carries_no_graph() -> None:
    student = logits(1).requires_grad_()
    nll_N = torch.nn.functional.cross_entropy(student, LABELS, reduction="none")
    for name in ("student_nll", "teacher_nll", "excess", "entropy"):
        assert not token_scores(Objective(score=name), student, nll_N, teacher()).requires_grad  # type: ignore[arg-type]
