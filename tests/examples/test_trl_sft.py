"""TRL's SFTTrainer takes the loss: the example runs, and with `sft` every step has the loss of TRL itself."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="trl is not in the lock: pip install trl==1.16.0 into an environment of its own")

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from components.models import build_word_tokenizer
from components.objectives.presets import PRESETS
from components.training.plain_trainer import TokenObjectiveLoss
from examples.trl_sft import WORDS, ObjectiveSFTTrainer, build_model, conversations, main
from tests.conftest import PAD, build_cache, build_rows
from tests.conftest import build_model as tiny_model


def losses_of(kind: type[SFTTrainer], loss: TokenObjectiveLoss | None, **given: Any) -> list[float]:
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(WORDS, max_length=64)
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        quiet = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
        arguments = SFTConfig(
            work, max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=1, **quiet
        )
        rows = conversations(64)
        callbacks = [] if loss is None else [loss.callback]
        trainer = kind(
            build_model(tokenizer), arguments, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks, **given
        )
        if loss is not None:
            trainer.compute_loss_func = loss
            loss.attach(trainer.model)
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_the_example_runs_and_learns() -> None:
    losses = main(num_steps=6)
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_sft_has_the_losses_of_trl_and_both_ways_agree() -> None:
    theirs = losses_of(SFTTrainer, None)
    assert losses_of(ObjectiveSFTTrainer, TokenObjectiveLoss(PRESETS["sft"])) == pytest.approx(theirs, rel=1e-4)
    short, whole = (
        losses_of(kind, TokenObjectiveLoss(PRESETS["uncertainty_aware"])) for kind in (ObjectiveSFTTrainer, SFTTrainer)
    )
    assert short == pytest.approx(whole, rel=1e-5) and short != pytest.approx(theirs, rel=1e-2)


def test_a_cache_works_on_a_tokenised_data_set(tmp_path: Path) -> None:
    rows = build_rows(16)
    cache = build_cache(tmp_path, model := tiny_model(), rows)
    loss = TokenObjectiveLoss(PRESETS["uncertainty_aware"], cache=cache, rows=rows)
    labels = [[t if wanted else -100 for t, wanted in zip(row.input_ids, row.is_target, strict=True)] for row in rows]
    quiet = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    trainer = ObjectiveSFTTrainer(
        model,
        SFTConfig(str(tmp_path), max_steps=2, dataset_kwargs={"skip_prepare_dataset": True}, **quiet),
        data_collator=loss.collator(PAD),
        train_dataset=Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": labels}),
        processing_class=build_word_tokenizer(WORDS, max_length=64),
        callbacks=[loss.callback],
    )
    trainer.compute_loss_func = loss
    loss.attach(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 2
