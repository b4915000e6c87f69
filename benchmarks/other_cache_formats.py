"""What other projects' teacher caches keep of a law, and the gradient that their trainers make of it.

Our own arithmetic after the published descriptions (looked up in November 2026), for a table of bytes per token against the error
of the gradient near the teacher. Nothing here reads or writes a file of theirs.

    encode_distillkit   arcee-ai/DistillKit, README "Logit Compression", distillkit/compression, lossfuncs/kl.py
    encode_megatron     NVIDIA/Megatron-LM, docs/user-guide/features/offline_logits_distillation.md, training/distillation
    encode_axolotl      axolotl-ai-cloud/axolotl, src/axolotl/integrations/kd (README, chat_template.py, kernels/liger.py)
    spread_tail         the same entries with their tail spread evenly over the other tokens: a dense law

Approximate throughout: one law per token at temperature 1, sums over tokens instead of their means, no loss masks; and bytes
are those of the arrays: container, lengths and general compression (zstd in Megatron's tar files, parquet's pages) are left out.

Shapes: N tokens, V vocabulary, K entries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Outside = Literal["renormalise", "renormalise both", "drop", "ghost token", "dense reconstruction"]
"""What a trainer does about the probability outside the entries:

renormalise           the teacher's entries are scaled to sum 1; the student's logprobs are those of its full softmax
renormalise both      both sides are scaled to sum 1 over the entries, so nothing outside them gets a gradient of the loss
drop                  the entries as they are, and no term for the rest
ghost token           one more term for all the rest: 1 - sum on both sides, cut at `smallest_tail`
dense reconstruction  the loss of a dense law that was made up from what is stored
"""


@dataclass(frozen=True)
class EncodedLaws:
    """What comes back from the disk, in fp32: entries, or a dense law where `outside` is "dense reconstruction"."""

    bytes_per_token: float
    outside: Outside
    entry_ids_NK: Tensor | None = None
    entry_logprobs_NK: Tensor | None = None
    tail_logprob_N: Tensor | None = None
    """Where a format stores it; otherwise the ghost token's probability is the trainer's own 1 - sum."""
    law_NV: Tensor | None = None
    """Logprobs of all tokens, -inf where a token has no probability."""
    smallest_tail: float = 1e-8


@dataclass(frozen=True)
class DistillKitSettings:
    """`k`, `exact_k` and `polynomial_terms` of its compressor; exact values bfloat16, coefficients float32, no residual bins."""

    num_entries: int
    num_exact: int
    terms: tuple[int | str, ...]


RECOMMENDED = DistillKitSettings(num_entries=128, num_exact=16, terms=(0, 1, 2, 3, 4, "sqrt"))
BUDGET = DistillKitSettings(num_entries=50, num_exact=1, terms=(0, 1, "sqrt"))
MEGATRON_VOCABULARY = 1 << 17
"""Its ids have 17 bits, and it refuses a larger vocabulary."""


def encode_distillkit(
    logprobs_NV: Tensor, settings: DistillKitSettings = RECOMMENDED, outside: Outside = "renormalise"
) -> EncodedLaws:
    """Top K: the first few exact, a least-squares curve over the rank for the rest, ids of ceil(log2 V) bits.

    Its trainer's default treatment is "renormalise" (`missing_probability_handling: zero`); the alternative
    `symmetric_uniform` is a "ghost token" with the tail cut at 1e-6, which it takes through logsumexp and log(1 - exp).
    Approximate: the curve is fitted by a pseudo-inverse in fp32 with its cut-off (1e-5), but the terms up to rank^4 are so
    badly conditioned in fp32 that two linear-algebra libraries do not agree on the last digits of the curve.
    """
    logprobs_NK, ids_NK = logprobs_NV.float().topk(settings.num_entries, dim=1)
    exact_NK = logprobs_NK[:, : settings.num_exact].bfloat16().float()
    curve_NK = fit_curve(logprobs_NK[:, settings.num_exact :], settings.terms)
    id_bits = (logprobs_NV.shape[1] - 1).bit_length()
    num_bytes = 2 * settings.num_exact + 4 * len(settings.terms) + math.ceil(settings.num_entries * id_bits / 8)
    return EncodedLaws(num_bytes, outside, ids_NK, torch.cat([exact_NK, curve_NK], dim=1), smallest_tail=1e-6)


def fit_curve(values_NM: Tensor, terms: tuple[int | str, ...]) -> Tensor:
    """The least-squares combination of `terms` of the place 0 .. M - 1 for each row, [N, M], in fp32."""
    places_M = torch.arange(values_NM.shape[1], dtype=torch.float32)
    design_MC = torch.stack([places_M.sqrt() if term == "sqrt" else places_M ** int(term) for term in terms], dim=1)
    inverse_CM = torch.linalg.pinv(design_MC, atol=1e-5, rtol=0.0)
    curve_NM: Tensor = values_NM @ inverse_CM.T @ design_MC.T
    return curve_NM


def encode_megatron(
    logprobs_NV: Tensor, num_entries: int = 128, *, ghost_token: bool = True, packed_bit: bool = True
) -> EncodedLaws:
    """Top K logprobs in fp16, ids as uint16 and a 17th bit: 528 bytes at K = 128 (640 while that bit took a byte).

    The published training path asks its loss for a ghost token (`add_ghost_token=True`); without it the rest is dropped.
    Approximate: the optional nucleus cut (`--logits-save-top-p`) is off, as by default.
    """
    if logprobs_NV.shape[1] > MEGATRON_VOCABULARY:
        raise ValueError(f"a vocabulary of {logprobs_NV.shape[1]} does not fit 17 bits: Megatron-LM cannot cache such a teacher")
    logprobs_NK, ids_NK = logprobs_NV.float().topk(num_entries, dim=1)
    bit_bytes = math.ceil(num_entries / 8) if packed_bit else num_entries
    outside: Outside = "ghost token" if ghost_token else "drop"
    return EncodedLaws(4 * num_entries + bit_bytes, outside, ids_NK, logprobs_NK.half().float())


def encode_axolotl(
    logprobs_NV: Tensor, num_entries: int = 64, *, bytes_per_entry: int = 16, normalize_student: bool = True
) -> EncodedLaws:
    """Top K as two columns of lists, renormalised when the data set is prepared, in fp32 from then on.

    `bytes_per_entry`: no dtype is asked for, and what Python's numbers become in Arrow is float64 and int64 (16); the prepared
    data set adds an int64 mask per entry (24); a careful author's float32 and int32 would be 8. No K is prescribed: 64 is
    that of the README's online example. `normalize_student` is `kd_normalize_topk`, on by default; off, only the teacher's side
    is scaled. Approximate: positions that the loss masks, and the -1e9 padding of shorter lists, are left out.
    """
    logprobs_NK, ids_NK = logprobs_NV.float().topk(num_entries, dim=1)
    outside: Outside = "renormalise both" if normalize_student else "renormalise"
    return EncodedLaws(num_entries * bytes_per_entry, outside, ids_NK, logprobs_NK.log_softmax(1))


def spread_tail(encoded: EncodedLaws, vocabulary_size: int) -> EncodedLaws:
    """The same bytes as a dense law: what is outside the entries, spread evenly over all other tokens.

    As DistillKit's `densify` can do it for its other losses; its floor per token (1e-8) is kept, so the law may exceed 1.
    """
    assert encoded.entry_ids_NK is not None and encoded.entry_logprobs_NK is not None
    num_others = vocabulary_size - encoded.entry_ids_NK.shape[1]
    tail_N = 1 - encoded.entry_logprobs_NK.logsumexp(1).exp()
    others_N = (tail_N / max(num_others, 1)).clamp(min=1e-8).log()
    law_NV = others_N[:, None].repeat(1, vocabulary_size).scatter(1, encoded.entry_ids_NK, encoded.entry_logprobs_NK)
    return replace(encoded, outside="dense reconstruction", law_NV=law_NV)


FORMATS: dict[str, Callable[[Tensor], EncodedLaws]] = {
    "DistillKit recommended": encode_distillkit,
    "DistillKit recommended, symmetric_uniform": lambda laws: encode_distillkit(laws, RECOMMENDED, "ghost token"),
    "DistillKit budget": lambda laws: encode_distillkit(laws, BUDGET),
    "DistillKit budget, symmetric_uniform": lambda laws: encode_distillkit(laws, BUDGET, "ghost token"),
    "Megatron-LM": encode_megatron,
    "Megatron-LM without ghost token": lambda laws: encode_megatron(laws, ghost_token=False),
    "axolotl": encode_axolotl,
    "axolotl, teacher normalised only": lambda laws: encode_axolotl(laws, normalize_student=False),
}


def loss_gradient(encoded: EncodedLaws, logits_NV: Tensor) -> Tensor:
    """dL/dlogits of the format's own loss, summed over tokens, in fp32 as the trainers compute it, [N, V]."""
    leaf_NV = logits_NV.detach().float().requires_grad_()
    (gradient_NV,) = torch.autograd.grad(divergence(encoded, leaf_NV), leaf_NV)
    return gradient_NV


