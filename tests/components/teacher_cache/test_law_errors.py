"""Laws of the errors of stored laws: none at K = V, fewer with more entries, and the gradient that training would take."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from components.objectives.sparse_target import sparse_kl
from components.teacher_cache import law_errors as errors
from components.teacher_cache.capture import pad_kept
from components.teacher_cache.law_errors import EntryChoice, law_errors, probed_logits, stored_targets
from components.teacher_cache.reduction import reduce_logits
from tests.conftest import VOCABULARY, build_model, build_rows

CHOICES = [EntryChoice(number, 0.0) for number in (2, 4, 8, 16, 32, VOCABULARY)]


def chunks(seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    for size in (30, 7):
        yield 2 * torch.randn(size, VOCABULARY, generator=draw), torch.randint(0, VOCABULARY, (size,), generator=draw)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_more_entries_err_less_and_all_of_them_by_rounding_alone(temperature: float) -> None:
    found, num_tokens = law_errors(chunks(), CHOICES, probability_bits=16, temperature=temperature)
    gradients = [found[choice].gradient for choice in CHOICES]
    assert num_tokens == 37 and gradients == sorted(gradients, reverse=True)
    assert gradients[-1] < 1e-3 < gradients[0]
    assert all(0 < found[choice].kl_nats < 1e-6 for choice in CHOICES)


def test_the_gradient_is_the_one_that_the_training_s_own_loss_has() -> None:
    [(logits_NV, labels_N), _] = chunks()
    found, _ = law_errors(iter([(logits_NV, labels_N)]), [EntryChoice(8, 0.1)], probability_bits=12, temperature=1.0)
    noise_NV = errors.NOISE * torch.randn(logits_NV.shape, generator=torch.Generator().manual_seed(errors.NOISE_SEED))
    student_NV = (logits_NV + noise_NV).requires_grad_()
    stored = stored_targets(reduce_logits(logits_NV, labels_N, max_entries=8, temperature=1.0), 0.1, 12)
    [sparse_NV] = torch.autograd.grad(sparse_kl(student_NV, stored, 1.0).sum(), student_NV)
    full_NV = student_NV.softmax(1) - logits_NV.softmax(1)
    assert found[EntryChoice(8, 0.1)].gradient == pytest.approx(
        float((sparse_NV - full_NV).detach().norm() / full_NV.detach().norm()), rel=1e-3
    )


@pytest.mark.parametrize("through_logits", [False, True])
@pytest.mark.parametrize("positions", ["targets", "all"])
def test_the_probed_logits_are_the_model_s_own_with_the_labels_that_follow(through_logits: bool, positions: str) -> None:
    model, rows = build_model(), build_rows(6)
    parts = list(probed_logits(model, rows, positions, through_logits=through_logits, num_columns=VOCABULARY))
    logits_NV, labels_N = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    expected, labels = [], []
    for row in rows:
        is_kept_T = pad_kept([row], positions)[2][0]
        with torch.no_grad():
            expected.append(model(torch.tensor([row.input_ids])).logits[0][is_kept_T])
        labels.append(torch.tensor(row.input_ids).roll(-1)[is_kept_T])
    torch.testing.assert_close(logits_NV, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(labels_N, torch.cat(labels))


def test_of_many_tokens_a_bounded_number_is_probed_from_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "MAX_TOKENS", 25)
    monkeypatch.setattr(errors, "CHUNK_LOGITS", 2 * VOCABULARY)
    parts = list(probed_logits(build_model(), build_rows(30), "all", through_logits=False, num_columns=VOCABULARY))
    assert sum(len(part[1]) for part in parts) in (25, 26) and len(parts) > 12
    assert all(len(part[1]) <= 2 for part in parts)
