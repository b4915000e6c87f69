"""Seconds of answering prompts in batches of 16, against one after the other: the same prompts, the same answers.

    python -m benchmarks.generation_rate [--rounds 5] [--batch-size 16] [--data ../shared/data]

Both are `generate_answers` (greedy, with a cache of keys and values); the two take turns within a round, and the ratio is that of
their minima. Goal: at least 4, with identical answers. It judges nothing.

Models: tiny random ones of each architecture, answering 64 drawn prompts, and stories260K with GSM8K where it lies beside
the project.
"""

import argparse
import os
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import transformers

from benchmarks.machine import processor
from components.data.chat_templates import apply_template
from components.evaluation.generation import Answer, generate_answers
from components.evaluation.tasks import read_ood_set
from components.models import build_tiny_model, build_word_tokenizer, load_model, load_tokenizer
from components.params import BaseModelParams

POSITIONS = 256
NUM_PROMPTS = 64
NUM_TOKENS = 48


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    print(
        f"{date.today()}, {processor()}, 1 thread, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{NUM_PROMPTS} prompts, {NUM_TOKENS} new tokens at most, {options.rounds} rounds\n"
    )
    size = options.batch_size
    print(f"| model | batch {size} / batch 1 (of minima) | batch {size} tokens/s | batch 1 tokens/s | same answers |")
    print("|---|---|---|---|---|")
    for name, model, tokenizer, prompts in cases(options.data):
        report(name, *measure(model, tokenizer, prompts, options), options.batch_size)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    return parser.parse_args()


def cases(data: Path) -> Iterator[tuple[str, Any, Any, list[list[int]]]]:
    generator = torch.Generator().manual_seed(0)
    tokenizer = build_word_tokenizer([f"w{number}" for number in range(500)], POSITIONS)
    lengths = torch.randint(8, 64, (NUM_PROMPTS,), generator=generator).tolist()
    drawn = [torch.randint(7, len(tokenizer), (length,), generator=generator).tolist() for length in lengths]
    for architecture in ("llama", "gemma2", "gemma3", "phi3"):
        params = BaseModelParams(architecture=architecture, hidden_size=64, num_layers=2, num_heads=4)
        yield f"{architecture}, 2 layers of 64", build_tiny_model(params, tokenizer, POSITIONS).eval(), tokenizer, drawn
    if (folder := data / "models" / "stories260K").is_dir():
        stories = load_tokenizer(folder)
        apply_template(stories, "plain")
        items = read_ood_set(data / "eval_id" / "gsm8k" / "test.jsonl", stories, 448, NUM_PROMPTS)
        prompts = [item.prompt.input_ids for item in items if item.prompt is not None]
        yield "stories260K, GSM8K", load_model(folder).eval(), stories, prompts


def measure(
    model: Any, tokenizer: Any, prompts: list[list[int]], options: argparse.Namespace
) -> tuple[dict[int, float], int, bool]:
    """Least seconds of each batch size, after one round that counts for nothing; tokens said; whether both say the same."""
    sizes = (options.batch_size, 1)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    answers: dict[int, list[Answer]] = {}
    for number in range(-1, options.rounds):
        for size in sizes[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            answers[size] = generate_answers(
                model, tokenizer, prompts, max_new_tokens=NUM_TOKENS, batch_size=size, name="benchmark"
            )
            if number >= 0:
                seconds[size].append(time.perf_counter() - started)
    said = sum(len(answer.input_ids) for answer in answers[1])
    return {size: min(taken) for size, taken in seconds.items()}, said, answers[1] == answers[options.batch_size]


def report(name: str, seconds: dict[int, float], num_tokens: int, is_same: bool, batch_size: int) -> None:
    rates = f"{num_tokens / seconds[batch_size]:,.0f} | {num_tokens / seconds[1]:,.0f}"
    print(f"| {name} | {seconds[1] / seconds[batch_size]:.1f} | {rates} | {'yes' if is_same else 'NO'} |", flush=True)


if __name__ == "__main__":
    main()
