"""Laws of the fused head: it is the naive loss, in value and gradient, for every head, teacher, chunk size and dtype."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.objectives.fused_head import FusedLoss, fused_token_loss, head_statistics
from components.objectives.head import Head, naive_logits
from components.objectives.labels import IGNORED_LABEL
from components.objectives.naive_loss import naive_token_loss
from components.objectives.objective import Divergence, EntropyKind
from components.objectives.row_loss import DenseTeacher, LossSpec, TokenChunk
from components.objectives.sparse_target import TeacherTargets
from components.uncertainty.scores import token_entropy, top_entropy

N, V, H = 37, 101, 8
EVERY_K = [1, 5, V - 1, V]
DIVERGENCES: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "jsd", "skew")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def top_of(logits_NV: Tensor, num_entries: int, temperature: float = 1.0) -> TeacherTargets:
    """A cache without rounding."""
    logprobs_NV = (logits_NV / temperature).log_softmax(1)
    values_NK, ids_NK = logprobs_NV.topk(num_entries, dim=1)
    tail_N = logprobs_NV.scatter(1, ids_NK, float("-inf")).logsumexp(1)
    return TeacherTargets(ids_NK, values_NK, tail_N, torch.zeros(len(logits_NV)))


def labels(num_tokens: int = N, num_columns: int = V) -> Tensor:
    labels_N = torch.randint(0, num_columns, (num_tokens,), generator=torch.Generator().manual_seed(7))
    labels_N[3::11] = IGNORED_LABEL
    return labels_N


def fixed_weights(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
    """Weights of every kind: both, one alone, none."""
    place_C = torch.arange(chunk.rows.start, chunk.rows.stop, device=chunk.nll_C.device)
    return (place_C % 3) * 0.7, (place_C % 4) * 0.5


def selected_or_pulled(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
    """The mask of the default objective, with a threshold: likelihood above, distillation below."""
    selected_C = chunk.nll_C >= 4.0
    return selected_C, ~selected_C


@dataclass(frozen=True)
class Case:
    """A head and the tensors that it is made of, in float64."""

    bias: bool = False
    softcap: float | None = None
    scale: float = 1.0
    num_valid: int | None = None

    def head(self, weight_VH: Tensor, bias_V: Tensor | None) -> Head:
        return Head(weight_VH, bias_V if self.bias else None, self.softcap, self.scale, self.num_valid)


CASES = {
    "plain": Case(),
    "bias": Case(bias=True),
    "softcap": Case(softcap=3.0),
    "scale": Case(scale=0.3),
    "padded": Case(num_valid=97),
    "all": Case(bias=True, softcap=3.0, scale=0.7, num_valid=97),
}


def leaves(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return (
        [normal(N, H, seed=1), normal(V, H, seed=2), normal(V, seed=3)]
        if dtype == torch.float64
        else [leaf.to(dtype) for leaf in leaves()]
    )


def run(
    case: Case, dtype: torch.dtype, spec: LossSpec, *, fused: bool, chunk_bytes: int | None = None
) -> tuple[FusedLoss, list[Tensor]]:
    """The loss and its gradients through hidden states, head and bias."""
    tensors = [leaf.requires_grad_() for leaf in leaves(dtype)]
    hidden_NH, head = tensors[0], case.head(tensors[1], tensors[2])
    if fused:
        knobs = {name: getattr(spec, name) for name in ("teacher", "temperature", "divergence", "entropy")}
        loss = fused_token_loss(hidden_NH, head, spec.labels_N, spec.weigh, chunk_bytes=chunk_bytes, **knobs)
    else:
        loss = naive_token_loss(naive_logits(head, hidden_NH), spec)
    (0.37 * loss.loss_sum).backward()
    return loss, [leaf.grad for leaf in tensors[: 3 if case.bias else 2] if leaf.grad is not None]


def assert_equal_losses(ours: FusedLoss, theirs: FusedLoss, tolerance: float) -> None:
    for name, value in vars(theirs).items():
        if value is not None:
            torch.testing.assert_close(getattr(ours, name).double(), value.double(), rtol=tolerance, atol=tolerance, msg=name)


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact.double()).norm() / exact.double().norm().clamp(min=1e-30))


def spec_of(case: Case, teacher: str, temperature: float = 1.0, **knobs: Any) -> LossSpec:
    columns = case.num_valid or V
    held: dict[str, Callable[[], Any]] = {
        "none": lambda: None,
        "sparse": lambda: top_of(3 * normal(N, columns, seed=9), 5, temperature),
        "dense": lambda: DenseTeacher(normal(N, 4, seed=5), Head(normal(columns, 4, seed=6), softcap=4.0, scale=1.5)),
    }
    knobs.setdefault("weigh", fixed_weights)
    return LossSpec(labels(N, columns), teacher=held[teacher](), temperature=temperature, **knobs)


def as_dtype(spec: LossSpec, dtype: torch.dtype) -> LossSpec:
    teacher = spec.teacher
    if isinstance(teacher, DenseTeacher):
        teacher = DenseTeacher(teacher.hidden_NH.to(dtype), replace(teacher.head, weight_VH=teacher.head.weight_VH.to(dtype)))
    return replace(spec, teacher=teacher)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("teacher", ["none", "sparse", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_fused_is_naive_in_value_and_gradient(case: str, teacher: str, temperature: float) -> None:
    spec = spec_of(CASES[case], teacher, temperature, entropy="full")
    naive, exact = run(CASES[case], torch.float64, spec, fused=False)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours, gradients = run(CASES[case], dtype, as_dtype(spec, dtype), fused=True, chunk_bytes=10 * V * dtype.itemsize)
        assert_equal_losses(ours, naive, tolerance)
        assert len(gradients) == len(exact)
        for gradient, expected in zip(gradients, exact, strict=True):
            assert gradient.dtype == dtype and relative_error(gradient, expected) <= tolerance


@pytest.mark.parametrize("teacher", ["none", "sparse"])
def test_gradcheck(teacher: str) -> None:
    case = CASES["all"]
    spec = spec_of(case, teacher, 1.5 if teacher == "sparse" else 1.0)

    def loss(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Tensor:
        return fused_token_loss(
            hidden_NH,
            case.head(weight_VH, bias_V),
            spec.labels_N,
            spec.weigh,
            teacher=spec.teacher,
            temperature=spec.temperature,
            chunk_bytes=9000,
        ).loss_sum

    assert torch.autograd.gradcheck(loss, [leaf.requires_grad_() for leaf in leaves()])


@pytest.mark.parametrize("teacher", ["none", "sparse", "dense"])
@pytest.mark.parametrize("case", ["plain", "all"])
def test_in_bf16_the_error_is_no_larger_than_that_of_the_naive_loss_in_bf16(case: str, teacher: str) -> None:
    exact_spec = spec_of(CASES[case], teacher)
    low_spec = as_dtype(exact_spec, torch.bfloat16)
    _, exact = run(CASES[case], torch.float64, exact_spec, fused=False)
    naive, naive_gradients = run(CASES[case], torch.bfloat16, low_spec, fused=False)
    ours, gradients = run(CASES[case], torch.bfloat16, low_spec, fused=True, chunk_bytes=8 * V * 2)
    assert ours.loss_sum.dtype == ours.nll_N.dtype == torch.float32
    for gradient, theirs, expected in zip(gradients, naive_gradients, exact, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert relative_error(gradient, expected) <= 1.2 * relative_error(theirs, expected)
    assert relative_error(ours.nll_N, naive.nll_N) <= 0.02


def test_under_autocast_weights_stay_in_fp32_and_so_does_their_gradient() -> None:
    tensors = [leaf.float().requires_grad_() for leaf in leaves()]
    spec = spec_of(CASES["plain"], "sparse")
    with torch.autocast("cpu", torch.bfloat16):
        ours = fused_token_loss(tensors[0], Head(tensors[1]), spec.labels_N, spec.weigh, teacher=spec.teacher)
    ours.loss_sum.backward()
    _, exact = run(CASES["plain"], torch.float64, spec, fused=False)
    for leaf, expected in zip(tensors, exact, strict=False):
        assert leaf.grad is not None and leaf.grad.dtype == torch.float32
        assert relative_error(leaf.grad, 1 / 0.37 * expected) <= 0.02


@pytest.mark.parametrize("teacher", ["none", "sparse", "dense"])
def test_every_chunk_and_block_size_gives_the_same(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(CASES["all"], teacher, weigh=selected_or_pulled, entropy="top20")
    whole, expected = run(CASES["all"], torch.float64, spec, fused=True)
    for rows, block_rows in ((1, 1), (2, 5), (7, 3), (N - 1, 4), (N, 1), (2 * N, 10), (N, 100)):
        monkeypatch.setattr("components.objectives.head.BLOCK_BYTES", {"cpu": block_rows * 97 * 4})
        ours, gradients = run(CASES["all"], torch.float64, spec, fused=True, chunk_bytes=rows * 97 * 8)
        assert_equal_losses(ours, whole, 1e-12)
        torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("num_entries", EVERY_K)
def test_a_student_equal_to_its_teacher_pays_nothing_and_feels_nothing(num_entries: int, temperature: float) -> None:
    hidden_NH, weight_VH = (leaf.float().requires_grad_() for leaf in leaves()[:2])
    teacher = top_of((hidden_NH @ weight_VH.T).detach(), num_entries, temperature)
    ours = fused_token_loss(
        hidden_NH,
        Head(weight_VH),
        labels(),
        lambda chunk: (torch.zeros_like(chunk.nll_C), torch.ones_like(chunk.nll_C)),
        teacher=teacher,
        temperature=temperature,
    )
    assert float(ours.kl_N.abs().max()) <= 1e-6 * temperature**2
    for gradient in torch.autograd.grad(ours.loss_sum, [hidden_NH, weight_VH]):
        assert float(gradient.abs().max()) <= 2e-5 * temperature


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_equal_to_its_dense_teacher_pays_nothing_whatever_the_divergence(name: Divergence) -> None:
    hidden_NH, weight_VH = (leaf.float().requires_grad_() for leaf in leaves()[:2])
    teacher = DenseTeacher(hidden_NH.detach().clone(), Head(weight_VH.detach().clone()))
    ours = fused_token_loss(hidden_NH, Head(weight_VH), labels(), fixed_weights, teacher=teacher, divergence=name)
    assert float(ours.kl_N.abs().max()) <= 1e-6
    alone = fused_token_loss(hidden_NH, Head(weight_VH), labels(), fixed_weights)
    for both, likelihood in zip(
        torch.autograd.grad(ours.loss_sum, [hidden_NH, weight_VH]),
        torch.autograd.grad(alone.loss_sum, [hidden_NH, weight_VH]),
        strict=True,
    ):
        torch.testing.assert_close(both, likelihood, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_all_entries_are_the_dense_teacher(temperature: float) -> None:
    teacher = DenseTeacher(normal(N, 4, seed=5), Head(normal(V, 4, seed=6)))
    every = top_of(naive_logits(teacher.head, teacher.hidden_NH), V, temperature)
    assert torch.isinf(every.tail_logprob_N).all()
    results = [
        run(CASES["plain"], torch.float64, LossSpec(labels(), fixed_weights, held, temperature), fused=True)
        for held in (every, teacher)
    ]
    assert_equal_losses(results[0][0], results[1][0], 1e-10)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_is_naive_in_value_and_gradient(name: Divergence, temperature: float) -> None:
    spec = spec_of(CASES["all"], "dense", temperature, divergence=name, weigh=selected_or_pulled)
    naive, exact = run(CASES["all"], torch.float64, spec, fused=False)
    ours, gradients = run(CASES["all"], torch.float64, spec, fused=True, chunk_bytes=9000)
    assert_equal_losses(ours, naive, 1e-12)
    torch.testing.assert_close(gradients, exact, rtol=1e-10, atol=1e-12)


def test_a_divergence_of_full_laws_refuses_a_sparse_teacher() -> None:
    with pytest.raises(AssertionError, match="reverse_kl needs the teacher's full law"):
        spec_of(CASES["plain"], "sparse", divergence="reverse_kl")


def test_a_teacher_that_gives_its_tail_nothing_is_heard() -> None:
    """p_tail = 0 with K < V: the student's tail has mass to lose, and its gradient is plain q."""
    sure_NV = torch.full((N, V), -1e4, dtype=torch.float64)
    sure_NV[:, :3] = normal(N, 3)
    spec = LossSpec(labels(), fixed_weights, top_of(sure_NV, 3))
    assert isinstance(spec.teacher, TeacherTargets)
    spec = replace(spec, teacher=replace(spec.teacher, tail_logprob_N=torch.full((N,), float("-inf"), dtype=torch.float64)))
    naive, exact = run(CASES["plain"], torch.float64, spec, fused=False)
    ours, gradients = run(CASES["plain"], torch.float64, spec, fused=True)
    assert torch.isfinite(ours.loss_sum)
    assert_equal_losses(ours, naive, 1e-12)
    torch.testing.assert_close(gradients, exact, rtol=1e-10, atol=1e-12)


