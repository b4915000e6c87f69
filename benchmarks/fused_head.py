"""Time and memory of the loss on top of the hidden states: the fused head against the plain one and against bare products.

    python -m benchmarks.fused_head [--vocabulary 128256] [--tokens 4096] [--hidden 512] [--dtype fp32] [--rounds 5]

Every variant does a forward and a backward pass to the hidden states and the head on one thread; variants take turns, so that
whatever else the machine does meets all of them. Time is the process's CPU time. Memory is the high-water mark of a forked child
that runs one variant once, above what it held before. Prints Markdown tables of ratios; it judges nothing.
"""

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec

import torch
from torch import Tensor

from components.objectives.fused_head import fused_token_loss
from components.objectives.head import Head, rows_per_chunk, slices
from components.objectives.row_loss import TokenChunk
from components.objectives.sparse_target import TeacherTargets, label_nll, sparse_kl

Inputs = tuple[Tensor, Tensor, Tensor, TeacherTargets]
"""Hidden states [N, H], head [V, H], labels [N], teacher of N tokens."""
NUM_ENTRIES = 32
RATIOS = (
    ("ours CE+KL", "naive CE+KL"),
    ("ours CE", "naive CE"),
    ("ours CE", "three products, chunked"),
    ("ours CE+KL", "three products, chunked"),
    ("ours CE", "three products, whole"),
    ("ours CE+KL", "ours CE"),
    ("ours CE", "torch linear_cross_entropy, same chunk"),
)


def build_inputs(arguments: argparse.Namespace) -> Inputs:
    """Hidden states, head, labels and a teacher of 32 entries whose law is near the student's."""
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    N, V, H = arguments.tokens, arguments.vocabulary, arguments.hidden
    hidden_NH = torch.randn(N, H, dtype=dtype).requires_grad_()
    weight_VH = (torch.randn(V, H, dtype=dtype) * (3 / H**0.5)).requires_grad_()
    buckets_NB = (3 * torch.randn(N, NUM_ENTRIES + 1)).log_softmax(1)
    ids_NK = torch.stack([torch.randperm(V)[:NUM_ENTRIES] for _ in range(N)])
    teacher = TeacherTargets(ids_NK, buckets_NB[:, :-1].contiguous(), buckets_NB[:, -1].contiguous(), torch.zeros(N))
    return hidden_NH, weight_VH, torch.randint(0, V, (N,)), teacher


