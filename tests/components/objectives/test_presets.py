"""Laws of the presets: each equals a literal reference of its source, written token by token in float64 from logits alone."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.objectives.sparse_target import TeacherTargets
from components.objectives.token_loss import token_terms
from components.objectives.weights import TokenFacts
from components.params import ObjectiveParams
from components.uncertainty.selection import quantile_threshold
from tests.conftest import stored_laws

N, V, K = 17, 31, 6
NUM_PROMPT = 3
"""The first tokens are a prompt's: no preset learns them, one distils them."""
LABELS = torch.arange(N) * 2 % V
IS_TARGET = torch.arange(N) >= NUM_PROMPT
TARGETS = range(NUM_PROMPT, N)
MARKED = torch.where(IS_TARGET, LABELS, -100)


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


STUDENT, BASE = logits(1), logits(0)
BASE[::3].scatter_(1, LABELS[::3, None], 6.0)  # the base knows every third token
REFERENCE_NLL = 4 * torch.rand(N, generator=torch.Generator().manual_seed(2))
RANDOM = torch.rand(N, generator=torch.Generator().manual_seed(3))


def teacher() -> TeacherTargets:
    return stored_laws(BASE, LABELS, K, 1.0)


def facts() -> TokenFacts:
    return TokenFacts(
        is_target_N=IS_TARGET,
        row_N=torch.zeros(N, dtype=torch.long),
        teacher_logprob_N=teacher().label_logprob_N,
        class_N=(torch.arange(N) % 5).to(torch.int8),
        random_N=RANDOM,
        columns={"reference_nll": REFERENCE_NLL, "mutual_information": RANDOM, "difficulty": RANDOM},
    )


def nll(table: Tensor, token: int) -> Tensor:
    return -table[token].double().log_softmax(0)[LABELS[token]]


def pull(student: Tensor, token: int) -> Tensor:
    """KL over the teacher's K entries and everything else as one bucket."""
    held = teacher()
    ids = held.entry_ids_NK[token]
    weights = torch.cat([held.entry_logprobs_NK[token], held.tail_logprob_N[token][None]]).double().exp()
    weights = weights / weights.sum()
    q = student[token].double().softmax(0)
    outside = torch.ones(V, dtype=torch.bool)
    outside[ids] = False
    buckets = torch.cat([q[ids], q[outside].sum()[None]])
    return (weights * (weights.log() - buckets.log())).sum()


