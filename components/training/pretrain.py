"""Pre-training the embedded base: a tiny Hugging Face model taught the broad tasks of the embedded world by the Trainer."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import IterableDataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from components.data.embedded_files import messages_of
from components.data.embedded_world import EmbeddedWorld
from components.data.rendering import render
from components.models import build_tiny_model, build_word_tokenizer
from components.objectives.labels import IGNORED_LABEL
from components.params import BaseModelParams, WorldParams
from components.training.progress import show_progress

MAX_LENGTH = 96


def pretrain_embedded(
    params: BaseModelParams, world_params: WorldParams, *, target: Path, work: Path, device: torch.device
) -> None:
    """Leave model, tokenizer and configuration in `target`. The data are drawn on the fly and never repeat on purpose."""
    set_seed(params.seed)
    world = EmbeddedWorld(world_params)
    tokenizer = build_word_tokenizer(world.vocabulary(), MAX_LENGTH)
    model = build_tiny_model(params, tokenizer, MAX_LENGTH)
    trainer = Trainer(
        model=model,
        args=_arguments(params, device, work),
        train_dataset=BroadConversations(world, tokenizer, params.seed),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED_LABEL),
    )
    show_progress(trainer, "prepare_base")
    trainer.train()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


class BroadConversations(IterableDataset):  # type: ignore[type-arg]
    """Endless rendered conversations of the broad tasks; assistant tokens are the labels."""

    def __init__(self, world: EmbeddedWorld, tokenizer: object, seed: int) -> None:
        self._world = world
        self._tokenizer = tokenizer
        self._seed = seed

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        for example in self._world.broad_conversations(random.Random(f"pretrain-{self._seed}")):
            row = render(messages_of(example), self._tokenizer, MAX_LENGTH)  # type: ignore[arg-type]
            pairs = zip(row.input_ids, row.is_target, strict=True)
            yield {
                "input_ids": row.input_ids,
                "attention_mask": [1] * len(row.input_ids),
                "labels": [token if is_target else IGNORED_LABEL for token, is_target in pairs],
            }


def _arguments(params: BaseModelParams, device: torch.device, work: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        max_steps=params.num_steps,
        per_device_train_batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, params.num_steps // 20),
        weight_decay=0.01,
        max_grad_norm=1.0,
        use_cpu=device.type == "cpu",
        seed=params.seed,
        save_strategy="no",
        logging_steps=max(1, params.num_steps // 10),
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=not sys.stderr.isatty(),
    )
