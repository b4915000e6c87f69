"""Tokens per second of capturing a teacher's laws, against a bare forward of the same model that makes all logits.

    python -m benchmarks.capture_rate [--rounds 7] [--shapes 32000x256x4,128256x512x4] [--model FOLDER] [--dtypes fp32,bf16]

Capturing is the backbone and `reduce_hidden`, of every position that predicts a token of its row or of the last 60 % of them (as
response tokens are); bare is `model(...).logits`, [B, T, V]. Rows of log-normal lengths, in batches of like length. One thread,
process CPU seconds; of each batch all variants take their turn before the next. Goals: ratios >= 0.95. It judges nothing.

Shapes: B rows, T positions, N kept positions, V vocabulary, H hidden width.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.machine import processor
from components.objectives.head import Head
from components.objectives.model_head import head_of
from components.teacher_cache.reduction import ReducedLaws, Scratch, reduce_hidden

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = "32000x256x4,128256x512x4,262144x256x2"
KEPT = {"all rows": 1.0, "last 60 %": 0.6}
Batch = tuple[Tensor, Tensor, Tensor]
"""input_ids, attention_mask and lengths: [B, T], [B, T], [B]."""


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    print(
        f"{date.today()}, {processor()}, 1 thread, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{options.batches} batches of {options.batch_tokens} tokens, K {options.entries}, T {options.temperature}, "
        f"{options.rounds} rounds\n"
    )
    print("| model | dtype | kept | capture / bare (of minima) | (median of rounds) | bare tokens/s |\n|---|---|---|---|---|---|")
    for name, build in models(options).items():
        for dtype in options.dtypes.split(","):
            torch.manual_seed(0)
            model = build().to(DTYPES[dtype]).eval()
            batches = draw_batches(options, model.config.vocab_size)
            report(name, dtype, batches, measure(variants(model, options), batches, options.rounds))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", default=SHAPES, help="random LLaMAs, vocabulary x width x layers; empty: none")
    parser.add_argument("--model", type=Path, help="folder of a real model, measured as well")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--entries", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    return parser.parse_args()


def models(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    shapes = [tuple(int(number) for number in shape.split("x")) for shape in options.shapes.split(",") if shape]
    named: dict[str, Callable[[], Any]] = {
        f"V {V}, H {H}, {L} layers": lambda V=V, H=H, L=L: random_llama(V, H, L) for V, H, L in shapes
    }
    if options.model:
        named[options.model.name] = lambda: AutoModelForCausalLM.from_pretrained(options.model)
    return named


def random_llama(vocabulary: int, width: int, layers: int) -> Any:
    """A head of usual size, so that logits spread by about 3, as a real model's do."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            max_position_embeddings=512,
            pad_token_id=0,
        )
    )
    torch.nn.init.normal_(model.lm_head.weight, std=3 / width**0.5)
    return model


def draw_batches(options: argparse.Namespace, vocabulary: int) -> list[Batch]:
    """Short, middling and long rows: each batch is a bucket of rows of like length."""
    draw = random.Random(0)
    lengths = sorted(min(400, max(8, round(draw.lognormvariate(4.6, 0.6)))) for _ in range(400))
    batches = []
    for number in range(options.batches):
        place = (2 * number + 1) * len(lengths) // (2 * options.batches)
        rows = lengths[max(0, place - options.batch_tokens // lengths[place]) : place]
        lengths_B = torch.tensor(rows)
        attention_BT = (torch.arange(max(rows)) < lengths_B[:, None]).long()
        batches.append((torch.randint(3, vocabulary, attention_BT.shape) * attention_BT, attention_BT, lengths_B))
    return batches


def variants(model: Any, options: argparse.Namespace) -> dict[str, Callable[[Batch], object]]:
    head, scratch = head_of(model), Scratch()
    assert isinstance(head, Head), head

    def bare(batch: Batch) -> Tensor:
        logits_BTV: Tensor = model(input_ids=batch[0], attention_mask=batch[1], use_cache=False).logits
        return logits_BTV

    def capture(share: float) -> Callable[[Batch], ReducedLaws]:
        def run(batch: Batch) -> ReducedLaws:
            input_BT, attention_BT, lengths_B = batch
            hidden_BTH = model.base_model(input_ids=input_BT, attention_mask=attention_BT, use_cache=False).last_hidden_state
            position_T, last_B1 = torch.arange(input_BT.shape[1] - 1), lengths_B[:, None] - 1
            kept_BT = (position_T < last_B1) & (position_T >= (1 - share) * last_B1)
            return reduce_hidden(
                hidden_BTH[:, :-1][kept_BT],
                head,
                input_BT[:, 1:][kept_BT],
                max_entries=options.entries,
                temperature=options.temperature,
                scratch=scratch,
            )

        return run

    return {"bare": bare, **{name: capture(share) for name, share in KEPT.items()}}


@torch.inference_mode()
def measure(runs: dict[str, Callable[[Batch], object]], batches: list[Batch], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant over all batches, per round; one round before that counts for nothing."""
    seconds: dict[str, list[float]] = {name: [0.0] * rounds for name in runs}
    for number in range(-1, rounds):
        for batch in batches:
            for name, run in runs.items():
                began = time.process_time()
                run(batch)
                if number >= 0:
                    seconds[name][number] += time.process_time() - began
    return seconds


def report(name: str, dtype: str, batches: list[Batch], seconds: dict[str, list[float]]) -> None:
    tokens = sum(int(lengths_B.sum()) for _, _, lengths_B in batches)
    bare = seconds["bare"]
    for kept in KEPT:
        by_round = [theirs / ours for ours, theirs in zip(seconds[kept], bare, strict=True)]
        cells = f"{min(bare) / min(seconds[kept]):.3f} | {statistics.median(by_round):.3f} | {tokens / min(bare):.0f}"
        print(f"| {name} | {dtype} | {kept} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
