"""Laws of models: every embedded architecture goes the whole way, and a folder that would load wrongly does not load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from components import models
from components.errors import ArtifactError, ModelError
from components.models import (
    base_folder,
    build_tiny_model,
    build_word_tokenizer,
    load_model,
    load_tokenizer,
    pad_token_id,
    select_device,
    select_dtype,
    weights_fingerprint,
)
from components.objectives.presets import PRESETS
from components.params import BaseModelParams, ComputeParams
from components.teacher_cache.reader import TeacherCacheReader
from tests.components.training.conftest import post_train
from tests.conftest import VOCABULARY, build_cache, build_model, build_rows

WORDS = [f"w{number}" for number in range(VOCABULARY - len(models.SPECIAL_WORDS))]
TOKENS = torch.tensor([[2, 9, 27, 31, 44, 6]])


def tiny(architecture: str) -> Any:
    params = BaseModelParams(architecture=architecture, hidden_size=16, num_layers=2, num_heads=2)  # type: ignore[arg-type]
    return build_tiny_model(params, build_word_tokenizer(WORDS, 32), 32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    build_model().save_pretrained(tmp_path / "model")
    build_word_tokenizer(WORDS, 32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "phi3"])
def test_each_architecture_is_cached_trained_saved_and_reloaded(tmp_path: Path, architecture: str) -> None:
    model, rows = tiny(architecture), build_rows(8)
    cache: TeacherCacheReader = build_cache(tmp_path, model, rows)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    result = post_train(tmp_path / "work", PRESETS["uncertainty_aware"], cache, rows=rows, model=model, num_steps=2)
    assert any(not torch.equal(weight, before[name]) for name, weight in result.model.state_dict().items())
    result.model.save_pretrained(tmp_path / "trained")
    again = load_model(tmp_path / "trained")
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, result.model.eval()(TOKENS).logits)
    assert type(again) is type(model) and next(again.parameters()).dtype == torch.float32


def test_the_seed_alone_decides_the_weights() -> None:
    one, other = tiny("llama").state_dict(), tiny("llama").state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_the_word_tokenizer_reads_words_and_turns_and_comes_back_from_disk(tmp_path: Path) -> None:
    tokenizer = build_word_tokenizer(WORDS, 32)
    messages = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    tokenizer.save_pretrained(tmp_path)
    for reader in (tokenizer, load_tokenizer(tmp_path)):
        ids = reader(text, add_special_tokens=False)["input_ids"]
        assert reader.convert_ids_to_tokens(ids) == ["<s>", "<|user|>", "w1", "w2", "<|end|>", "<|assistant|>", "w3", "<|end|>"]
        assert len(reader) == VOCABULARY and pad_token_id(reader) == 0
        assert reader("nowhere")["input_ids"] == [reader.unk_token_id]


def test_without_a_padding_token_the_end_of_sequence_pads() -> None:
    tokenizer = build_word_tokenizer(WORDS, 32)
    tokenizer.pad_token = None
    assert pad_token_id(tokenizer) == tokenizer.eos_token_id


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_load_in_the_precision_asked_for(saved: Path, precision: str) -> None:
    assert {weight.dtype for weight in load_model(saved, select_dtype(precision)).parameters()} == {select_dtype(precision)}


def test_pickled_weights_alone_are_refused(saved: Path) -> None:
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors file; pickled weights are not read.*safe_serialization"):
        load_model(saved)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(saved: Path, kept: float) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(saved)


def test_weights_that_are_not_all_there_are_refused_and_not_drawn_by_chance(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 of the model's weights.*layers\.0\.mlp\.up_proj"):
        load_model(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ModelError):
        load_model(saved)


@pytest.mark.parametrize("change", [{"model_type": "no_such_type"}, {"model_type": "bert", "architectures": ["BertModel"]}])
def test_a_model_that_is_no_causal_language_model_is_refused(saved: Path, change: dict[str, Any]) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError):
        load_model(saved)


def test_a_missing_config_or_tokenizer_is_refused(saved: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (saved / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(saved)
    (saved / "config.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(saved)


def test_code_in_a_model_folder_is_never_run(saved: Path) -> None:
    (saved / "evil.py").write_text(f"open({str(saved / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((saved / "config.json").read_text())
    for model_type in ("llama", "evil"):
        auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
        (saved / "config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": auto_map}))
        try:
            load_model(saved)
        except ModelError:
            assert model_type == "evil"
        assert not (saved / "ran").exists()


def test_the_fingerprint_follows_weights_and_configuration_and_nothing_else(saved: Path) -> None:
    known = weights_fingerprint(saved)
    (saved / "README.md").write_text("words")
    assert weights_fingerprint(saved) == known
    weights = bytearray((saved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (saved / "model.safetensors").write_bytes(weights)
    assert weights_fingerprint(saved) != known


def test_cuda_where_there_is_none_is_an_error_and_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device(ComputeParams(device="auto", num_threads=1)).type == "cpu"
    assert torch.get_num_threads() == 1
    with pytest.raises(ModelError, match=r"compute\.device is 'cuda'.*compute\.device: cpu"):
        select_device(ComputeParams(device="cuda"))


def test_the_base_lies_where_prepare_base_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "BASE_MODEL", tmp_path)
    with pytest.raises(ArtifactError, match="dvc repro prepare_base"):
        base_folder()
    description = tmp_path / models.DESCRIPTION
    description.write_text(json.dumps({"source": "embedded", "folder": None}))
    assert base_folder() == tmp_path
    description.write_text(json.dumps({"source": "local", "folder": "inputs/base_model"}))
    assert base_folder() == models.ROOT / "inputs" / "base_model"
    revision = "0123456789abcdef" * 2 + "01234567"
    description.write_text(json.dumps({"source": "hub", "hub_id": "org/name", "revision": revision}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        ModelError, match=rf"org/name@{revision} is not in this machine's hub cache.*dvc repro -f -s prepare_base"
    ):
        base_folder()
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    assert base_folder() == snapshot