def build_variants(arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    inputs = build_inputs(arguments)
    hidden_NH, weight_VH, *_ = inputs
    size = rows_per_chunk(len(weight_VH), weight_VH.element_size(), weight_VH.device, None)
    losses = {
        "ours CE": ours(inputs, 0.0),
        "ours CE+KL": ours(inputs, 1.0),
        "naive CE": naive(inputs, 0.0),
        "naive CE+KL": naive(inputs, 1.0),
    }
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        losses["torch linear_cross_entropy, same chunk"] = of_torch(inputs, size)

    def both_passes(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            (loss() / len(hidden_NH)).backward()
            hidden_NH.grad = weight_VH.grad = None

        return run

    return {
        **{name: both_passes(loss) for name, loss in losses.items()},
        "three products, chunked": products(hidden_NH, weight_VH, size),
        "three products, whole": products(hidden_NH, weight_VH, len(hidden_NH)),
    }


def ours(inputs: Inputs, distil: float) -> Callable[[], Tensor]:
    hidden_NH, weight_VH, labels_N, teacher = inputs
    head = Head(weight_VH)

    def weigh(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return torch.ones_like(chunk.nll_C), torch.full_like(chunk.nll_C, distil)

    return lambda: fused_token_loss(hidden_NH, head, labels_N, weigh, teacher=teacher if distil else None).loss_sum


def naive(inputs: Inputs, distil: float) -> Callable[[], Tensor]:
    hidden_NH, weight_VH, labels_N, teacher = inputs

    def loss() -> Tensor:
        logits_NV = (hidden_NH @ weight_VH.T).float()
        nll = label_nll(logits_NV, labels_N).sum()
        return nll + distil * sparse_kl(logits_NV, teacher, 1.0).sum() if distil else nll

    return loss


def of_torch(inputs: Inputs, rows: int) -> Callable[[], Tensor]:
    hidden_NH, weight_VH, labels_N, _ = inputs
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    loss = torch.nn.functional.linear_cross_entropy
    return lambda: loss(hidden_NH, weight_VH, labels_N, reduction="sum", options=options).float()


def products(hidden_NH: Tensor, weight_VH: Tensor, rows: int) -> Callable[[], None]:
    """The same three products, in the same buffers, and nothing else."""

    def run() -> None:
        with torch.no_grad():
            buffer_CV = hidden_NH.new_empty(min(rows, len(hidden_NH)), len(weight_VH))
            hidden_gradient_NH = torch.empty_like(hidden_NH)
            weight_gradient_VH = torch.zeros_like(weight_VH)
            for chunk in slices(0, len(hidden_NH), rows):
                logits_CV = buffer_CV[: chunk.stop - chunk.start]
                torch.mm(hidden_NH[chunk], weight_VH.T, out=logits_CV)
                torch.mm(logits_CV, weight_VH, out=hidden_gradient_NH[chunk])
                weight_gradient_VH.addmm_(logits_CV.T, hidden_NH[chunk])

    return run


def measure_seconds(variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round, in turn; one round before that counts for nothing."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, run in variants.items():
            began = time.process_time()
            run()
            if round_number:
                seconds[name].append(time.process_time() - began)
    return seconds


def measure_extra_bytes(run: Callable[[], None]) -> int:
    """High-water mark of a forked child that runs this once, above its mark before. Linux: the mark is reset through /proc."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with open("/proc/self/clear_refs", "w") as marks:
            marks.write("5")
        before = _resident_peak()
        run()
        os.write(writer, str(_resident_peak() - before).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        return int(answer.read())


def _resident_peak() -> int:
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report_memory(variants: dict[str, Callable[[], None]]) -> dict[str, int]:
    """Each line as soon as it is known: the naive variants take their time."""
    print("| variant | peak extra MiB |\n|---|---|")
    extra = {}
    for name, run in variants.items():
        extra[name] = measure_extra_bytes(run)
        print(f"| {name} | {extra[name] / 2**20:.0f} |", flush=True)
    return extra


def report_seconds(seconds: dict[str, list[float]], extra: dict[str, int]) -> None:
    print("\n| variant | CPU s (min) | CPU s (median) |\n|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {min(times):.2f} | {statistics.median(times):.2f} |")
    print("\n| ratio | time (of minima) | time (median of rounds) | memory |\n|---|---|---|---|")
    for ours, other in RATIOS:
        if ours in seconds and other in seconds:
            by_round = [a / b for a, b in zip(seconds[ours], seconds[other], strict=True)]
            cells = f"{min(seconds[ours]) / min(seconds[other]):.3f} | {statistics.median(by_round):.3f}"
            print(f"| {ours} / {other} | {cells} | {extra[ours] / max(1, extra[other]):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5, help="0: memory alone")
    parser.add_argument("--only", help="comma-separated parts of names: other variants are left out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    variants = build_variants(arguments)
    if arguments.only:
        variants = {name: run for name, run in variants.items() if any(part in name for part in arguments.only.split(","))}
    print(
        f"{date.today()}, torch {torch.__version__}, {platform.machine()}, 1 thread: N={arguments.tokens}, H={arguments.hidden}, "
        f"V={arguments.vocabulary}, {arguments.dtype}, K={NUM_ENTRIES}, {arguments.rounds} rounds\n"
    )
    extra = report_memory(variants)
    if arguments.rounds:
        report_seconds(measure_seconds(variants, arguments.rounds), extra)
    if not (torch.cuda.is_available() and find_spec("liger_kernel")):
        print("\nLiger's fused operators were not measured: they need CUDA and the package liger-kernel.")


if __name__ == "__main__":
    main()