def top_half(values: list[float]) -> list[bool]:
    """The higher half, as a sorted list says it."""
    cut = sorted(values, reverse=True)[len(values) // 2 - 1]
    return [value >= cut for value in values]


def student_nlls() -> list[float]:
    return [float(nll(STUDENT, token)) for token in TARGETS]


def base_nlls() -> list[float]:
    return [float(nll(BASE, token)) for token in TARGETS]


def masked(is_selected: list[bool], *, distil: bool, prompt: bool = False) -> Callable[[Tensor], Tensor]:
    """`is_selected`: of each target token."""

    def loss(student: Tensor) -> Tensor:
        pairs = list(zip(TARGETS, is_selected, strict=True))
        learned = [nll(student, token) for token, selected in pairs if selected]
        pulled = [pull(student, token) for token, selected in pairs if distil and not selected]
        pulled += [pull(student, token) for token in range(NUM_PROMPT) if prompt]
        return torch.stack([*learned, *pulled]).sum()

    return loss


def weighted(weight: Callable[[Tensor], float]) -> Callable[[Tensor], Tensor]:
    """Detached weight of each token's law times its loss."""

    def loss(student: Tensor) -> Tensor:
        laws = student.detach().double().softmax(1)
        terms = []
        for token in TARGETS:
            law_and_label = torch.cat([laws[token], laws[token][LABELS[token]][None]])
            terms.append(weight(law_and_label) * nll(student, token))
        return torch.stack(terms).sum()

    return loss


def own_probability(law_and_label: Tensor) -> float:
    return float(law_and_label[-1])


def share_of_top_entropy(law_and_label: Tensor) -> float:
    top = sorted(law_and_label[:-1].tolist(), reverse=True)[:20]
    return -sum(p / sum(top) * math.log(p / sum(top)) for p in top) / math.log(20)


EXCESS = [student - float(reference) for student, reference in zip(student_nlls(), REFERENCE_NLL[IS_TARGET], strict=True)]
GAIN = [math.exp(-float(ours)) - math.exp(-base) for ours, base in zip(REFERENCE_NLL[IS_TARGET], base_nlls(), strict=True)]
LITERAL: dict[str, Callable[[Tensor], Tensor]] = {
    "sft": masked([True] * len(TARGETS), distil=False),
    "sft_kl": lambda student: torch.stack([nll(student, t) + pull(student, t) for t in TARGETS]).sum(),
    "masked_mle": masked(top_half(student_nlls()), distil=False),
    "uncertainty_aware": masked(top_half(student_nlls()), distil=True),
    "uncertainty_aware_static": masked(top_half(base_nlls()), distil=True),
    "excess_aware": masked(top_half(EXCESS), distil=True),
    "gain_aware": masked([gain >= 0.1 for gain in GAIN], distil=True, prompt=True),
    "stm": masked([math.exp(value) <= 2.5 for value in base_nlls()], distil=False),
    "random_mask": masked([bool(value < 0.5) for value in RANDOM[IS_TARGET]], distil=False),
    "dft": weighted(own_probability),
    "eaft": weighted(share_of_top_entropy),
}


def threshold_of(objective: Objective) -> float | None:
    """The quantile over these tokens, where the objective needs one."""
    scores = {"student_nll": student_nlls(), "teacher_nll": base_nlls(), "excess": EXCESS}
    if not objective.needs_threshold:
        return objective.threshold
    return quantile_threshold(torch.tensor(scores[objective.score]), objective.keep, objective.select)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_equals_the_literal_reference_of_its_source_in_value_and_gradient(name: str) -> None:
    objective, student = PRESETS[name], STUDENT.clone().requires_grad_()
    terms = token_terms(objective, student, MARKED, teacher(), facts(), threshold_of(objective))
    expected = LITERAL[name](student)
    torch.testing.assert_close(terms.loss_sum.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value, student)[0] for value in (terms.loss_sum, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_the_masks_of_the_references_are_neither_empty_nor_full() -> None:
    """Otherwise the comparison above could not fail."""
    for name in ("masked_mle", "uncertainty_aware_static", "excess_aware", "gain_aware", "stm", "random_mask"):
        terms = token_terms(PRESETS[name], STUDENT, MARKED, teacher(), facts(), threshold_of(PRESETS[name]))
        assert 0 < int((terms.mle_weight_N > 0).sum()) < len(TARGETS), name


def test_a_threshold_that_no_token_moves_is_one_of_the_whole_dataset() -> None:
    static = {name for name, preset in PRESETS.items() if preset.is_static}
    assert static == {"uncertainty_aware_static", "stm", "gain_aware"}
    assert PRESETS["uncertainty_aware_static"].scope == "dataset"


def test_every_preset_of_the_schema_exists_and_every_existing_one_is_in_the_schema() -> None:
    assert set(ObjectiveParams.model_json_schema()["properties"]["preset"]["enum"]) == set(PRESETS)
    assert set(LITERAL) == set(PRESETS), "a preset without a literal reference"


def test_the_grid_crosses_masking_with_distillation() -> None:
    masks = {name: PRESETS[name].select == "high" for name in ("sft", "masked_mle", "sft_kl", "uncertainty_aware")}
    pulls = {name: PRESETS[name].distils for name in masks}
    assert list(masks.values()) == [False, True, False, True] and list(pulls.values()) == [False, False, True, True]


def test_dft_leaves_out_what_the_student_finds_impossible_and_eaft_what_it_is_sure_of() -> None:
    sure = torch.full((2, V), -20.0)
    sure[0, 0] = 20.0  # certain, and wrong
    sure[1] = 0.0  # knows nothing
    two = TokenFacts(torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.long))
    labels = torch.tensor([1, 1])
    for name, expected in (("dft", [0.0, 1 / V]), ("eaft", [0.0, 1.0])):
        terms = token_terms(PRESETS[name], sure, labels, None, two, None)
        assert terms.mle_weight_N.tolist() == pytest.approx(expected, abs=1e-5), name