def dense_gradient(logprobs_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """dL/dlogits of the KL to the whole law: student minus teacher, in float64, [N, V]."""
    return logits_NV.double().softmax(1) - logprobs_NV.double().softmax(1)


def relative_error(gradient_NV: Tensor, dense_NV: Tensor) -> float:
    """||g - g_dense||_F / ||g_dense||_F."""
    return float((gradient_NV.double() - dense_NV).norm() / dense_NV.norm())


def divergence(encoded: EncodedLaws, logits_NV: Tensor) -> Tensor:
    """The format's forward KL at temperature 1, summed over tokens."""
    student_NV = logits_NV.log_softmax(1)
    if encoded.outside == "dense reconstruction":
        assert encoded.law_NV is not None
        return torch.nn.functional.kl_div(student_NV, encoded.law_NV, reduction="sum", log_target=True)
    assert encoded.entry_ids_NK is not None and encoded.entry_logprobs_NK is not None
    teacher_NK, student_NK = encoded.entry_logprobs_NK, student_NV.gather(1, encoded.entry_ids_NK)
    if encoded.outside in ("renormalise", "renormalise both"):
        teacher_NK = teacher_NK.log_softmax(1)
    if encoded.outside == "renormalise both":
        student_NK = student_NK.log_softmax(1)
    if encoded.outside == "ghost token":
        teacher_NK = torch.cat([teacher_NK, _ghost(teacher_NK, encoded.smallest_tail, encoded.tail_logprob_N)], dim=1)
        student_NK = torch.cat([student_NK, _ghost(student_NK, encoded.smallest_tail)], dim=1)
    return (teacher_NK.exp() * (teacher_NK - student_NK)).sum()


def _ghost(logprobs_NK: Tensor, smallest_tail: float, stored_N: Tensor | None = None) -> Tensor:
    """Log of what is outside, [N, 1]; where the cut holds, no gradient passes."""
    if stored_N is not None:
        return stored_N[:, None]
    return (1 - logprobs_NK.exp().sum(1, keepdim=True)).clamp(min=smallest_tail).log()
