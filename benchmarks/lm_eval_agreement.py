"""Our scorer beside lm-evaluation-harness: the same model, the same items; nll, accuracy and items a second, set by set.

    python -m benchmarks.lm_eval_agreement [--data ../shared/data] [--items 40] [--rounds 5]

Agreement is told from the whole evaluation. For the rates both score the same token ids, ours with `score_options`, theirs with
HFLM in batches of 16. The two take turns within a round; the ratio is that of the minima of process CPU time. It judges nothing;
that the two agree is a test, too (tests/components/evaluation/test_lm_eval_export.py, tests/test_real_harness.py).
"""

import argparse
import os
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers

from benchmarks.machine import processor
from components.evaluation.evaluate import evaluate_sets
from components.evaluation.held_out_sets import name_ood_files
from components.evaluation.items import ItemRow
from components.evaluation.lm_eval_export import ExportedSet, export_sets, harness_tokens
from components.evaluation.lm_eval_run import open_harness, run_tasks
from components.evaluation.lm_eval_sets import asked_pairs, item_result
from components.evaluation.prefix_sharing import score_options
from components.evaluation.tasks import read_ood_set
from components.models import load_model, load_tokenizer
from components.params import EvaluationParams

MAX_LENGTH = 512
BATCH_TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.data / "models" / "stories260K"
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    print(f"{date.today()}, {processor()}, 1 thread, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| set | items | left out | largest difference, nats/token | accuracy: ours, theirs | items/s: ours, theirs | ratio |")
    print("|---|---:|---|---:|---|---|---:|")
    files = name_ood_files(options.data / "ood")
    with TemporaryDirectory() as tasks:
        exported = export_sets(files, Path(tasks), tokenizer, MAX_LENGTH, options.items)
        harness = open_harness(model, tokenizer)
        theirs = run_tasks(harness, [one.task for one in exported.values() if one.item_ids], Path(tasks))
        for name, one in exported.items():
            report(name, one, files[name], theirs.get(one.task, []), model, tokenizer, harness, options)


def report(
    name: str,
    one: ExportedSet,
    file: Path,
    samples: list[Any],
    model: Any,
    tokenizer: Any,
    harness: Any,
    options: argparse.Namespace,
) -> None:
    left = ", ".join(f"{count} {kind}" for kind, count in one.left_out.items()) or "0"
    if not samples:
        print(f"| {name} | 0 | {left} | | | | |")
        return
    items = {item.item_id: item for item in read_ood_set(file, tokenizer, MAX_LENGTH, 10**9)}
    kept = [items[item_id] for item_id in one.item_ids]
    ours = {row["item_id"]: row for row in score(model, kept)["items"]}
    found = compare(one, ours, samples, harness)
    seconds = measure(model, tokenizer, samples, harness, options.rounds)
    rates = [len(kept) / each for each in seconds]
    print(
        f"| {name} | {len(kept)} | {left} | {found['nll']:.1e} | {found['ours']:.4f}, {found['theirs']:.4f} "
        f"| {rates[0]:.0f}, {rates[1]:.0f} | {rates[0] / rates[1]:.1f} |",
        flush=True,
    )


def score(model: Any, items: list[Any]) -> dict[str, Any]:
    return evaluate_sets(model, model, {"set": items}, EvaluationParams())["set"]


def compare(one: ExportedSet, ours: Mapping[str, Any], samples: list[Any], harness: Any) -> dict[str, float]:
    """Largest difference of the nll (nats/token) of a right answer, and both accuracies; of running text all tokens count."""
    theirs = [item_result(one.task, sample, harness) for sample in samples]
    pairs = [(ours[item_id], row) for item_id, row in zip(one.item_ids, theirs, strict=True)]
    assert all(mine["num_tokens"] == row.num_tokens for mine, row in pairs), f"{one.task}: other tokens"
    correct = [mine["num_correct"] if one.kind != "text" else mine["num_correct"] == mine["num_scored"] for mine, _ in pairs]
    return {
        "nll": max(abs(mine["nll_sum"] - row.nll_sum) / mine["num_tokens"] for mine, row in pairs),
        "ours": sum(float(value) for value in correct) / len(pairs),
        "theirs": sum(row.num_correct for _, row in pairs) / len(pairs),
    }


def measure(model: Any, tokenizer: Any, samples: list[Any], harness: Any, rounds: int) -> tuple[float, float]:
    pairs = [pair for sample in samples for pair in asked_pairs(sample)]
    requests = [(pair, *harness_tokens(*pair, tokenizer)) for pair in pairs]
    rows = [ItemRow([*given, *asked], [False] * len(given) + [True] * len(asked)) for _, given, asked in requests]
    ways = (
        lambda: score_options(model, rows, BATCH_TOKENS),
        lambda: harness._loglikelihood_tokens(requests, disable_tqdm=True),
    )
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, call in enumerate(ways):
            started = time.process_time()
            call()
            taken[side].append(time.process_time() - started)
    return min(taken[0]), min(taken[1])


if __name__ == "__main__":
    main()
