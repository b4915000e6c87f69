"""Laws of the reduction: it is the float64 law of the same logits, whatever the chunks, the blocks and the number of entries."""

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from components.objectives import head as head_module
from components.objectives.head import Head, naive_logits
from components.teacher_cache import reduction
from components.teacher_cache.reduction import ReducedLaws, Scratch, reduce_hidden, reduce_logits
from components.teacher_cache.top_entries import top_entries

N, H = 13, 8
COLUMNS = [field.name for field in fields(ReducedLaws)]
WIDTHS = (1, 2, 5, 65, 511, 4096, 4097, 5003, 8192)
"""Vocabularies on every path of the search: all columns at once, blocks without and with a remainder."""


def draw(num_columns: int, *, spread: float = 4.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    logits_NV = spread * torch.randn(N, num_columns, generator=generator)
    return logits_NV, torch.randint(0, num_columns, (N,), generator=generator)


def draw_head(num_columns: int, dtype: torch.dtype = torch.float32, **options: float) -> tuple[Tensor, Head, Tensor]:
    torch.manual_seed(1)
    head = Head(torch.randn(num_columns, H).to(dtype), torch.randn(num_columns).to(dtype), **options)  # type: ignore[arg-type]
    return torch.randn(N, H).to(dtype), head, torch.randint(0, head.num_columns, (N,))


def reference(logits_NV: Tensor, labels_N: Tensor, max_entries: int, temperature: float) -> ReducedLaws:
    """By the definitions, in float64; equal logits in the order of their ids."""
    exact_NV = logits_NV.double()
    law_NV, tempered_NV = exact_NV.log_softmax(1), (exact_NV / temperature).log_softmax(1)
    order_NV = exact_NV.sort(dim=1, descending=True, stable=True).indices
    sorted_NV, ids_NK = tempered_NV.gather(1, order_NV), order_NV[:, :max_entries]
    nothing_N1 = torch.full((len(logits_NV), 1), -math.inf, dtype=torch.double)
    outside_NV = torch.cat([sorted_NV[:, 1:].flip(1).logcumsumexp(1).flip(1), nothing_N1], dim=1)
    label_N1 = exact_NV.gather(1, labels_N[:, None])
    top_N2 = torch.cat([exact_NV.gather(1, order_NV[:, :2]), nothing_N1], dim=1)[:, :2]
    return ReducedLaws(
        entry_ids_NK=ids_NK.int(),
        entry_logprobs_NK=sorted_NV[:, :max_entries],
        outside_logprob_NK=outside_NV[:, :max_entries],
        label_logprob_N=law_NV.gather(1, labels_N[:, None]).squeeze(1),
        label_rank_N=(exact_NV > label_N1).sum(1).int(),
        entropy_N=torch.special.entr(law_NV.exp()).sum(1),
        log_partition_N=exact_NV.logsumexp(1),
        margin_N=top_N2[:, 0] - top_N2[:, 1],
    )


def assert_same(found: ReducedLaws, expected: ReducedLaws, tolerance: float = 1e-5, *, ids: bool = True) -> None:
    for name in COLUMNS:
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs.dtype != torch.int32:
            torch.testing.assert_close(
                ours.double(), theirs.double(), atol=tolerance, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
        elif ids:
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("max_entries", [1, 2, 7, 64])
@pytest.mark.parametrize("num_columns", WIDTHS)
def test_the_reduction_is_the_law_in_float64(num_columns: int, max_entries: int, temperature: float) -> None:
    for seed, spread in enumerate((0.1, 3.0, 20.0)):
        logits_NV, labels_N = draw(num_columns, spread=spread, seed=seed)
        found = reduce_logits(logits_NV, labels_N, max_entries=max_entries, temperature=temperature)
        assert_same(found, reference(logits_NV, labels_N, max_entries, temperature))


def test_columns_have_the_types_that_the_cache_writes() -> None:
    found = reduce_logits(*draw(70), max_entries=5, temperature=2.0)
    whole = {name for name in COLUMNS if getattr(found, name).dtype == torch.int32}
    assert whole == {"entry_ids_NK", "label_rank_N"}
    assert {getattr(found, name).dtype for name in COLUMNS} == {torch.int32, torch.float32}
    assert found.entry_ids_NK.shape == found.entry_logprobs_NK.shape == found.outside_logprob_NK.shape == (N, 5)


@pytest.mark.parametrize("tail", [1e-6, 1e-12, 1e-20, 1e-60, 1e-200])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tails_of_any_smallness_are_relatively_exact(tail: float, temperature: float) -> None:
    """Three entries far apart, the rest so low that 1 - sum is zero in float64."""
    logits_NV, labels_N = draw(6000, spread=0.5)
    logits_NV[:, 100:103] = temperature * (torch.tensor([0.0, 0.3, 0.6]) - math.log(tail))
    found = reduce_logits(logits_NV, labels_N, max_entries=8, temperature=temperature)
    expected = reference(logits_NV, labels_N, 8, temperature)
    relative_NK = (found.outside_logprob_NK.double() - expected.outside_logprob_NK).expm1().abs()
    rounding_NK = 2.0**-24 * expected.outside_logprob_NK.abs()  # that of the column's own float32
    assert bool((relative_NK <= 1e-6 + rounding_NK).all())
    assert bool((found.outside_logprob_NK[:, 2] < math.log(tail) + 10).all())


def test_the_entropy_of_a_sure_teacher_is_relatively_exact() -> None:
    logits_NV, labels_N = draw(6000, spread=0.5)
    logits_NV[:, 5] = 60.0
    found, expected = reduce_logits(logits_NV, labels_N, max_entries=3, temperature=1.0), reference(logits_NV, labels_N, 3, 1.0)
    torch.testing.assert_close(found.entropy_N.double(), expected.entropy_N, rtol=1e-5, atol=0)


def test_the_entries_and_what_is_outside_them_are_all_of_the_probability() -> None:
    found = reduce_logits(*draw(5003), max_entries=20, temperature=1.0)
    total_NK = found.entry_logprobs_NK.double().exp().cumsum(1) + found.outside_logprob_NK.double().exp()
    torch.testing.assert_close(total_NK, torch.ones_like(total_NK), rtol=0, atol=1e-6)


def test_with_the_whole_vocabulary_nothing_is_outside() -> None:
    for max_entries in (40, 41, 1000):
        found = reduce_logits(*draw(40), max_entries=max_entries, temperature=1.0)
        assert found.entry_ids_NK.shape == (N, 40)
        assert torch.isneginf(found.outside_logprob_NK[:, -1]).all() and found.outside_logprob_NK[:, :-1].isfinite().all()


@pytest.mark.parametrize("num_columns", WIDTHS)
def test_equal_logits_come_in_the_order_of_their_ids(num_columns: int) -> None:
    generator = torch.Generator().manual_seed(3)
    for levels in (1, 2, 9, 300):
        logits_NV = torch.randint(-levels, levels, (N, num_columns), generator=generator).float()
        for num_entries in {1, min(17, num_columns), min(70, num_columns)}:
            order_NV = logits_NV.sort(dim=1, descending=True, stable=True).indices
            assert torch.equal(top_entries(logits_NV, num_entries), order_NV[:, :num_entries]), (levels, num_entries)


def test_a_label_that_ties_is_not_below_its_equals() -> None:
    logits_1V = torch.tensor([[2.0, 5.0, 2.0, 2.0, 1.0]])
    assert reduce_logits(logits_1V, torch.tensor([3]), max_entries=2, temperature=1.0).label_rank_N.tolist() == [1]


@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 3.0}, {"scale": 0.25}, {"softcap": 2.0, "scale": 1.7, "num_valid": 4500}, {"num_valid": 90}],
    ids=str,
)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_cap_scale_bias_and_padding_of_the_head_are_honoured(options: dict[str, float], temperature: float) -> None:
    hidden_NH, head, labels_N = draw_head(5003, **options)
    found = reduce_hidden(hidden_NH, head, labels_N, max_entries=9, temperature=temperature)
    assert_same(found, reference(naive_logits(head, hidden_NH), labels_N, 9, temperature), 2e-5)
    assert int(found.entry_ids_NK.max()) < head.num_columns


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_of_sixteen_bits_is_multiplied_in_them_and_reduced_in_thirty_two(dtype: torch.dtype) -> None:
    hidden_NH, head, labels_N = draw_head(5003, dtype)
    logits_NV = torch.empty(N, 5003, dtype=dtype)
    head_module.project_rows(head, hidden_NH, logits_NV)
    found = reduce_hidden(hidden_NH, head, labels_N, max_entries=9, temperature=1.0)
    assert_same(found, reference(logits_NV, labels_N, 9, 1.0))


