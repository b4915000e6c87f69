"""The whole capture, from rows to a published cache, against a bare forward pass of the same model over the same batches.

    python -m benchmarks.capture_stage [--rounds 5] [--model FOLDER --text FILE] [--vocabulary 32000 --hidden 256 --layers 4]

Capture is `write_cache` into a fresh folder: planning, forward, reduction, encoding (on its own thread), writing, checksums,
publication. Bare is `model(...).logits` over the batches that it plans. Wall seconds, the two interleaved; one torch thread, so
that a second core is there for the encoding, as the processor is beside a GPU. Rows of log-normal lengths, all positions or the
last 60 %. With --model and --text: a real model on real rows. It judges nothing.
"""

import argparse
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.cache_size import MAX_LENGTH, read_texts
from benchmarks.training_step import Row
from components.teacher_cache.capture import pad_kept
from components.teacher_cache.format import CacheIdentity
from components.teacher_cache.shard_plan import CaptureSettings, distinct_rows, plan_batches
from components.teacher_cache.writer import Teacher, write_cache

BATCH_TOKENS = 4096


def random_llama(options: argparse.Namespace) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": options.vocabulary, "hidden_size": options.hidden, "num_hidden_layers": options.layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 4 * options.hidden}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.3, max_position_embeddings=MAX_LENGTH))


def draw_rows(options: argparse.Namespace, kept: float) -> list[Row]:
    draw = random.Random(0)
    lengths = [min(MAX_LENGTH, max(8, int(draw.lognormvariate(4.6, 0.6)))) for _ in range(options.rows)]
    ids = [[draw.randrange(4, options.vocabulary) for _ in range(length)] for length in lengths]
    return [_row(row, kept) for row in ids]


def _row(ids: list[int], kept: float) -> Row:
    return Row(ids, [position >= (1 - kept) * len(ids) and position > 0 for position in range(len(ids))])


def real_rows(options: argparse.Namespace, kept: float) -> list[Row]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = [tokenizer(text).input_ids[:MAX_LENGTH] for text in read_texts(options.text, options.rows)]
    return [_row(row, kept) for row in ids if len(row) > 1]


@torch.no_grad()
def bare(model: Any, rows: Sequence[Row]) -> float:
    started = time.perf_counter()
    planned = list(distinct_rows(rows, "all").values())
    for batch in plan_batches(planned, BATCH_TOKENS):
        input_BT, is_present_BT, _ = pad_kept([rows[planned[place].place] for place in batch], "all")
        logits_BTV = model(input_ids=input_BT, attention_mask=is_present_BT.long(), use_cache=False).logits
        assert logits_BTV.shape[:2] == input_BT.shape
    return time.perf_counter() - started


def capture(model: Any, rows: Sequence[Row]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_cache(
            Teacher(lambda: model, model.config.vocab_size),
            rows,
            CacheIdentity("m", "t", "c", "d"),
            CaptureSettings(BATCH_TOKENS, 1_000_000),
            target=Path(folder) / "cache",
            work=Path(folder) / "work",
        )
        return time.perf_counter() - started


def measure(title: str, model: Any, rows: Sequence[Row], rounds: int) -> None:
    num_tokens = sum(len(row.input_ids) for row in rows)
    seconds: dict[str, list[float]] = {"bare": [], "capture": []}
    for number in range(rounds + 1):
        for name, run in (("bare", bare), ("capture", capture)):
            taken = run(model, rows)
            if number:
                seconds[name].append(taken)
    ratios = [one / other for one, other in zip(seconds["bare"], seconds["capture"], strict=True)]
    print(
        f"| {title} | {num_tokens / min(seconds['bare']):,.0f} | {num_tokens / min(seconds['capture']):,.0f} | "
        f"{min(seconds['bare']) / min(seconds['capture']):.3f} | {statistics.median(ratios):.3f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 5), ("rows", 120), ("vocabulary", 32000), ("hidden", 256), ("layers", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--dtypes", default="fp32,bf16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, {platform.machine()}, 1 torch thread, torch {torch.__version__}, {options.rounds} rounds\n")
    print("| model, dtype, kept | bare tokens/s | capture tokens/s | ratio of minima | median of pairs |\n|---|---|---|---|---|")
    for dtype in options.dtypes.split(","):
        if options.model:
            from transformers import AutoModelForCausalLM

            model: Any = AutoModelForCausalLM.from_pretrained(options.model)
        else:
            model = random_llama(options)
        model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]).eval()
        name = options.model.name if options.model else f"V {options.vocabulary:,}, H {options.hidden}, {options.layers} layers"
        for kept, said in ((0.6, "last 60 %"), (1.0, "all")):
            rows = real_rows(options, kept) if options.model else draw_rows(options, kept)
            measure(f"{name}, {dtype}, {said}", model, rows, options.rounds)


if __name__ == "__main__":
    main()
