"""Law of packing: rows of one sequence, without padding, give the gradient and the trajectory of padded rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from components.data.batching import pack_rows
from components.errors import ParamsError
from components.params import LoraParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training.lora import add_adapter
from components.training.packing import next_token_nll, prove_packing
from tests.components.training.conftest import (
    LIVE_PRESETS,
    NO_TARGET,
    ROWS,
    Recorded,
    assert_same,
    build_trainer,
    masks_of_steps,
    post_train,
    record,
)
from tests.conftest import PAD, VOCABULARY, Row, build_model

NUM_STEPS = 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NARROW = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "sdpa"),
    "llama eager": ("llama", {}, "eager"),
    "gemma2 eager": ("gemma2", NARROW, "eager"),  # it supports no other
    "gemma3": ("gemma3_text", NARROW, "sdpa"),
    "gemma3 eager": ("gemma3_text", NARROW, "eager"),
    "phi3": ("phi3", {}, "sdpa"),
    "phi3 eager": ("phi3", {}, "eager"),
}
"""Gemma's window of four tokens is shorter than most rows."""
LEAKING: dict[str, tuple[str, dict[str, Any], str]] = {
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "sdpa"),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}, "sdpa"),
    "mamba": ("mamba", {"state_size": 4}, "eager"),
}
LORA = LoraParams(enabled=True, rank=4, alpha=8.0)


def build(architecture: tuple[str, dict[str, Any], str], **changes: Any) -> Any:
    name, special, attention = architecture
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SIZES, **special, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


@pytest.mark.parametrize("micro_batch_size", [8, 2, 1])
@pytest.mark.parametrize("kind", LIVE_PRESETS)
def test_packed_rows_train_as_padded_ones_do(
    tmp_path: Path, cache: TeacherCacheReader, alone: Callable[..., Recorded], kind: str, micro_batch_size: int
) -> None:
    one = alone(LIVE_PRESETS[kind], num_steps=NUM_STEPS)
    packed = record(tmp_path, LIVE_PRESETS[kind], cache, packing=True, micro_batch_size=micro_batch_size, num_steps=NUM_STEPS)
    assert_same(one, packed)
    assert masks_of_steps([packed], NUM_STEPS) == masks_of_steps([one], NUM_STEPS)


@pytest.mark.parametrize("kind", ["uncertainty_aware", "gain_aware"])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - {"llama"}))
def test_packing_keeps_the_gradient_on_every_architecture(
    tmp_path: Path, cache: TeacherCacheReader, architecture: str, kind: str
) -> None:
    runs = [
        record(
            tmp_path,
            LIVE_PRESETS[kind],
            cache,
            model=build(ARCHITECTURES[architecture]),
            packing=packing,
            micro_batch_size=rows,
            num_steps=2,
        )
        for packing, rows in ((False, 8), (True, 8), (True, 2))
    ]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


@pytest.mark.parametrize("kind", ["sft", "uncertainty_aware"])
def test_packing_keeps_the_gradient_of_an_adapter(tmp_path: Path, cache: TeacherCacheReader, kind: str) -> None:
    padded, packed, alone_in_line = (
        record(
            tmp_path,
            LIVE_PRESETS[kind],
            cache,
            model=add_adapter(build_model(), LORA),
            packing=packing,
            micro_batch_size=rows,
            num_steps=NUM_STEPS,
        )
        for packing, rows in ((False, 8), (True, 4), (True, 1))
    )
    assert any("lora_" in name for name in padded.gradients[0])
    assert_same(padded, packed)
    assert_same(padded, alone_in_line)


def short_rows() -> list[Row]:
    """Rows of a single token first, in the middle, twice in a row and last; one row without a target; one of two tokens."""
    single = [Row([token], [True]) for token in (7, 8, 9, 11)]
    return [single[0], ROWS[0], single[1], single[2], ROWS[NO_TARGET], Row([5, 6], [False, True]), ROWS[1], single[3]]