@pytest.mark.parametrize("block_bytes", [1, 50_000, 10**9])
@pytest.mark.parametrize("chunk_bytes", [None, 1, 5003 * 4 * 3, 5003 * 4 * 7, 10**9])
def test_every_chunk_and_block_size_gives_the_same(
    chunk_bytes: int | None, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden_NH, head, labels_N = draw_head(5003, softcap=20.0)
    whole = reduce_hidden(hidden_NH, head, labels_N, max_entries=9, temperature=2.0, chunk_bytes=10**9)
    monkeypatch.setitem(head_module.BLOCK_BYTES, "cpu", block_bytes)
    pieces = reduce_hidden(hidden_NH, head, labels_N, max_entries=9, temperature=2.0, chunk_bytes=chunk_bytes)
    assert_same(pieces, whole)


def test_blocks_of_the_same_logits_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NV, labels_N = draw(5003)
    whole = reduce_logits(logits_NV, labels_N, max_entries=9, temperature=1.0)
    monkeypatch.setitem(head_module.BLOCK_BYTES, "cpu", 3 * 5003 * 4)
    pieces = reduce_logits(logits_NV, labels_N, max_entries=9, temperature=1.0)
    assert all(torch.equal(getattr(whole, name), getattr(pieces, name)) for name in COLUMNS)


def test_the_same_input_gives_the_same_bytes_whatever_the_scratch_held() -> None:
    scratch = Scratch()
    hidden_NH, head, labels_N = draw_head(5003)
    first = reduce_hidden(hidden_NH, head, labels_N, max_entries=9, temperature=2.0, scratch=scratch)
    reduce_logits(
        torch.full((40, 700), math.nan), torch.zeros(40, dtype=torch.long), max_entries=2, temperature=1.0, scratch=scratch
    )
    reduce_hidden(*draw_head(70, torch.bfloat16), max_entries=2, temperature=1.0, scratch=scratch)
    again = reduce_hidden(hidden_NH, head, labels_N, max_entries=9, temperature=2.0, scratch=scratch)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in COLUMNS)


