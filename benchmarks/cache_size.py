"""Bytes per token of the teacher cache and the error of its gradient, beside the formats of others, on the same laws.

    python -m benchmarks.cache_size [--model FOLDER --texts NAME=FILE ...] [--vocabularies 32000,128256,262144] [--tokens 512]

Laws: of a real model on texts (JSON with instruction/input/output, JSON lines with question/answer, plain paragraphs), and
synthetic ones. A synthetic law is a power law of the rank with noise: logit = -exponent * log(rank) + normal(0, 0.5), under a
random order of the tokens; one token in two is sure (exponents 4 to 8), the others range from 1.2 to 3. What they are like is
printed with them.

The error is ||g - g_full|| / ||g_full|| of dKL/dlogits over all tokens, for students near the teacher: its logits plus normal
noise of 0.1 or 0.3, or, for the real model, itself after `--steps` steps of plain fine-tuning on other texts; for that one also
of the gradient of all weights, which is what a training feels. Bytes are those of everything on the disk divided by tokens, index
and manifest included where a real cache is written. It judges nothing.

Shapes: N tokens, V vocabulary, K entries.
"""

import argparse
import copy
import json
import math
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.other_cache_formats import FORMATS, EncodedLaws, dense_gradient, loss_gradient
from benchmarks.training_step import Row
from components.objectives.sparse_target import TeacherTargets, sparse_kl
from components.teacher_cache.encoding import COLUMNS, encode, logprob_of_code, pad_entries
from components.teacher_cache.format import CacheIdentity
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.reduction import reduce_logits
from components.teacher_cache.shard_plan import CaptureSettings
from components.teacher_cache.writer import Teacher, write_cache

MAX_LENGTH = 400
CHUNK = 64
SIDECAR_BYTES = sum(int(dtype[-1]) for dtype in COLUMNS.values())
OURS = {
    "ours (tail <= .03, K <= 64, 12 bits)": (64, 0.03, 12),
    "ours, 16 bits": (64, 0.03, 16),
    "ours, tail <= .1": (64, 0.1, 12),
    "ours, tail <= .01": (64, 0.01, 12),
    "ours, K = 32 for every token": (32, 0.0, 12),
}
Gradient = Callable[[Tensor], Tensor]
"""Student logits [n, V] -> dKL/dlogits [n, V]."""


@dataclass(frozen=True)
class Stored:
    """Laws as a format gives them back: bytes and entries per token, and the gradient of its own loss."""

    bytes_per_token: float
    mean_entries: float
    gradient: Gradient


def store_ours(logits_NV: Tensor, max_entries: int, tail_mass: float, bits: int) -> Stored:
    labels_N = torch.zeros(len(logits_NV), dtype=torch.long)
    tokens = encode(reduce_logits(logits_NV, labels_N, max_entries=max_entries, temperature=1.0), tail_mass, bits)
    num_entries_N = tokens.columns["num_entries"]
    layout = EntryLayout.of(logits_NV.shape[1], bits)
    entries = pad_entries(tokens.entry_ids_M, logprob_of_code(bits)[tokens.entry_codes_M], num_entries_N)
    teacher = TeacherTargets(
        entries[0].long(),
        entries[1],
        torch.from_numpy(tokens.columns["tail_logprob"].astype("float32")),
        torch.zeros(len(logits_NV)),
    )

    def gradient(student_NV: Tensor) -> Tensor:
        leaf_NV = student_NV.detach().float().requires_grad_()
        return torch.autograd.grad(sparse_kl(leaf_NV, teacher, 1.0).sum(), leaf_NV)[0]

    total = int(num_entries_N.sum())
    return Stored(SIDECAR_BYTES + layout.num_bytes(total) / len(logits_NV), total / len(logits_NV), gradient)


def store_others(logits_NV: Tensor, format_of: Callable[[Tensor], EncodedLaws]) -> Stored:
    encoded = format_of(logits_NV.log_softmax(1))
    width = 0 if encoded.entry_ids_NK is None else encoded.entry_ids_NK.shape[1]
    return Stored(encoded.bytes_per_token, width, lambda student_NV: loss_gradient(encoded, student_NV))


