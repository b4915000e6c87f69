"""Laws of the adapter: nothing else is trained, and the merged model is the base plus the update."""

from pathlib import Path

import pytest
import torch

from components.errors import ParamsError
from components.objectives.presets import PRESETS
from components.params import LoraParams
from components.teacher_cache.reader import TeacherCacheReader
from components.training.lora import add_adapter, merge_adapter
from tests.components.training.conftest import build_trainer, post_train
from tests.conftest import build_model

LORA = LoraParams(enabled=True, rank=4, alpha=8.0)
TOKENS = torch.tensor([[3, 9, 27, 31, 44]])


def test_only_adapter_weights_are_trained(tmp_path: Path, cache: TeacherCacheReader) -> None:
    before = build_model().state_dict()
    trainer = build_trainer(tmp_path, PRESETS["uncertainty_aware"], cache, model=add_adapter(build_model(), LORA))
    trainer.train()
    num_moved = 0
    for name, weight in trainer.model.state_dict().items():
        if "lora_" in name:
            num_moved += int(bool(weight.abs().sum() > 0) and "lora_B" in name)
        else:
            own_name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, before[own_name]), name
    assert num_moved == 7, "all linear layers of the one block, not the head"


def test_the_merged_model_is_the_base_plus_the_scaled_update(tmp_path: Path, cache: TeacherCacheReader) -> None:
    base = build_model().state_dict()
    trainer = build_trainer(tmp_path, PRESETS["sft"], cache, model=add_adapter(build_model(), LORA))
    trainer.train()
    adapted = trainer.model
    updates = {}
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A"):
            product = module.lora_B["default"].weight.detach() @ module.lora_A["default"].weight.detach()
            updates[f"{name.removeprefix('base_model.model.')}.weight"] = LORA.alpha / LORA.rank * product
    with torch.no_grad():
        expected_logits = adapted(TOKENS).logits
        merged = merge_adapter(adapted)
        torch.testing.assert_close(merged(TOKENS).logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert set(merged.state_dict()) == set(base)
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, base[name] + updates.get(name, 0.0), rtol=1e-6, atol=1e-6)


def test_a_new_adapter_changes_nothing_so_alignment_holds_and_the_result_is_a_plain_model(
    tmp_path: Path, cache: TeacherCacheReader
) -> None:
    fresh = add_adapter(build_model(), LORA)
    with torch.no_grad():
        assert torch.equal(fresh(TOKENS).logits, build_model()(TOKENS).logits)
    result = post_train(tmp_path, PRESETS["uncertainty_aware"], cache, lora=LORA)
    assert type(result.model) is type(build_model()) and not any("lora" in name for name in result.model.state_dict())


def test_an_unknown_target_module_is_a_params_error_with_key_and_value() -> None:
    with pytest.raises(ParamsError, match=r"training\.lora\.target_modules.*no_such_layer"):
        add_adapter(build_model(), LoraParams(enabled=True, target_modules=("no_such_layer",)))
