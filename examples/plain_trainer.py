"""The objective in a plain `transformers.Trainer`: no params.yaml, no stages. Runs in a minute on a CPU, downloads nothing:

    python -m examples.plain_trainer

A tiny random Llama first learns to copy four tokens. Then it is trained on a new task, to answer with the tokens in reverse
and a coin that nobody can predict: once by SFT, once by `uncertainty_aware` with the frozen base as online teacher. Printed: the
loss in nats per target token on both tasks.
"""

import copy
import random
import sys
import tempfile
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from components.objectives.objective import Objective
from components.objectives.presets import PRESETS
from components.training.plain_trainer import TokenObjectiveLoss

PAD, COPY, REVERSE, HEADS, TAILS, FIRST = range(6)
NUM_WORDS = 12
IGNORED = -100


def main(num_base_steps: int = 300, num_steps: int = 60) -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    set_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=FIRST + NUM_WORDS,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            pad_token_id=PAD,
        )
    )
    train(base, examples(COPY, 2000), PRESETS["sft"], num_base_steps)
    losses = {"base": losses_of(base)}
    for method in ("sft", "uncertainty_aware"):
        student = copy.deepcopy(base)
        train(student, examples(REVERSE, 200), PRESETS[method], num_steps)
        losses[method] = losses_of(student)
    print(f"{'nats per target token':22}{'old task: copy':>18}{'new task: reverse':>20}")
    for method, found in losses.items():
        print(f"{method:22}{found['copy']:18.3f}{found['reverse']:20.3f}")
    return losses


def train(model: Any, rows: list[dict[str, list[int]]], objective: Objective, num_steps: int) -> None:
    """All that is ours are the lines with `loss`."""
    loss = TokenObjectiveLoss(objective)
    with tempfile.TemporaryDirectory() as work:
        arguments = TrainingArguments(
            output_dir=work,
            max_steps=num_steps,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            remove_unused_columns=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=max(1, num_steps // 4),
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, loss.collator(PAD), rows, compute_loss_func=loss, callbacks=[loss.callback])
        loss.attach(trainer.model)
        trainer.train()


def examples(task: int, num_rows: int, seed: int = 1) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` as any Hugging Face collator takes them; the prompt's labels are -100."""
    draw = random.Random(f"{task}-{seed}")
    rows = []
    for _ in range(num_rows):
        words = [draw.randrange(FIRST, FIRST + NUM_WORDS) for _ in range(4)]
        answer = words if task == COPY else [*words[::-1], draw.choice((HEADS, TAILS))]
        rows.append({"input_ids": [task, *words, *answer], "labels": [IGNORED] * 5 + answer})
    return rows


@torch.no_grad()
def losses_of(model: Any) -> dict[str, float]:
    """Plain cross-entropy on rows that were not trained on."""
    model.eval()
    found = {}
    for name, task in (("copy", COPY), ("reverse", REVERSE)):
        rows = examples(task, 100, seed=2)
        batch = {column: torch.tensor([row[column] for row in rows]) for column in ("input_ids", "labels")}
        found[name] = float(model(**batch).loss)
    return found


if __name__ == "__main__":
    main(*(int(number) for number in sys.argv[1:]))