@dataclass
class Tally:
    """Sums over chunks of tokens."""

    num_tokens: int = 0
    num_bytes: float = 0.0
    num_entries: float = 0.0
    at_equality: float = 0.0


def compare(title: str, chunks: Iterator[tuple[Tensor, dict[str, Tensor]]]) -> None:
    """One table: every format on the same laws, chunk by chunk."""
    formats: dict[str, Callable[[Tensor], Stored]] = {
        name: lambda laws, setting=setting: store_ours(laws, *setting) for name, setting in OURS.items()
    }
    formats |= {name: lambda laws, f=format_of: store_others(laws, f) for name, format_of in FORMATS.items()}
    tallies = {name: Tally() for name in formats}
    squares: dict[tuple[str, str], list[float]] = {}
    facts: list[Tensor] = []
    for teacher_NV, students in chunks:
        law_NV = teacher_NV.double().softmax(1)
        facts.append(torch.stack([torch.special.entr(law_NV).sum(1), law_NV.amax(1)]))
        for name, store in formats.items():
            try:
                stored = store(teacher_NV)
            except ValueError as error:  # a format that cannot hold this vocabulary
                tallies[name].num_bytes = math.nan
                print(f"<!-- {name}: {error} -->")
                continue
            _add(tallies[name], stored, teacher_NV)
            for student, student_NV in students.items():
                dense_NV = dense_gradient(teacher_NV, student_NV)
                gap_NV = stored.gradient(student_NV).double() - dense_NV
                sums = squares.setdefault((name, student), [0.0, 0.0])
                sums[0] += float(gap_NV.square().sum())
                sums[1] += float(dense_NV.square().sum())
    _print(title, tallies, squares, torch.cat(facts, dim=1))


def _add(tally: Tally, stored: Stored, teacher_NV: Tensor) -> None:
    tally.num_tokens += len(teacher_NV)
    tally.num_bytes += stored.bytes_per_token * len(teacher_NV)
    tally.num_entries += stored.mean_entries * len(teacher_NV)
    tally.at_equality += float(stored.gradient(teacher_NV).norm(dim=1).sum())


def _print(title: str, tallies: dict[str, Tally], squares: dict[tuple[str, str], list[float]], facts_2N: Tensor) -> None:
    students = list(dict.fromkeys(student for _, student in squares))
    entropy_N, top_N = facts_2N
    print(
        f"\n{title}: {facts_2N.shape[1]} tokens, entropy {entropy_N.mean():.2f} nats (median {entropy_N.median():.2f}), "
        f"most likely token {top_N.mean():.2f}\n"
    )
    print(f"| format | entries | bytes/token | {' | '.join(students)} | at equality |\n|---|---|---|{'---|' * len(students)}---|")
    for name, tally in tallies.items():
        if not tally.num_tokens:
            print(f"| {name} | cannot hold it |")
            continue
        errors = [math.sqrt(squares[name, student][0] / squares[name, student][1]) for student in students]
        print(
            f"| {name} | {tally.num_entries / tally.num_tokens:.1f} | {tally.num_bytes / tally.num_tokens:.0f} | "
            f"{' | '.join(f'{error:.4f}' for error in errors)} | {tally.at_equality / tally.num_tokens:.1e} |"
        )


