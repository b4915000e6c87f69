"""Laws of ensembles: one member at a time gives what all at once give, and no member leaves a trace in the model."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from components.errors import ModelError
from components.uncertainty.ensembles import (
    RunningEnsemble,
    adapter_members,
    dropout_members,
    dropout_on,
    model_members,
    score_members,
)
from components.uncertainty.scores import mutual_information

LAWS = st.lists(
    st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=2, max_size=2), min_size=1, max_size=5
).map(lambda rows: torch.tensor(rows, dtype=torch.float64).log_softmax(-1))


def running(logprobs_MNV: Tensor) -> RunningEnsemble:
    ensemble = RunningEnsemble()
    for member_NV in logprobs_MNV:
        ensemble.add(member_NV)
    return ensemble


@settings(deadline=None)
@given(LAWS)
def test_one_member_at_a_time_gives_what_all_at_once_give(logprobs_MNV: Tensor) -> None:
    torch.testing.assert_close(
        running(logprobs_MNV).mutual_information(), mutual_information(logprobs_MNV).clamp(min=0), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(running(logprobs_MNV).mean_logprobs().exp(), logprobs_MNV.exp().mean(0), rtol=0, atol=1e-9)


@settings(deadline=None)
@given(LAWS)
def test_information_lies_between_zero_and_the_log_of_the_number_of_members(logprobs_MNV: Tensor) -> None:
    information_N = running(logprobs_MNV).mutual_information()
    assert bool((information_N >= 0).all())
    assert bool((information_N <= math.log(len(logprobs_MNV)) + 1e-9).all())


@settings(deadline=None)
@given(LAWS, st.integers(1, 6))
def test_equal_members_tell_nothing(logprobs_MNV: Tensor, num_members: int) -> None:
    equal = running(logprobs_MNV[:1].expand(num_members, -1, -1))
    torch.testing.assert_close(equal.mutual_information(), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_certain_opposites_tell_log_two() -> None:
    opposites = torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]])
    assert running(opposites).mutual_information().tolist() == pytest.approx([math.log(2)])


class Dropped(nn.Module):
    """A head behind dropout, beside a norm whose mode matters too."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.norm, self.dropout, self.head = nn.BatchNorm1d(6), nn.Dropout(p), nn.Linear(6, 4)

    def forward(self, x_NH: Tensor) -> Tensor:
        logits_NV: Tensor = self.head(self.dropout(self.norm(x_NH)))
        return logits_NV


def inputs() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


def test_monte_carlo_dropout_switches_dropout_alone_and_restores_every_mode() -> None:
    model = nn.ModuleList([Dropped().eval(), Dropped().train(), Dropped(0.0).eval()])
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="halfway"), dropout_on(model):
        for module, mode in zip(model.modules(), modes, strict=True):
            assert module.training == (True if isinstance(module, nn.Dropout) else mode)
        raise RuntimeError("halfway")
    assert [module.training for module in model.modules()] == modes


def test_monte_carlo_dropout_disagrees_repeats_itself_and_leaves_the_random_state() -> None:
    torch.manual_seed(0)
    model = Dropped().eval()
    before = torch.get_rng_state()
    first, again, other = (
        score_members(dropout_members(model, 4, seed), lambda one: one(inputs())).mutual_information() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert bool((first > 0).all())
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(model(inputs()), model(inputs())), "dropout is off again"


def test_a_model_without_dropout_is_no_ensemble() -> None:
    for model in (Dropped(0.0), nn.Linear(2, 2)):
        with pytest.raises(ModelError, match=r"training\.lora\.dropout"):
            score_members(dropout_members(model, 2, 0), lambda one: one(torch.zeros(1, 2)))


def test_members_may_be_models() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(6, 4) for _ in range(3)]
    found = score_members(model_members(models), lambda one: one(inputs()))
    expected = mutual_information(torch.stack([model(inputs()).log_softmax(1) for model in models]))
    assert found.num_members == 3
    torch.testing.assert_close(found.mutual_information(), expected)
    assert not found.mutual_information().requires_grad


def test_members_may_be_adapters_and_the_active_one_and_its_training_are_restored() -> None:
    from peft import LoraConfig, get_peft_model

    from tests.conftest import build_model

    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model: Any = get_peft_model(build_model(), settings, adapter_name="one")
    model.add_adapter("two", settings)
    model.eval()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    ids_BT = torch.tensor([[1, 5, 9, 13]])

    def logits_of(one: nn.Module) -> Tensor:
        logits_NV: Tensor = one(input_ids=ids_BT).logits[0]
        return logits_NV

    with torch.no_grad():
        laws = []
        for name in ("one", "two"):
            model.set_adapter(name)
            laws.append(logits_of(model).log_softmax(1))
    model.set_adapter("one")
    found = score_members(adapter_members(model, ["one", "two"]), logits_of).mutual_information()
    torch.testing.assert_close(found, mutual_information(torch.stack(laws)))
    assert bool((found > 1e-4).any())
    assert model.active_adapter == "one"
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
