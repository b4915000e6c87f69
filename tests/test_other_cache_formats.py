"""Laws of other projects' cache formats as we tabulate them: their bytes, what they keep, and their losses' gradients."""

import dataclasses

import pytest
import torch
from torch import Tensor

from benchmarks.other_cache_formats import (
    BUDGET,
    FORMATS,
    DistillKitSettings,
    EncodedLaws,
    dense_gradient,
    encode_axolotl,
    encode_distillkit,
    encode_megatron,
    fit_curve,
    loss_gradient,
    relative_error,
    spread_tail,
)

N, V = 6, 400


def laws(scale: float = 2.0, vocabulary: int = V) -> Tensor:
    return (scale * torch.randn(N, vocabulary, generator=torch.Generator().manual_seed(0))).log_softmax(1)


def student_of(logprobs_NV: Tensor, distance: float = 0.1) -> Tensor:
    return logprobs_NV + distance * torch.randn(logprobs_NV.shape, generator=torch.Generator().manual_seed(1))


def entries(encoded: EncodedLaws) -> tuple[Tensor, Tensor]:
    assert encoded.entry_ids_NK is not None and encoded.entry_logprobs_NK is not None
    return encoded.entry_ids_NK, encoded.entry_logprobs_NK


@pytest.mark.parametrize(("vocabulary", "recommended", "budget"), [(128_256, 328, 121), (151_936, 344, 127)])
def test_distillkit_costs_what_its_configuration_says(vocabulary: int, recommended: int, budget: int) -> None:
    law = torch.zeros(1, vocabulary).log_softmax(1)
    assert encode_distillkit(law).bytes_per_token == recommended
    assert encode_distillkit(law, BUDGET).bytes_per_token == budget


def test_megatron_costs_two_bytes_a_value_and_seventeen_bits_an_id() -> None:
    assert encode_megatron(laws()).bytes_per_token == 128 * 2 + 128 * 17 / 8 == 528
    assert encode_megatron(laws(), packed_bit=False).bytes_per_token == 640
    with pytest.raises(ValueError, match="151936 does not fit 17 bits"):
        encode_megatron(torch.zeros(1, 151_936))


def test_axolotl_costs_what_arrow_makes_of_python_numbers() -> None:
    pa = pytest.importorskip("pyarrow")
    column = pa.array([[-0.5, -1.0]]), pa.array([[5, 7]])
    widths = [array.type.value_type.bit_width // 8 for array in column]
    assert encode_axolotl(laws(), 2).bytes_per_token == 2 * sum(widths)


def test_a_curve_of_its_own_terms_is_kept_and_exact_values_are_bfloat16() -> None:
    places = torch.arange(8.0)
    values = torch.stack([-1 - 0.5 * places, -2 - places.sqrt()])
    torch.testing.assert_close(fit_curve(values, (0, 1, "sqrt")), values, rtol=1e-5, atol=1e-5)
    ids, kept = entries(encode_distillkit(laws(), DistillKitSettings(8, 4, (0, 1))))
    expected = laws().topk(8, dim=1)
    assert torch.equal(ids, expected.indices)
    assert torch.equal(kept[:, :4], expected.values[:, :4].bfloat16().float())
    assert not torch.equal(kept[:, 4:], expected.values[:, 4:])


def test_the_curve_has_the_least_squares_error_of_its_terms() -> None:
    values = laws().topk(30, dim=1).values
    places = torch.arange(30.0, dtype=torch.float64)
    design = torch.stack([torch.ones_like(places), places, places.sqrt()], dim=1)
    best = (design @ torch.linalg.lstsq(design, values.double().T).solution).T
    torch.testing.assert_close(fit_curve(values, (0, 1, "sqrt")).double(), best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FORMATS if "Megatron" in name or "axolotl" in name])
def test_the_gradient_is_the_closed_form_of_the_treatment(name: str) -> None:
    encoded = FORMATS[name](laws())
    logits = student_of(laws())
    ids, kept = entries(encoded)
    student, teacher = logits.double().softmax(1), kept.double().exp()
    inside = torch.zeros_like(student).scatter(1, ids, teacher)
    share = student.gather(1, ids).sum(1, keepdim=True)
    expected = {
        "renormalise": student - inside / teacher.sum(1, keepdim=True),
        "renormalise both": student / share * (inside > 0) - inside,
        "drop": teacher.sum(1, keepdim=True) * student - inside,
        "ghost token": student - inside - (1 - teacher.sum(1, keepdim=True)) * student / (1 - share) * (inside == 0),
    }[encoded.outside]
    torch.testing.assert_close(loss_gradient(encoded, logits).double(), expected, rtol=1e-3, atol=2e-6)


def test_all_entries_exact_are_the_dense_gradient_whatever_the_treatment() -> None:
    law, logits = laws(vocabulary=40), student_of(laws(vocabulary=40))
    order = law.topk(40, dim=1)
    for outside in ("renormalise", "renormalise both", "drop"):
        encoded = EncodedLaws(0, outside, order.indices, order.values)  # type: ignore[arg-type]
        assert relative_error(loss_gradient(encoded, logits), dense_gradient(law, logits)) < 1e-5
    dense = EncodedLaws(0, "dense reconstruction", law_NV=law)
    assert relative_error(loss_gradient(dense, logits), dense_gradient(law, logits)) < 1e-5


def test_at_the_teacher_itself_only_a_tail_leaves_the_student_where_it_is() -> None:
    flat = laws(1.0)
    at_teacher = {name: float(loss_gradient(encode(flat), flat).norm()) for name, encode in FORMATS.items()}
    assert at_teacher["Megatron-LM"] < 2e-3 < 0.05 < at_teacher["Megatron-LM without ghost token"]
    assert at_teacher["axolotl"] < 1e-5 < 0.05 < at_teacher["axolotl, teacher normalised only"]
    assert at_teacher["DistillKit recommended, symmetric_uniform"] < at_teacher["DistillKit recommended"]


def test_a_ghost_token_below_the_cut_pulls_at_nothing_outside() -> None:
    sure = torch.zeros(1, V)
    sure[0, :128] = 40 - torch.arange(128.0) / 8
    gradient = loss_gradient(encode_megatron(sure.log_softmax(1)), student_of(sure))
    assert float(gradient[0, 128:].abs().max()) < 1e-12


def test_a_stored_tail_takes_the_place_of_one_minus_sum() -> None:
    encoded = encode_megatron(laws(), 16)
    ids, kept = entries(encoded)
    exact = laws().scatter(1, ids, float("-inf")).logsumexp(1)
    stored = dataclasses.replace(encoded, entry_logprobs_NK=laws().gather(1, ids), tail_logprob_N=exact)
    assert float(loss_gradient(stored, laws()).norm()) < 1e-5 < float(loss_gradient(encoded, laws()).norm())
    assert kept.dtype == torch.float32


def test_a_spread_tail_is_a_whole_law_with_the_entries_unchanged() -> None:
    encoded = encode_distillkit(laws())
    dense = spread_tail(encoded, V)
    assert dense.law_NV is not None and dense.bytes_per_token == encoded.bytes_per_token
    torch.testing.assert_close(dense.law_NV.logsumexp(1), torch.zeros(N), rtol=0, atol=1e-4)
    ids, kept = entries(encoded)
    assert torch.equal(dense.law_NV.gather(1, ids), kept)
    assert torch.isfinite(loss_gradient(dense, student_of(laws()))).all()