def synthetic(vocabulary_size: int, num_tokens: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    draw = torch.Generator().manual_seed(vocabulary_size)
    ranks_V = torch.arange(1, vocabulary_size + 1).float().log()
    for _ in range(num_tokens // CHUNK):
        sure = torch.rand(CHUNK, 1, generator=draw) < 0.5
        exponents = torch.where(
            sure, 4 + 4 * torch.rand(CHUNK, 1, generator=draw), 1.2 + 1.8 * torch.rand(CHUNK, 1, generator=draw)
        )
        logits_NV = -exponents * ranks_V + 0.5 * torch.randn(CHUNK, vocabulary_size, generator=draw)
        order_NV = torch.rand(CHUNK, vocabulary_size, generator=draw).argsort(1)
        teacher_NV = logits_NV.gather(1, order_NV)
        noise_NV = torch.randn(CHUNK, vocabulary_size, generator=draw)
        yield teacher_NV, {"noise 0.1": teacher_NV + 0.1 * noise_NV, "noise 0.3": teacher_NV + 0.3 * noise_NV}


def read_texts(file: Path, limit: int) -> list[str]:
    if file.suffix == ".json":
        return ["\n".join(str(value) for value in row.values() if value) for row in json.loads(file.read_text())[:limit]]
    if file.suffix == ".jsonl":
        return ["\n".join(json.loads(line).values()) for line in file.read_text().splitlines()[:limit]]
    return [part for part in file.read_text().split("\n\n") if len(part) > 60][:limit]


def of_model(teacher: nn.Module, student: nn.Module, rows: Sequence[Row]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    for row in rows:
        input_ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            teacher_NV, student_NV = (model(input_ids=input_ids).logits[0, :-1] for model in (teacher, student))
        noise_NV = torch.randn(teacher_NV.shape, generator=draw)
        noisy = {f"noise {size}": teacher_NV + size * noise_NV for size in (0.1, 0.3)}
        yield teacher_NV, {"fine-tuned": student_NV, **noisy}


def weight_error(teacher: nn.Module, student: nn.Module, rows: Sequence[Row]) -> float:
    """Relative error of the gradient of all weights, summed over all rows, with our default settings."""
    sums: list[Tensor] = []
    for of_dense in (True, False):
        student.zero_grad()
        for row in rows:
            input_ids = torch.tensor([row.input_ids])
            with torch.no_grad():
                teacher_NV = teacher(input_ids=input_ids).logits[0, :-1]
            student_NV = student(input_ids=input_ids).logits[0, :-1]
            ours = store_ours(teacher_NV, 64, 0.03, 12)
            gradient_NV = dense_gradient(teacher_NV, student_NV) if of_dense else ours.gradient(student_NV)
            student_NV.backward(gradient_NV.detach().float())
        sums.append(torch.cat([weight.grad.flatten() for weight in student.parameters() if weight.grad is not None]))
    return float((sums[1] - sums[0]).norm() / sums[0].norm())


def bytes_on_disk(teacher: Any, rows: Sequence[Row]) -> float:
    """Of a real cache of these rows: shards, index and manifest over tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "cache"
        identity = CacheIdentity("m", "t", "c", "d", positions="all")
        settings = CaptureSettings(4096, 1_000_000)
        teacher_of = Teacher(lambda: teacher, teacher.config.vocab_size)
        manifest = write_cache(teacher_of, rows, identity, settings, target=target, work=Path(scratch) / "work")
        assert manifest is not None
        return sum(file.stat().st_size for file in target.iterdir()) / manifest.num_tokens


def fine_tune(model: Any, rows: Sequence[Row], num_steps: int) -> Any:
    student = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    for step in range(num_steps):
        input_ids = torch.tensor([rows[step % len(rows)].input_ids])
        student(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student.eval()


def measure_model(folder: Path, texts: dict[str, Path], num_rows: int, num_steps: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    by_name = {}
    for name, file in texts.items():
        ids = [tokenizer(text).input_ids[:MAX_LENGTH] for text in read_texts(file, 2 * num_rows)]
        by_name[name] = [Row(row, [index > 0 for index in range(len(row))]) for row in ids if len(row) > 1]
    first = next(iter(by_name.values()))
    student = fine_tune(model, first[num_rows:], num_steps)
    for name, rows in by_name.items():
        compare(f"{folder.name} on {name}", of_model(model, student, rows[:num_rows]))
        print(
            f"\nA real cache of these rows: {bytes_on_disk(model, rows[:num_rows]):.1f} bytes/token with index and manifest; "
            f"error of the gradient of all weights, fine-tuned student: {weight_error(model, student, rows[:num_rows]):.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--texts", nargs="*", default=[], help="NAME=FILE; the student is fine-tuned on other rows of the first")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--vocabularies", default="32000,128256,262144")
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}")
    if options.model:
        texts = {name: Path(file) for name, _, file in (text.partition("=") for text in options.texts)}
        measure_model(options.model, texts, options.rows, options.steps)
    for vocabulary_size in (int(word) for word in options.vocabularies.split(",") if word):
        compare(f"synthetic laws, V = {vocabulary_size:,}", synthetic(vocabulary_size, options.tokens))


if __name__ == "__main__":
    main()
