"""Laws of the dropout members of a look: literal mutual information, in row order, and no trace in the model or the draws."""

from typing import Any

import pytest
import torch

from components.params import LoraParams
from components.training import dropout_information as module
from components.training.dropout_information import dropout_information
from components.training.lora import add_adapter
from components.uncertainty.ensembles import dropout_members
from components.uncertainty.scores import mutual_information
from tests.components.training.conftest import ROWS
from tests.conftest import PAD, build_model


class Held:
    laws = teacher = None

    def __init__(self, row: Any) -> None:
        self.input_ids, self.is_target = row.input_ids, row.is_target


HELD = [Held(row) for row in ROWS[:6]]
"""One of them has no target."""


def adapted(dropout: float) -> Any:
    torch.manual_seed(0)
    model = add_adapter(build_model(), LoraParams(enabled=True, rank=4, dropout=dropout))
    with torch.no_grad():  # a new adapter adds nothing, dropped or not
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    return model


def look(model: Any, num_members: int = 3, seed: int = 7, batch_tokens: int = 1000) -> Any:
    return dropout_information(model, HELD, pad_token_id=PAD, batch_tokens=batch_tokens, num_members=num_members, seed=seed)


def test_it_is_the_mutual_information_of_the_members_row_by_row() -> None:
    model = adapted(0.4).eval()
    literal = []
    for row in HELD:
        laws = []
        for member in dropout_members(model, 3, 7):
            with member() as one, torch.no_grad():
                laws.append(one(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(1))
        literal.append(mutual_information(torch.stack(laws))[torch.tensor(row.is_target[1:])].clamp(min=0))
    found = look(model, batch_tokens=1)  # a row alone in its batch draws as it does by itself
    torch.testing.assert_close(found, torch.cat(literal), rtol=1e-4, atol=1e-5)
    assert float(found.mean()) > 0.01


def test_targets_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = look(adapted(0.4))
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 150)
    assert look(adapted(0.4)).shape == whole.shape


def test_it_repeats_itself_and_leaves_modes_and_draws_as_they_were() -> None:
    model = adapted(0.4).train()
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    first = look(model)
    assert torch.equal(torch.get_rng_state(), state) and [part.training for part in model.modules()] == modes
    assert torch.equal(look(model), first) and not torch.equal(look(model, seed=8), first)


def test_without_dropout_or_members_there_is_none() -> None:
    assert look(adapted(0.0)) is None
    assert look(build_model(attention_dropout=0.3)) is None, "a function, not a module"
    assert look(adapted(0.4), num_members=0) is None
