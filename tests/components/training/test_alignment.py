"""Laws of the proof before the first step: rounding passes, one position of shift never does."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from components.errors import CacheMismatchError
from components.objectives.presets import PRESETS
from components.teacher_cache import shard_capture
from components.teacher_cache.encoding import EncodedTokens, encode
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.reduction import ReducedLaws
from components.training.alignment import prove_alignment
from components.training.collator import TeacherCollator
from tests.components.training.conftest import ROWS, post_train
from tests.conftest import PAD, build_cache, build_identity, build_model


def roll_by_one(laws: ReducedLaws, tail_mass: float, probability_bits: int) -> EncodedTokens:
    rolled = {name: values.roll(1, 0) for name, values in vars(laws).items()}
    return encode(ReducedLaws(**rolled), tail_mass, probability_bits)


def shifted_cache(folder: Path, **identity: Any) -> TeacherCacheReader:
    """A cache that is whole and sealed, its per-token columns moved by one position when they were written."""
    with patch.object(shard_capture, "encode", roll_by_one):
        return build_cache(folder, build_model(), ROWS, **identity)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cache_shifted_by_one_position_is_refused_before_the_first_step(tmp_path: Path, precision: str) -> None:
    shifted = shifted_cache(tmp_path, precision=precision, positions="all")
    for kind in PRESETS:
        model = build_model()
        with pytest.raises(
            CacheMismatchError, match=r"not aligned: .* one position before their own.*Run: dvc repro -f -s cache_teacher"
        ):
            post_train(tmp_path / kind, PRESETS[kind], shifted, model=model)
        assert all(torch.equal(weight, build_model().state_dict()[name]) for name, weight in model.state_dict().items())
        assert not list((tmp_path / kind).glob("checkpoint-*"))


def test_another_base_model_is_refused(tmp_path: Path, cache: TeacherCacheReader) -> None:
    with pytest.raises(CacheMismatchError, match="nats per token before the first step"):
        post_train(tmp_path, PRESETS["sft"], cache, model=build_model(seed=1))


def test_a_cache_of_sixteen_bits_is_accepted_by_a_training_of_thirty_two(tmp_path: Path) -> None:
    build_cache(tmp_path, build_model().bfloat16(), ROWS, precision="bf16")
    cache = TeacherCacheReader(tmp_path / "cache", build_identity(precision="bf16"))
    post_train(tmp_path / "work", PRESETS["uncertainty_aware"], cache)


def test_dropout_of_the_base_does_not_look_like_misalignment(tmp_path: Path, cache: TeacherCacheReader) -> None:
    model = build_model(attention_dropout=0.5).train()
    prove_alignment(model, TeacherCollator(PAD, cache)(ROWS), "fp32")
    assert model.training, "it leaves the model as it was"


def test_a_base_whose_loss_is_not_a_number_is_refused(cache: TeacherCacheReader) -> None:
    model = build_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CacheMismatchError):
        prove_alignment(model, TeacherCollator(PAD, cache)(ROWS), "fp32")


def test_entries_at_another_temperature_are_refused_though_the_labels_agree(tmp_path: Path) -> None:
    """Labels are kept at temperature 1 whatever the cache's own, so they alone would not tell."""
    cache = build_cache(tmp_path, build_model(), ROWS, temperature=2.0)
    batch = TeacherCollator(PAD, cache)(ROWS)
    prove_alignment(build_model(), batch, "fp32", temperature=2.0)
    with pytest.raises(CacheMismatchError, match=r"law at temperature 1\.0 differs"):
        prove_alignment(build_model(), batch, "fp32", temperature=1.0)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_rounding_of_probabilities_is_no_misalignment(tmp_path: Path, bits: int) -> None:
    cache = build_cache(tmp_path, build_model(), ROWS, probability_bits=bits, tail_mass=0.03, max_entries=40)
    prove_alignment(build_model(), TeacherCollator(PAD, cache)(ROWS), "fp32")