def test_a_very_wrong_student_stays_finite() -> None:
    """The student's tail underflows where the teacher's holds most: nothing is divided by it, nothing subtracted from one."""
    weight_VH = normal(V, H, seed=2, dtype=torch.float32)
    hidden_NH = (200 * normal(N, H, seed=1, dtype=torch.float32)).requires_grad_()
    worst_NV = -naive_logits(Head(weight_VH), hidden_NH.detach())
    for num_entries in EVERY_K:
        teacher = top_of(worst_NV, num_entries)
        ours = fused_token_loss(hidden_NH, Head(weight_VH), labels(), fixed_weights, teacher=teacher, entropy="full")
        (gradient,) = torch.autograd.grad(ours.loss_sum, hidden_NH)
        assert ours.entropy_N is not None and torch.isfinite(ours.entropy_N).all()
        assert torch.isfinite(ours.kl_N).all() and torch.isfinite(gradient).all() and float(ours.kl_N.max()) > 100


def test_a_token_without_a_label_has_no_likelihood_and_is_still_distilled() -> None:
    spec = spec_of(CASES["plain"], "sparse", weigh=lambda chunk: (torch.ones_like(chunk.nll_C), torch.ones_like(chunk.nll_C)))
    ours, gradients = run(CASES["plain"], torch.float64, spec, fused=True)
    ignored_N = spec.labels_N == IGNORED_LABEL
    assert ignored_N.any() and not ours.nll_N[ignored_N].any() and not ours.mle_weight_N[ignored_N].any()
    assert (ours.kl_N[ignored_N] > 0).all() and (gradients[0][ignored_N].abs().sum(1) > 0).all()
    _, gradients = run(CASES["plain"], torch.float64, replace(spec, teacher=None), fused=True)
    assert not gradients[0][ignored_N].any() and (gradients[0][~ignored_N].abs().sum(1) > 0).all()


