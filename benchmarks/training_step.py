"""A training step of each preset against a step of plain fine-tuning: same rows, same head, same process, interleaved.

    python -m benchmarks.training_step [--rounds 9] [--vocabulary 32000] [--hidden 256] [--layers 4]

A step is the collator's lookup, forward, loss, backward (no optimiser, which is the same for all) of one micro-batch on a random
LLaMA; the teacher cache is a real one, made first. Times are process CPU seconds of one thread. Goals: uncertainty_aware at most
1.05 x sft (issue), and the peak of memory no larger.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from components.artifacts import fingerprint_row
from components.objectives.presets import PRESETS
from components.params import TrainingParams
from components.teacher_cache.format import CacheIdentity
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.shard_plan import CaptureSettings
from components.teacher_cache.writer import Teacher, write_cache
from components.training.trainer_setup import build_trainer

NAMES = ("sft", "sft_kl", "masked_mle", "uncertainty_aware", "gain_aware", "dft", "eaft")


@dataclass(frozen=True)
class Row:
    input_ids: list[int]
    is_target: list[bool]

    @property
    def fingerprint(self) -> str:
        return fingerprint_row(self.input_ids, self.is_target)


class RandomScores:
    def read(self, fingerprint: str, num_targets: int) -> dict[str, torch.Tensor]:
        return {"reference_nll": torch.rand(num_targets, generator=torch.Generator().manual_seed(int(fingerprint[:8], 16)))}


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = draw_rows(options.rows, options.length, options.vocabulary)
    model = build_model(options)
    with tempfile.TemporaryDirectory() as folder:
        cache = build_cache(Path(folder), model, rows)
        steps = {name: make_step(name, model, rows, cache, Path(folder)) for name in NAMES}
        seconds: dict[str, list[float]] = {name: [] for name in NAMES}
        for number in range(options.rounds + 1):
            for name, step in steps.items():
                taken = cpu_seconds(step)
                if number:  # the first round warms up
                    seconds[name].append(taken)
    tokens = sum(sum(row.is_target) for row in rows)
    print(
        f"{options.rows} rows of {options.length} tokens, {tokens} targets; V {options.vocabulary}, H {options.hidden}, ", end=""
    )
    print(f"{options.layers} layers; torch {torch.__version__}, 1 thread, {options.rounds} rounds")
    for name in NAMES:
        ratios = [ours / plain for ours, plain in zip(seconds[name], seconds["sft"], strict=True)]
        print(
            f"{name:20} min {min(seconds[name]):7.3f} s   / sft: min {min(seconds[name]) / min(seconds['sft']):.3f}, "
            f"median of pairs {statistics.median(ratios):.3f}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 9), ("vocabulary", 32000), ("hidden", 256), ("layers", 4), ("rows", 8), ("length", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def draw_rows(num_rows: int, length: int, vocabulary: int) -> list[Row]:
    """The first quarter of each row is its prompt."""
    draw = random.Random(0)
    return [
        Row([draw.randrange(3, vocabulary) for _ in range(length)], [position >= length // 4 for position in range(length)])
        for _ in range(num_rows)
    ]


def build_model(options: argparse.Namespace) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.hidden,
            intermediate_size=4 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=options.length,
            pad_token_id=0,
        )
    )


def build_cache(folder: Path, model: Any, rows: list[Row]) -> TeacherCacheReader:
    identity = CacheIdentity("m", "t", "c", "d", positions="all")
    teacher = Teacher(lambda: model, model.config.vocab_size)
    write_cache(teacher, rows, identity, CaptureSettings(2048, 1_000_000), target=folder / "cache", work=folder / "work")
    return TeacherCacheReader(folder / "cache", identity)


def make_step(name: str, model: Any, rows: list[Row], cache: TeacherCacheReader, folder: Path) -> Callable[[], None]:
    """One forward and backward of the preset's own trainer."""
    params = TrainingParams(batch_size=len(rows), micro_batch_size=len(rows), num_steps=1)
    device = torch.device("cpu")
    trainer = build_trainer(
        model,
        rows,
        cache,
        PRESETS[name],
        params,
        seed=0,
        device=device,
        pad_token_id=0,
        work=folder / name,
        scores=RandomScores(),
    )
    num_targets = torch.tensor(sum(sum(row.is_target[1:]) for row in rows))

    def step() -> None:
        batch = trainer.data_collator(rows)
        trainer.compute_loss(model, batch, num_items_in_batch=num_targets).backward()
        model.zero_grad()
        trainer.finish_step()

    return step


def cpu_seconds(step: Callable[[], None]) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


if __name__ == "__main__":
    main()
