"""Laws of the combined objective and of its weights; test_presets.py holds each preset to a literal reference."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from components.objectives.divergences import divergence
from components.objectives.fused_head import FusedLoss
from components.objectives.head import Head
from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.objectives.row_loss import DenseTeacher
from components.objectives.sparse_target import TeacherTargets
from components.objectives.token_loss import Teacher, token_terms
from components.objectives.weights import TokenFacts, select, sequence_thresholds, token_scores, weigh
from components.uncertainty.scores import token_entropy
from components.uncertainty.selection import quantile_threshold
from tests.conftest import stored_laws

N, V, K = 12, 19, 5
LABELS = torch.arange(N) % V
COLUMNS = {"reference_nll": torch.linspace(0, 4, N), "mutual_information": torch.linspace(1, 0, N), "difficulty": torch.ones(N)}


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


def teacher(seed: int = 0, temperature: float = 1.0, labels: Tensor = LABELS) -> TeacherTargets:
    return stored_laws(logits(seed), labels, K, temperature)


def full(seed: int) -> DenseTeacher:
    """A teacher whose hidden states are its logits."""
    return DenseTeacher(logits(seed), Head(torch.eye(V)))


def facts(num_tokens: int = N) -> TokenFacts:
    return TokenFacts(
        is_target_N=torch.ones(num_tokens, dtype=torch.bool),
        row_N=torch.arange(num_tokens) // 4,
        teacher_logprob_N=teacher().label_logprob_N[:num_tokens],
        class_N=(torch.arange(num_tokens) % 5).to(torch.int8),
        random_N=torch.rand(N, generator=torch.Generator().manual_seed(3))[:num_tokens],
        columns={name: column_N[:num_tokens] for name, column_N in COLUMNS.items()},
    )


def terms_of(objective: Objective, student: Tensor, held: Teacher = None) -> FusedLoss:
    """Terms with the quantile of these very tokens as threshold."""
    nll_N = torch.nn.functional.cross_entropy(student.detach(), LABELS, reduction="none")
    threshold = objective.threshold
    if objective.needs_threshold:
        scores_N = token_scores(objective, nll_N, token_entropy(student.detach().log_softmax(1)), facts())
        threshold = quantile_threshold(scores_N, objective.keep, objective.select)
    return token_terms(objective, student, LABELS, teacher() if held is None else held, facts(), threshold)


def gradient(terms: FusedLoss, student: Tensor) -> Tensor:
    return torch.autograd.grad(terms.loss_sum, student, retain_graph=True)[0]


def test_selecting_every_target_is_cross_entropy_in_value_and_gradient() -> None:
    student = logits(1).requires_grad_()
    expected = torch.nn.functional.cross_entropy(student, LABELS, reduction="sum")
    for objective in (PRESETS["sft"], replace(PRESETS["uncertainty_aware"], keep=1.0), replace(PRESETS["masked_mle"], keep=1.0)):
        terms = terms_of(objective, student)
        torch.testing.assert_close(terms.loss_sum, expected, rtol=1e-6, atol=0)
        wanted = torch.autograd.grad(expected, student, retain_graph=True)[0]
        torch.testing.assert_close(gradient(terms, student), wanted, rtol=1e-6, atol=1e-7)


def test_unselected_tokens_get_no_likelihood_gradient() -> None:
    student = logits(1).requires_grad_()
    for name in ("masked_mle", "random_mask"):
        terms = terms_of(PRESETS[name], student)
        is_selected_N = terms.mle_weight_N > 0
        moved_N = gradient(terms, student).abs().sum(1)
        assert 0 < int(is_selected_N.sum()) < N
        assert torch.equal(moved_N[~is_selected_N], torch.zeros(int((~is_selected_N).sum())))
        assert (moved_N[is_selected_N] > 0).all()


def test_a_student_equal_to_its_teacher_feels_likelihood_alone() -> None:
    student = logits(0).requires_grad_()
    both, alone = (terms_of(PRESETS[name], student) for name in ("uncertainty_aware", "masked_mle"))
    torch.testing.assert_close(both.loss_sum, alone.loss_sum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(both, student), gradient(alone, student), rtol=1e-2, atol=2e-3)


def test_masks_are_disjoint_from_the_distilled_rest_and_cover_the_targets() -> None:
    for name in ("uncertainty_aware", "uncertainty_aware_static", "excess_aware"):
        terms = terms_of(PRESETS[name], logits(1))
        is_selected_N, is_distilled_N = terms.mle_weight_N > 0, terms.distil_weight_N > 0
        assert not bool((is_selected_N & is_distilled_N).any()) and bool((is_selected_N | is_distilled_N).all())
        inverse = terms_of(replace(PRESETS[name], select="low"), logits(1))
        every = terms_of(PRESETS["sft_kl"], logits(1))
        assert torch.equal(inverse.mle_weight_N > 0, ~is_selected_N)
        torch.testing.assert_close(terms.loss_sum + inverse.loss_sum, every.loss_sum)


def test_permuting_tokens_changes_nothing() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    held, objective = teacher(), PRESETS["uncertainty_aware"]
    moved = TeacherTargets(*(getattr(held, name)[order] for name in vars(held)))
    straight = token_terms(objective, logits(1), LABELS, held, facts(), 2.0)
    shuffled = token_terms(objective, logits(1)[order], LABELS[order], moved, facts(), 2.0)
    torch.testing.assert_close(straight.loss_sum, shuffled.loss_sum)


@pytest.mark.parametrize("name", PRESETS)
def test_without_targets_the_loss_is_a_zero_with_a_graph(name: str) -> None:
    student = logits(1).requires_grad_()
    none = TeacherTargets(*(getattr(teacher(), column)[:0] for column in vars(teacher())))
    terms = token_terms(PRESETS[name], student[:0], LABELS[:0], none, facts(0), 1.0)
    terms.loss_sum.backward()
    assert float(terms.loss_sum.detach()) == 0.0 and student.grad is not None and float(student.grad.abs().sum()) == 0.0


@pytest.mark.parametrize("name", PRESETS)
def test_a_vocabulary_entry_ruled_out_by_the_model_does_not_poison_the_loss(name: str) -> None:
    """Models that pad their vocabulary give the padding -inf."""
    student = logits(1)
    student[:, -1] = float("-inf")
    held = stored_laws(student, LABELS % (V - 1), K, 1.0)
    moved = student.clone().requires_grad_()
    terms = token_terms(PRESETS[name], moved, LABELS % (V - 1), held, facts(), 1.0)
    assert torch.isfinite(terms.loss_sum) and torch.isfinite(gradient(terms, moved)).all()


def test_scores_are_what_their_names_say() -> None:
    nll_N = torch.nn.functional.cross_entropy(logits(1), LABELS, reduction="none")
    entropy_N, base_N = token_entropy(logits(1).log_softmax(1)), teacher().label_logprob_N
    by_name = {
        "student_nll": nll_N,
        "teacher_nll": -base_N,
        "excess": nll_N - COLUMNS["reference_nll"],
        "teacher_excess": -base_N - COLUMNS["reference_nll"],
        "probability_gain": (-COLUMNS["reference_nll"]).exp() - base_N.exp(),
        "entropy": entropy_N,
        "mutual_information": COLUMNS["mutual_information"],
        "column": COLUMNS["difficulty"],
    }
    for name, expected in by_name.items():
        objective = Objective(score=name, column="difficulty" if name == "column" else None)  # type: ignore[arg-type]
        torch.testing.assert_close(token_scores(objective, nll_N, entropy_N, facts()), expected)


def test_weights_and_scores_carry_no_graph() -> None:
    student = logits(1).requires_grad_()
    for name in PRESETS:
        terms = terms_of(PRESETS[name], student)
        held = (terms.mle_weight_N, terms.distil_weight_N, terms.nll_N, terms.kl_N)
        assert terms.loss_sum.requires_grad and not any(tensor.requires_grad for tensor in held), name


def test_a_protected_class_is_never_masked_out() -> None:
    objective = replace(PRESETS["uncertainty_aware"], protect=("digit", "end_of_turn"), threshold_nats=1e9)
    terms = terms_of(objective, logits(1))
    class_N = torch.arange(N) % 5
    assert torch.equal(terms.mle_weight_N > 0, (class_N == 0) | (class_N == 3)), "end_of_turn is class 0, digit class 3"
    assert torch.equal(terms.distil_weight_N > 0, ~(terms.mle_weight_N > 0))


def test_prompt_tokens_are_distilled_and_never_learned() -> None:
    labels_N = torch.where(torch.arange(N) < 5, -100, LABELS)
    prompt = replace(facts(), is_target_N=labels_N != -100)
    objective = replace(PRESETS["uncertainty_aware"], prompt_tokens="distil_only", distil_weight=0.5)
    student = logits(1).requires_grad_()
    terms = token_terms(objective, student, labels_N, teacher(labels=labels_N.clamp(min=0)), prompt, 1.0)
    assert terms.mle_weight_N[:5].tolist() == [0.0] * 5 and terms.distil_weight_N[:5].tolist() == [0.5] * 5
    ignoring = token_terms(
        replace(objective, prompt_tokens="ignore"), student, labels_N, teacher(labels=labels_N.clamp(min=0)), prompt, 1.0
    )
    assert ignoring.distil_weight_N[:5].tolist() == [0.0] * 5
    assert float(gradient(ignoring, student)[:5].abs().sum()) == 0.0 < float(gradient(terms, student)[:5].abs().sum())


def test_sequence_scope_keeps_its_share_of_every_row() -> None:
    objective = replace(PRESETS["masked_mle"], scope="sequence", keep=0.5)
    scores_N = torch.cat([torch.arange(4.0), 100 + torch.arange(4.0), 1000 + torch.arange(4.0)])
    threshold_N = sequence_thresholds(objective, scores_N, facts())
    assert select(objective, scores_N, facts(), threshold_N).view(3, 4).sum(1).tolist() == [2, 2, 2]


def test_before_the_first_threshold_every_token_is_selected() -> None:
    objective = PRESETS["excess_aware"]
    weights = weigh(objective, torch.ones(N), None, facts(), None, 1.0)
    assert bool(weights.selected_N.all()) and float(weights.distil_N.sum()) == 0.0


# --- divergences with the full law ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew"])
def test_a_divergence_is_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    teacher_NV, student_NV = (logits(seed).double().log_softmax(1) for seed in (0, 1))
    assert float(divergence(name, teacher_NV, teacher_NV).abs().max()) < 1e-12
    assert float(divergence(name, teacher_NV, student_NV).min()) > 0.01


def test_divergences_are_those_of_their_formulas() -> None:
    p, q = (logits(seed)[0].double().softmax(0) for seed in (0, 1))
    mean, mixed = (p + q) / 2, 0.1 * p + 0.9 * q
    expected = {
        "forward_kl": (p * (p / q).log()).sum(),
        "reverse_kl": (q * (q / p).log()).sum(),
        "jsd": 0.5 * (p * (p / mean).log()).sum() + 0.5 * (q * (q / mean).log()).sum(),
        "skew": (p * (p / mixed).log()).sum(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(divergence(name, p.log()[None], q.log()[None])[0], value)


def test_a_teacher_with_every_entry_is_the_full_teacher() -> None:
    whole = stored_laws(logits(0), LABELS, V, 1.0)
    sparse, dense = (terms_of(PRESETS["sft_kl"], logits(1), held) for held in (whole, full(0)))
    torch.testing.assert_close(sparse.kl_N, dense.kl_N, rtol=2e-3, atol=2e-3)


def test_the_temperature_s_square_keeps_the_gradient_s_size() -> None:
    student = logits(1).requires_grad_()
    sizes = []
    for temperature in (1.0, 50.0):
        objective = replace(PRESETS["sft_kl"], select="low", threshold_nats=-1.0, temperature=temperature)
        terms = terms_of(objective, student, full(0))
        assert float(terms.mle_weight_N.sum()) == 0.0
        sizes.append(float(gradient(terms, student).norm()))
    assert 0.5 < sizes[1] / sizes[0] < 2
