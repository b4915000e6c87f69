"""Items scored per second, ours against lm-evaluation-harness's HFLM: same model, same token requests, interleaved rounds.

    python -m benchmarks.scoring_rate [--rounds 5] [--batch-tokens 2048] [--model FOLDER]

Without a model folder: a random LLaMA of 4 layers, width 256, vocabulary 8,192. Requests are generated token ids. HFLM runs at
batch sizes 1, 8 and 32 and its best counts; ours at `--batch-tokens`. Process CPU seconds of one thread. It judges nothing.
"""

import argparse
import functools
import random
import time
from datetime import date
from typing import Any

import torch
import transformers

from benchmarks.machine import processor
from components.evaluation.items import ItemRow
from components.evaluation.prefix_sharing import OptionScore, score_options

# kind of set: options per item, tokens of the prompt, tokens of an answer
KINDS = {
    "choice": (4, (50, 90), (2, 10)),
    "completion": (1, (50, 90), (1, 2)),
    "pairs": (2, (1, 1), (7, 13)),
    "plain text": (1, (1, 1), (100, 128)),
    "arithmetic": (1, (30, 60), (1, 3)),
}
BATCH_SIZES = (1, 8, 32)


def build_model(folder: str | None) -> Any:
    if folder is not None:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    sizes = {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4, initializer_range=0.1)
    ).eval()


def build_harness(model: Any, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({f"t{token}": token for token in range(model.config.vocab_size)}, unk_token="t0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t2", bos_token="t1")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu", max_length=512)


def draw_rows(kind: str, num_items: int, vocabulary: int) -> list[ItemRow]:
    num_options, prompts, answers = KINDS[kind]
    draw, rows = random.Random(0), []
    for _ in range(num_items):
        prompt = [draw.randrange(3, vocabulary) for _ in range(draw.randint(*prompts))]
        for _ in range(num_options):
            answer = [draw.randrange(3, vocabulary) for _ in range(draw.randint(*answers))]
            rows.append(ItemRow([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)))
    return rows


def measure(model: Any, kind: str, num_items: int, rounds: int, batch_tokens: int) -> str:
    rows = draw_rows(kind, num_items, model.config.vocab_size)
    borders = [row.is_target.index(True) for row in rows]
    requests = [(("", ""), row.input_ids[:at], row.input_ids[at:]) for row, at in zip(rows, borders, strict=True)]
    ways: dict[int, Any] = {0: lambda: score_options(model, rows, batch_tokens)}
    for size in BATCH_SIZES:
        ways[size] = functools.partial(build_harness(model, size)._loglikelihood_tokens, requests, disable_tqdm=True)
    taken: dict[int, list[float]] = {size: [] for size in ways}
    for number in range(rounds + 1):  # the first is a warm-up
        for size, way in ways.items():
            started = time.process_time()
            found = way()
            if number:
                taken[size].append(time.process_time() - started)
            if size == 0:
                ours: list[OptionScore] = found
            else:
                theirs = found
    gap = max(abs(score.nll_sum + loglikelihood) for score, (loglikelihood, _) in zip(ours, theirs, strict=True))
    flags = sum(score.is_greedy != bool(greedy) for score, (_, greedy) in zip(ours, theirs, strict=True))
    best = min(BATCH_SIZES, key=lambda size: min(taken[size]))
    rates = num_items / min(taken[0]), num_items / min(taken[best])
    pairs = sorted(other / own for own, other in zip(taken[0], taken[best], strict=True))
    return (
        f"| {kind} | {rates[0]:.0f} | {rates[1]:.0f} (batch {best}) | {rates[0] / rates[1]:.2f} | "
        f"{pairs[len(pairs) // 2]:.2f} | {gap:.1e} | {flags} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build_model(options.model)
    print(f"{date.today()}, {processor()}, 1 thread, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| set | ours, items/s | HFLM, items/s | ratio of minima | median of pairs | max abs dLL | greedy flags that differ |")
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        print(measure(model, kind, options.items, options.rounds, options.batch_tokens), flush=True)


if __name__ == "__main__":
    main()