@pytest.mark.parametrize("micro_batch_size", [8, 4, 1])
@pytest.mark.parametrize("kind", ["sft", "masked_mle", "eaft", "random_mask"])
def test_rows_of_one_token_and_rows_without_a_target_pack(
    tmp_path: Path, cache: TeacherCacheReader, kind: str, micro_batch_size: int
) -> None:
    """Objectives that need nothing from the cache, which knows other rows."""
    objective = replace(LIVE_PRESETS[kind], threshold_nats=2.0 if kind == "masked_mle" else None)
    common: dict[str, Any] = {"rows": short_rows(), "num_steps": NUM_STEPS}
    padded = record(tmp_path, objective, cache, **common)
    packed = record(tmp_path, objective, cache, packing=True, micro_batch_size=micro_batch_size, **common)
    assert_same(padded, packed)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_does_not_see_the_rows_beside_it(architecture: str) -> None:
    """Another token in the second row moves that row's losses after it, and not one bit of the others'."""
    model = build(ARCHITECTURES[architecture]).eval()
    rows = [row for row in ROWS if len(row.input_ids) > 6][:3]
    lengths = [len(row.input_ids) - 1 for row in rows]
    before = next_token_nll(model, pack_rows(rows)).split(lengths)
    changed = list(rows[1].input_ids)
    changed[2] = changed[2] % (VOCABULARY - 1) + 1
    after = next_token_nll(model, pack_rows([rows[0], Row(changed, rows[1].is_target), rows[2]])).split(lengths)
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert torch.equal(before[1][:1], after[1][:1]) and not torch.equal(before[1][1:], after[1][1:])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_that_keeps_rows_apart_is_proven_to(architecture: str) -> None:
    model = build(ARCHITECTURES[architecture]).train()
    prove_packing(model, ROWS[:5], PAD)
    prove_packing(model, ROWS[:1], PAD)
    assert model.training


@pytest.mark.parametrize("architecture", LEAKING)
def test_an_architecture_that_does_not_is_refused_with_the_repair(architecture: str) -> None:
    model = build(LEAKING[architecture])
    with pytest.raises(ParamsError, match=r"see each other.*nats per token; set training\.packing: false in params\.yaml"):
        prove_packing(model, ROWS[:5], PAD)
    prove_packing(model, ROWS[:1], PAD)  # one row at a time is not packed at all


def test_a_model_that_takes_no_positions_is_refused_with_the_repair() -> None:
    model = build_model()
    forward = model.forward
    model.forward = lambda input_ids, attention_mask=None, use_cache=None: forward(input_ids, attention_mask, use_cache=use_cache)
    with pytest.raises(ParamsError, match=r"cannot read packed rows \(.*position_ids.*set training\.packing: false"):
        prove_packing(model, ROWS[:5], PAD)


def test_the_proof_stands_before_the_first_step(tmp_path: Path, cache: TeacherCacheReader) -> None:
    leaking = build(LEAKING["lfm2"])
    weights = {name: weight.clone() for name, weight in leaking.state_dict().items()}
    with pytest.raises(ParamsError, match=r"training\.packing"):
        post_train(tmp_path, LIVE_PRESETS["sft"], cache, model=leaking, packing=True, micro_batch_size=4)
    assert all(torch.equal(weight, weights[name]) for name, weight in leaking.state_dict().items())
    result = post_train(tmp_path, LIVE_PRESETS["uncertainty_aware"], cache, packing=True, micro_batch_size=4)
    assert len(result.curve) == 4


@pytest.mark.parametrize("has_adapter", [False, True])
def test_the_trainer_gives_a_packed_model_no_attention_mask(tmp_path: Path, cache: TeacherCacheReader, has_adapter: bool) -> None:
    """transformers looks for the borders of documents only where there is none."""
    lm, seen = build_model(), []
    model = add_adapter(lm, LORA) if has_adapter else lm
    trainer = build_trainer(tmp_path, LIVE_PRESETS["sft"], cache, model=model, packing=True, micro_batch_size=4, num_steps=1)
    lm.base_model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    trainer.train()
    assert len(seen) == 2
    for inputs in seen:
        assert inputs.get("attention_mask") is None and int((inputs["position_ids"] == 0).sum()) == 4
