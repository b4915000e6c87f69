"""Laws of a moving mask: what enters and leaves is counted, and a resumed history compares the same."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.training.mask_history import MaskHistory, jaccard

MASKS = st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=12)


def mask(bits: str) -> torch.Tensor:
    return torch.tensor([bit == "1" for bit in bits])


def test_the_first_mask_has_nothing_to_be_compared_with() -> None:
    assert MaskHistory().compare_and_add(0.0, mask("1100")) == dict.fromkeys(("entered", "left", "jaccard", "jaccard_epoch"))


def test_what_enters_and_leaves_is_counted() -> None:
    history = MaskHistory()
    history.compare_and_add(0.0, mask("110000"))
    found = history.compare_and_add(0.5, mask("011110"))
    assert (found["entered"], found["left"], found["jaccard"], found["jaccard_epoch"]) == (3, 1, pytest.approx(1 / 5), None)


def test_epochs_are_compared_with_the_newest_mask_a_whole_pass_older() -> None:
    history = MaskHistory()
    for epoch, bits in ((0.0, "1000"), (0.4, "1100"), (0.8, "0001")):
        history.compare_and_add(epoch, mask(bits))
    found = history.compare_and_add(1.5, mask("0110"))
    assert found["jaccard"] == 0.0
    assert found["jaccard_epoch"] == pytest.approx(1 / 3), "compared with epoch .4, not 0 nor .8"


def test_two_empty_masks_are_equal() -> None:
    assert jaccard(mask("000"), mask("000")) == 1.0
    assert jaccard(mask("000"), mask("010")) == 0.0


@settings(deadline=None)
@given(masks=MASKS, resumed_at=st.integers(0, 11), pace=st.floats(0.05, 3))
def test_a_resumed_history_compares_like_an_uninterrupted_one_and_like_one_that_forgets_nothing(
    masks: list[list[bool]], resumed_at: int, pace: float
) -> None:
    history, resumed = MaskHistory(), MaskHistory()
    seen: list[tuple[float, torch.Tensor]] = []
    for index, bits in enumerate(masks):
        if index == resumed_at:
            state = json.loads(json.dumps(resumed.state_dict()))
            resumed = MaskHistory()
            resumed.load_state_dict(state)
        selected_N = torch.tensor(bits)
        found = history.compare_and_add(index * pace, selected_N)
        assert resumed.compare_and_add(index * pace, selected_N) == found
        older = [mask_N for epoch, mask_N in seen if epoch <= index * pace - 1]
        assert found["jaccard_epoch"] == (jaccard(older[-1], selected_N) if older else None)
        seen.append((index * pace, selected_N))
