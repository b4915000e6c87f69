"""Laws of scoring: the statistics are those of a literal computation row by row, whatever shares the batch."""

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from components.evaluation import likelihood
from components.evaluation.items import ItemRow, Law
from components.evaluation.likelihood import TokenStatistics, join, score_rows
from tests.components.evaluation.conftest import laws_model, table_model
from tests.conftest import VOCABULARY, build_model, build_rows

ROWS = [ItemRow(row.input_ids, row.is_target) for row in build_rows(30, seed=3)]


def literal(model: torch.nn.Module, base: torch.nn.Module, row: ItemRow) -> TokenStatistics:
    """One row alone, one target after the other, in float64 from the logits on."""
    ids = torch.tensor([row.input_ids])
    present = torch.ones_like(ids)
    with torch.no_grad():
        logits_TV = model(input_ids=ids, attention_mask=present, use_cache=False).logits[0].double()
        base_TV = base(input_ids=ids, attention_mask=present, use_cache=False).logits[0].double()
    columns: dict[str, list[float]] = {field.name: [] for field in fields(TokenStatistics)}
    laws = iter(row.laws or [])
    for position in [index for index, is_target in enumerate(row.is_target) if is_target]:
        q, p = torch.log_softmax(logits_TV[position - 1], 0), torch.log_softmax(base_TV[position - 1], 0)
        label = row.input_ids[position]
        columns["nll"].append(-float(q[label]))
        columns["entropy"].append(-sum(math.exp(one) * one for one in q.tolist()))
        columns["is_correct"].append(max(range(len(q)), key=lambda token: float(q[token])) == label)
        columns["confidence"].append(math.exp(max(q.tolist())))
        columns["brier"].append(sum((math.exp(one) - (token == label)) ** 2 for token, one in enumerate(q.tolist())))
        columns["drift_kl"].append(sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True)))
        law = next(laws, None)
        known = law is not None
        columns["true_entropy"].append(-sum(s * math.log(s) for s in law.values()) if law else math.nan)
        columns["true_kl"].append(sum(s * (math.log(s) - float(q[t])) for t, s in law.items()) if law and known else math.nan)
    return TokenStatistics(**{name: torch.tensor(values) for name, values in columns.items()})


def assert_equal(found: TokenStatistics, wanted: TokenStatistics, tolerance: float = 1e-5) -> None:
    for field in fields(TokenStatistics):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        torch.testing.assert_close(
            one.double(), other.double(), rtol=0, atol=tolerance, equal_nan=True, msg=lambda m, n=field.name: f"{n}: {m}"
        )


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_the_statistics_are_those_of_each_row_alone(batch_tokens: int) -> None:
    model, base = build_model(seed=1).eval(), build_model(seed=2).eval()
    for found, row in zip(score_rows(model, base, ROWS, batch_tokens), ROWS, strict=True):
        assert_equal(found, literal(model, base, row), 2e-5)


def test_order_and_company_change_nothing() -> None:
    model, base = build_model(seed=1).eval(), build_model(seed=2).eval()
    whole = score_rows(model, base, ROWS, 200)
    backwards = score_rows(model, base, ROWS[::-1], 200)
    for index, found in enumerate(whole):
        assert_equal(found, backwards[len(ROWS) - 1 - index])
        assert len(found.nll) == sum(ROWS[index].is_target)


@pytest.mark.parametrize("entries", [1, 3 * VOCABULARY, 1 << 26])
def test_the_chunks_change_nothing(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, base = table_model(VOCABULARY, 0), table_model(VOCABULARY, 1)
    wanted = score_rows(model, base, ROWS, 500)
    monkeypatch.setattr(likelihood, "CHUNK_ENTRIES", entries)
    for found, other in zip(score_rows(model, base, ROWS, 500), wanted, strict=True):
        assert_equal(found, other, 1e-6)


def test_the_base_has_not_drifted_from_itself() -> None:
    base = build_model(seed=2).eval()
    for statistics in score_rows(base, base, ROWS, 200):
        assert bool((statistics.drift_kl == 0).all())


def test_drift_is_never_negative_and_infinite_logits_are_told() -> None:
    statistics = join(score_rows(table_model(VOCABULARY, 0), table_model(VOCABULARY, 1), ROWS, 200))
    assert bool((statistics.drift_kl > -1e-6).all())
    broken = table_model(VOCABULARY, 0)
    broken.table_VV.data[3, 0] = math.nan
    assert not bool(join(score_rows(broken, table_model(VOCABULARY, 1), ROWS, 200)).nll.isfinite().all())


def law_rows() -> list[ItemRow]:
    """With laws, without laws, and with laws of unequal width."""
    laws: list[Law] = [{2: 0.5, 3: 0.3, 4: 0.2}, {5: 1.0}, {6: 1.0}]
    return [
        ItemRow([1, 2, 5, 6], [False, True, True, True], laws),
        ItemRow([1, 2, 5], [False, False, True]),
        ItemRow([1, 3, 5, 6, 0], [False, True, True, True, False], laws),
    ]


@pytest.mark.parametrize("batch_tokens", [1, 100])
def test_figures_against_the_truth_are_those_of_a_literal_computation(batch_tokens: int) -> None:
    model, base = table_model(7, 0), table_model(7, 1)
    for found, row in zip(score_rows(model, base, law_rows(), batch_tokens), law_rows(), strict=True):
        assert_equal(found, literal(model, base, row))
        assert found.true_kl.isnan().all() == found.true_entropy.isnan().all() == (row.laws is None)


def test_a_model_that_knows_the_truth_is_at_distance_zero_from_it() -> None:
    row = law_rows()[0]
    assert row.laws is not None
    knowing = laws_model({1: row.laws[0], 2: row.laws[1], 5: row.laws[2]}, 7)
    [statistics] = score_rows(knowing, knowing, [row], 100)
    torch.testing.assert_close(statistics.true_kl, torch.zeros(3), rtol=0, atol=1e-6)
    assert statistics.true_entropy.tolist() == pytest.approx([1.0296530140645737, 0.0, 0.0])
    assert bool((statistics.true_entropy[1:] == 0).all()), "what is determined has an entropy of exactly zero"


def test_one_law_for_each_target_is_insisted_on() -> None:
    with pytest.raises(AssertionError, match="one law for each target token"):
        score_rows(table_model(7), table_model(7), [ItemRow([1, 2, 3], [False, True, True], [{2: 1.0}])], 100)


def test_a_model_in_bf16_is_scored_in_fp32() -> None:
    model = build_model(seed=1).eval().to(torch.bfloat16)
    [found] = score_rows(model, model, ROWS[:1], 100)
    assert found.nll.dtype == torch.float32
    assert float(found.entropy.max()) <= math.log(VOCABULARY) + 1e-4


def test_slices_and_joins_are_inverse() -> None:
    whole = join(score_rows(table_model(VOCABULARY, 0), table_model(VOCABULARY, 1), ROWS, 200))
    assert_equal(join([whole.slice(0, 5), whole.slice(5, len(whole.nll))]), whole, 0.0)
    mask_N: Tensor = whole.nll > whole.nll.median()
    assert len(whole.keep(mask_N).nll) == int(mask_N.sum())