def test_weigh_sees_each_token_once_in_order_with_its_loss_and_entropy_and_decides_without_a_gradient_of_its_own() -> None:
    seen: list[TokenChunk] = []

    def weigh(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        seen.append(chunk)
        return torch.exp(-chunk.nll_C), torch.zeros_like(chunk.nll_C)

    spec = spec_of(CASES["all"], "none", weigh=weigh, entropy="full")
    ours, gradients = run(CASES["all"], torch.float64, spec, fused=True, chunk_bytes=9000)
    rows = [row for chunk in seen for row in range(chunk.rows.start, chunk.rows.stop)]
    assert rows == list(range(N)) and len(seen) > 1
    assert torch.equal(torch.cat([chunk.nll_C for chunk in seen]), ours.nll_N)
    assert ours.entropy_N is not None
    assert torch.equal(torch.cat([chunk.entropy_C for chunk in seen if chunk.entropy_C is not None]), ours.entropy_N)
    _, exact = run(CASES["all"], torch.float64, spec, fused=False)
    torch.testing.assert_close(gradients, exact, rtol=1e-10, atol=1e-12)


def test_statistics_are_those_of_the_loss_and_carry_no_graph() -> None:
    case = CASES["all"]
    hidden_NH, weight_VH, bias_V = (leaf.requires_grad_() for leaf in leaves())
    logprobs_NV = naive_logits(case.head(weight_VH, bias_V), hidden_NH).log_softmax(1).detach()
    kinds: dict[EntropyKind, Tensor] = {"full": token_entropy(logprobs_NV), "top20": top_entropy(logprobs_NV, 20)}
    for kind, expected in kinds.items():
        found = head_statistics(hidden_NH, case.head(weight_VH, bias_V), labels(N, 97), entropy=kind, chunk_bytes=9000)
        naive = torch.nn.functional.cross_entropy(logprobs_NV, labels(N, 97), reduction="none")
        torch.testing.assert_close(found.nll_N, naive)
        torch.testing.assert_close(found.entropy_N, expected)
        assert not found.nll_N.requires_grad


def test_a_tied_head_gets_both_gradients() -> None:
    ids_N = labels().clamp(min=0)

    def gradient(fused: bool) -> Tensor:
        weight_VH = normal(V, H, seed=2).requires_grad_()
        hidden_NH = torch.tanh(weight_VH[ids_N])
        spec = spec_of(CASES["plain"], "sparse")
        loss = (
            fused_token_loss(hidden_NH, Head(weight_VH), spec.labels_N, spec.weigh, teacher=spec.teacher)
            if fused
            else naive_token_loss(naive_logits(Head(weight_VH), hidden_NH), spec)
        )
        return torch.autograd.grad(loss.loss_sum, weight_VH)[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", ["head", "hidden", "both"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen: str) -> None:
    hidden_NH, weight_VH = leaves()[:2]
    hidden_NH.requires_grad_(frozen == "head")
    weight_VH.requires_grad_(frozen == "hidden")
    loss = fused_token_loss(hidden_NH, Head(weight_VH), labels(), fixed_weights).loss_sum
    if frozen == "both":
        assert not loss.requires_grad
        return
    loss.backward()
    trained, other = (hidden_NH, weight_VH) if frozen == "head" else (weight_VH, hidden_NH)
    _, exact = run(CASES["plain"], torch.float64, LossSpec(labels(), fixed_weights), fused=True)
    torch.testing.assert_close(trained.grad, exact[0 if frozen == "head" else 1] / 0.37)
    assert other.grad is None


def test_no_tokens_are_a_zero_with_a_graph() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        hidden_NH, weight_VH = torch.zeros(0, H, dtype=dtype).requires_grad_(), normal(V, H).to(dtype).requires_grad_()
        none = torch.zeros(0, dtype=torch.long)
        for teacher in (None, top_of(torch.zeros(0, V), 5), DenseTeacher(hidden_NH.detach(), Head(weight_VH.detach()))):
            ours = fused_token_loss(hidden_NH, Head(weight_VH), none, fixed_weights, teacher=teacher, entropy="full")
            hidden_gradient, weight_gradient = torch.autograd.grad(ours.loss_sum, [hidden_NH, weight_VH])
            assert float(ours.loss_sum.detach()) == 0 and ours.nll_N.shape == (0,)
            assert hidden_gradient.shape == (0, H) and not weight_gradient.any()


def test_backward_twice_needs_a_retained_graph_and_then_gives_the_same_at_any_scale() -> None:
    hidden_NH, weight_VH = (leaf.requires_grad_() for leaf in leaves()[:2])
    loss = fused_token_loss(hidden_NH, Head(weight_VH), labels(), fixed_weights).loss_sum
    first = torch.autograd.grad(loss, [hidden_NH, weight_VH], retain_graph=True)
    tripled = torch.autograd.grad(3 * loss, [hidden_NH, weight_VH], retain_graph=True)
    last = torch.autograd.grad(loss, [hidden_NH, weight_VH])
    torch.testing.assert_close(last, first, rtol=0, atol=0)
    torch.testing.assert_close(tripled, tuple(3 * gradient for gradient in first))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, [hidden_NH, weight_VH])


def test_a_gradient_of_the_gradient_is_refused() -> None:
    hidden_NH = leaves()[0].requires_grad_()
    loss = fused_token_loss(hidden_NH, Head(leaves()[1]), labels(), fixed_weights).loss_sum
    (gradient,) = torch.autograd.grad(loss * hidden_NH.sum(), hidden_NH, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes() // value.element_size())
        return result


@pytest.mark.parametrize("teacher", ["none", "sparse", "dense"])
def test_no_operation_ever_makes_more_than_a_chunk_of_logits(teacher: str) -> None:
    rows = 16
    tensors = [normal(300, H, seed=1).requires_grad_(), normal(V, H, seed=2).requires_grad_()]
    held = {
        "none": None,
        "sparse": top_of(normal(300, V, seed=9), 5, 2.0),
        "dense": DenseTeacher(normal(300, 4, seed=5), Head(normal(V, 4, seed=6))),
    }[teacher]
    with LargestTensor() as watch:
        loss = fused_token_loss(
            tensors[0],
            Head(tensors[1], softcap=5.0),
            labels(300),
            fixed_weights,
            teacher=held,
            temperature=2.0,
            entropy="full",
            chunk_bytes=rows * V * 8,
        ).loss_sum
        loss.backward()
    assert watch.largest == max(rows * V, 300 * H)
    with LargestTensor() as watch:
        naive_logits(Head(tensors[1]), tensors[0])
    assert watch.largest == 300 * V, "the watch must see what it is there to refuse"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("teacher", ["none", "sparse", "dense"])
def test_on_a_gpu_it_is_the_loss_of_the_cpu(teacher: str) -> None:
    """To rounding in fp64, to three per cent in bf16 (which takes the path of products with an fp32 result)."""
    spec = spec_of(CASES["all"], teacher, 2.0)
    _, exact = run(CASES["all"], torch.float64, spec, fused=False)
    for dtype in (torch.float64, torch.bfloat16):
        held = as_dtype(spec, dtype).teacher
        if isinstance(held, TeacherTargets):
            held = TeacherTargets(*(column.cuda() for column in vars(held).values()))
        if isinstance(held, DenseTeacher):
            held = DenseTeacher(held.hidden_NH.cuda(), replace(held.head, weight_VH=held.head.weight_VH.cuda()))
        tensors = [leaf.to("cuda", dtype).requires_grad_() for leaf in leaves()]
        loss = fused_token_loss(
            tensors[0],
            CASES["all"].head(tensors[1], tensors[2]),
            spec.labels_N.cuda(),
            fixed_weights,
            teacher=held,
            temperature=2.0,
            chunk_bytes=9000,
        )
        (0.37 * loss.loss_sum).backward()
        for leaf, expected in zip(tensors, exact, strict=True):
            assert leaf.grad is not None
            assert relative_error(leaf.grad.cpu(), expected) <= (1e-10 if dtype == torch.float64 else 0.03)
