"""Tokens per second of rendering, marking, checking and fingerprinting, against `datasets.map` with the bare tokenizer.

    python -m benchmarks.tokenise_rate [--rounds 7] [--processes 1] [--data ../shared/data]

Bare is `Dataset.map(lambda batch: tokenizer(batch["text"]), batched=True)` on texts that are rendered already. Ours is
`tokenise_table` from the conversations to the table of tokens, in the same `datasets.map`, with as many processes. Both write
their result to a file, and neither keeps the column that it reads. CPU seconds of all processes, one tokenizer thread in each;
the two take turns within a round. Goals: ratio >= 0.9, and 0.6 Mtok/s per core. It judges nothing.

Rows: Alpaca and GSM8K where they lie beside the project (--data), otherwise drawn words.
"""

import argparse
import gc
import json
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset, Features
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.machine import processor
from components.data.chat_templates import apply_template
from components.data.rendering import render_batch
from components.data.tokenising import TOKENISED, tokenise_table

MAX_LENGTH = 1 << 14
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
Pair = tuple[str, str]


def main() -> None:
    options = parse()
    datasets.disable_progress_bars()
    pairs = list(real_pairs(options.data)) if (options.data / "train").is_dir() else drawn_pairs(8000)
    print(
        f"{date.today()}, {processor()}, {options.processes} process(es), transformers {transformers.__version__}, "
        f"tokenizers {tokenizers.__version__}, datasets {datasets.__version__}; "
        f"{len(pairs)} conversations, {options.rounds} rounds\n"
    )
    print("| tokenizer, template | ours / bare (of minima) | (median of rounds) | ours Mtok/s a core | bare Mtok/s a core |")
    print("|---|---|---|---|---|")
    for name, build in named_tokenizers(options.data).items():
        report(name, *measure(build(), pairs, options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    return parser.parse_args()


def real_pairs(folder: Path) -> Iterator[Pair]:
    for row in json.loads((folder / "train/alpaca/alpaca_data.json").read_text(encoding="utf-8")):
        if row["output"].strip():
            yield "\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]
    for line in (folder / "train/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["question"], row["answer"]


def drawn_pairs(num_rows: int) -> list[Pair]:
    """Words of two to nine letters, the frequent ones short, in sentences."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=2 + rank // 250)) for rank in range(2000)]
    weights = [1 / (rank + 10) for rank in range(2000)]

    def sentence() -> str:
        return " ".join(draw.choices(words, weights, k=draw.randint(10, 80))) + "."

    return [(sentence(), sentence()) for _ in range(num_rows)]


def named_tokenizers(folder: Path) -> dict[str, Callable[[], Any]]:
    named: dict[str, Callable[[], Any]] = {}
    if (folder / "tokenizers/gpt2").is_dir():
        named["GPT-2, chatml"] = partial(byte_level, folder / "tokenizers/gpt2", "chatml", ["<|im_start|>", "<|im_end|>"], None)
        llama3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        named["GPT-2 with LLaMA 3's splits, llama3"] = partial(
            byte_level, folder / "tokenizers/gpt2", "llama3", llama3, LLAMA3_SPLIT
        )
    if (folder / "models/stories260K").is_dir():
        named["stories260K (byte fallback), plain"] = partial(of_folder, folder / "models/stories260K")
    return named or {"trained on the rows, chatml": trained}


def byte_level(folder: Path, template: str, special: list[str], split: str | None) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    splits = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    return with_template(tokenizer, template, special)


def trained() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator((text for pair in drawn_pairs(2000) for text in pair), trainer)
    return with_template(tokenizer, "chatml", ["<|im_start|>", "<|im_end|>"])


def with_template(tokenizer: Any, template: str, special: list[str]) -> Any:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        additional_special_tokens=special,
        clean_up_tokenization_spaces=False,
    )
    apply_template(fast, template)
    return fast


def of_folder(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    apply_template(tokenizer, "plain")
    return tokenizer


def measure(tokenizer: Any, pairs: list[Pair], options: argparse.Namespace) -> tuple[int, dict[str, list[float]]]:
    """CPU seconds of both in each round, after one round that counts for nothing; and how many tokens there are."""
    chats = [({"role": "user", "content": asked}, {"role": "assistant", "content": said}) for asked, said in pairs]
    rendered = [row for row in render_batch(chats, tokenizer, MAX_LENGTH) if not isinstance(row, Exception)]
    assert len(rendered) == len(pairs)
    texts = Dataset.from_dict({"text": [row.text for row in rendered]})
    column = [json.dumps([["user", asked], ["assistant", said]], ensure_ascii=False) for asked, said in pairs]
    conversations = Dataset.from_dict({"conversation": column}).with_format("arrow")
    runs = {"bare": partial(map_bare, texts, tokenizer), "ours": partial(map_ours, conversations, tokenizer)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, options.rounds):
        for name in sorted(runs, reverse=bool(number % 2)):
            spent = cpu_seconds_of(partial(runs[name], options.processes))
            if number >= 0:
                seconds[name].append(spent)
    return sum(len(row.input_ids) for row in rendered), seconds


def map_bare(texts: Dataset, tokenizer: Any, processes: int, file: str) -> None:
    texts.map(
        lambda batch: tokenizer(batch["text"], verbose=False),
        batched=True,
        remove_columns=["text"],
        num_proc=None if processes == 1 else processes,
        cache_file_name=file,
        new_fingerprint="bare",
    )


def map_ours(conversations: Dataset, tokenizer: Any, processes: int, file: str) -> None:
    def tokenise(batch: pa.Table) -> pa.Table:
        return tokenise_table(batch.column("conversation"), tokenizer, MAX_LENGTH)

    conversations.map(
        tokenise,
        batched=True,
        remove_columns=["conversation"],
        features=Features.from_arrow_schema(TOKENISED),
        num_proc=None if processes == 1 else processes,
        cache_file_name=file,
        new_fingerprint="ours",
    )


def cpu_seconds_of(run: Callable[[str], None]) -> float:
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        before = os.times()
        run(str(Path(folder) / "rows.arrow"))
        after = os.times()
    return sum(after[:4]) - sum(before[:4])


def report(name: str, num_tokens: int, seconds: dict[str, list[float]]) -> None:
    ours, bare = seconds["ours"], seconds["bare"]
    by_round = statistics.median(theirs / mine for mine, theirs in zip(ours, bare, strict=True))
    rates = f"{num_tokens / min(ours) / 1e6:.3f} | {num_tokens / min(bare) / 1e6:.3f}"
    print(f"| {name} | {min(bare) / min(ours):.3f} | {by_round:.3f} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