def test_whole_logits_stay_as_they_are() -> None:
    logits_NV, labels_N = draw(300)
    before_NV = logits_NV.clone()
    reduce_logits(logits_NV, labels_N, max_entries=3, temperature=2.0)
    assert torch.equal(logits_NV, before_NV)


def test_whole_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_NH, head, labels_N = draw_head(5003)
    rows: list[int] = []
    project = reduction.project_rows

    def noting(head: Head, hidden_CH: Tensor, out_CV: Tensor) -> None:
        rows.append(len(out_CV))
        project(head, hidden_CH, out_CV)

    monkeypatch.setattr(reduction, "project_rows", noting)
    reduce_hidden(hidden_NH, head, labels_N, max_entries=2, temperature=1.0, chunk_bytes=5 * 5003 * 4)
    assert max(rows) <= 5 and sum(rows) == N and min(rows) >= max(rows) - 2


def test_no_token_gives_empty_columns() -> None:
    hidden_NH, head, labels_N = draw_head(70)
    none = reduce_hidden(hidden_NH[:0], head, labels_N[:0], max_entries=4, temperature=1.0)
    assert_same(none, reduce_logits(torch.empty(0, 70), labels_N[:0], max_entries=4, temperature=1.0))
    one = reduce_logits(*draw(70), max_entries=4, temperature=1.0)
    for name in COLUMNS:
        assert len(getattr(none, name)) == 0
        assert getattr(none, name).dtype == getattr(one, name).dtype
        assert getattr(none, name).shape[1:] == getattr(one, name).shape[1:]


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("num_columns", [20, 5003])
def test_a_row_with_nan_or_inf_has_no_finite_label_logprob_and_harms_no_other(num_columns: int, bad: float) -> None:
    logits_NV, labels_N = draw(num_columns)
    expected = reduce_logits(logits_NV, labels_N, max_entries=4, temperature=1.0)
    for column in (0, num_columns // 2, num_columns - 1, int(labels_N[3])):
        broken_NV = logits_NV.clone()
        broken_NV[3, column] = bad
        found = reduce_logits(broken_NV, labels_N, max_entries=4, temperature=1.0)
        assert (~found.label_logprob_N.isfinite()).nonzero().flatten().tolist() == [3]
        others = torch.arange(N) != 3
        assert all(torch.equal(getattr(found, name)[others], getattr(expected, name)[others]) for name in COLUMNS)
        assert set(found.entry_ids_NK.flatten().tolist()) <= set(range(num_columns))


@pytest.mark.parametrize("max_entries", [4, 12, 40])
def test_tokens_that_the_teacher_rules_out_count_nothing(max_entries: int) -> None:
    """Logits of -inf: in the tail, and among the entries where fewer than K tokens are possible."""
    logits_NV, labels_N = draw(50)
    logits_NV[:, 8:] = -math.inf
    found = reduce_logits(logits_NV, labels_N % 8, max_entries=max_entries, temperature=2.0)
    assert_same(found, reference(logits_NV, labels_N % 8, max_entries, 2.0))
    ruled_out = reduce_logits(logits_NV, torch.full((N,), 30), max_entries=max_entries, temperature=2.0)
    assert torch.isneginf(ruled_out.label_logprob_N).all()


def test_random_laws_of_random_shapes() -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(60):
        num_columns, max_entries = (int(torch.randint(1, high, (), generator=generator)) for high in (9000, 150))
        spread, temperature = (float(torch.rand((), generator=generator)) * high + 0.3 for high in (8, 3))
        logits_NV = spread * torch.randn(5, num_columns, generator=generator) - 30
        labels_N = torch.randint(0, num_columns, (5,), generator=generator)
        found = reduce_logits(logits_NV, labels_N, max_entries=max_entries, temperature=temperature)
        assert_same(found, reference(logits_NV, labels_N, max_entries, temperature))
