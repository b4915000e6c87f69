"""Laws of the registry: weights are stored once and load anywhere, an alias only ever points at what was seen to work."""

import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from components import registry
from components.errors import ModelError, TrackingError
from components.registry import RegisteredVersion, get_version_by_alias, register_candidate
from components.tracking_store import open_client

PROMPTS = ["a b c", "d d"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + END }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer(end: str = "<|end|>", *, spelling: bool = False) -> PreTrainedTokenizerFast:
    """It adds a begin-of-text token of its own, and its end of text is not the template's end of turn: traps of real models."""
    special = ["<pad>", "<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {word: index for index, word in enumerate([*special, *"abcdefgh", "END"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if spelling:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[4:],
    )
    fast.chat_template = TEMPLATE.replace("END", repr(end))
    return fast


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5}
    return LlamaForCausalLM(LlamaConfig(**sizes, **layers, bos_token_id=2, eos_token_id=3, pad_token_id=0)).to(dtype)


def always(model: LlamaForCausalLM, *ids: int) -> LlamaForCausalLM:
    """A model that says the ids one after the other, whatever it is asked; it begins with the first."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(16))
        model.lm_head.weight[ids[0]].fill_(1.0)
        for now, following in itertools.pairwise(ids):
            model.lm_head.weight[following, now] = 9.0
    return model


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def register(folder: Path, name: str, **changes: Any) -> RegisteredVersion:
    values: dict[str, Any] = {
        "tags": {"git.commit": "abc"},
        "metrics": {"ood.accuracy": 0.75},
        "description": "the best of three",
        "run_name": "sft-0",
        "prompts": PROMPTS,
        "max_new_tokens": 8,
    }
    return register_candidate(folder, name=name, **{**values, **changes})


def model_id_of(version: RegisteredVersion) -> str:
    return str(open_client().get_model_version(version.name, str(version.version)).source).removeprefix("models:/")


def ask(version: RegisteredVersion, prompt: str) -> dict[str, Any]:
    import mlflow

    location = open_client().get_logged_model(model_id_of(version)).artifact_location
    return dict(mlflow.pyfunc.load_model(location).predict({"messages": [{"role": "user", "content": prompt}]})[0])


def weights_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setattr(registry, "WORK", folder / "work")
        patch.setattr(registry, "LOCK", folder / "work" / "registry.lock")
        yield folder


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("candidate"), make_model())


@pytest.fixture(scope="module")
def first(store: Path, candidate: Path) -> RegisteredVersion:
    """Registered with no way to the network."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"network: {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.getaddrinfo", refuse)
        patch.setattr("socket.socket.connect", refuse)
        return register(candidate, "ballast")


def test_importing_imports_no_mlflow_and_no_torch() -> None:
    code = "import sys, components.registry; sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(registry.__file__).parent.parent).returncode == 0


def test_weights_are_stored_once_and_only_as_safetensors(store: Path, candidate: Path, first: RegisteredVersion) -> None:
    [stored] = [path for path in weights_below(store) if first.run_id in (path.parents[1] / "MLmodel").read_text()]
    original = load_file(candidate / "model.safetensors")
    assert {key: value.tolist() for key, value in load_file(stored).items()} == {
        key: value.tolist() for key, value in original.items()
    }
    suffixes = {path.suffix for path in store.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja", ".yaml", ".txt", ".md", ".db", ".lock", ""}
    assert first.artifact_bytes == sum(path.stat().st_size for path in stored.parents[1].rglob("*") if path.is_file())
    assert not list((store / "work").glob("register.*"))


def test_the_alias_loads_and_generates_in_a_process_without_this_repository(
    store: Path, candidate: Path, first: RegisteredVersion, tmp_path: Path
) -> None:
    code = """
import importlib.util, json, socket, sys
def refuse(*arguments, **options): raise AssertionError("network")
socket.getaddrinfo = socket.socket.connect = refuse
import mlflow, pandas
assert importlib.util.find_spec("components") is None
model = mlflow.pyfunc.load_model("models:/ballast@challenger")
chats = [[{"role": "user", "content": prompt}] for prompt in json.loads(sys.argv[1])]
answers = model.predict(pandas.DataFrame({"messages": chats}))
json.dump([[answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]] for answer in answers], sys.stdout)
"""
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-I", "-c", code, json.dumps(PROMPTS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    model, tokenizer = LlamaForCausalLM.from_pretrained(candidate), make_tokenizer()
    expected = []
    for prompt in PROMPTS:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
        )
        new = model.generate(**chat, do_sample=False, max_new_tokens=8, eos_token_id=[3, 6])[0, chat["input_ids"].shape[1] :]
        expected.append([tokenizer.decode(new, skip_special_tokens=True), len(new)])
    assert json.loads(done.stdout) == expected
    assert list(tmp_path.iterdir()) == []


def test_a_version_says_where_it_came_from_and_how_good_it_is(store: Path, first: RegisteredVersion) -> None:
    client = open_client()
    version = client.get_model_version("ballast", str(first.version))
    assert (version.description, version.tags["git.commit"]) == ("the best of three", "abc")
    assert len(version.tags["ballast.model_fingerprint"]) == 32
    run = client.get_run(first.run_id)
    assert (run.info.status, run.info.run_name, run.data.metrics) == ("FINISHED", "sft-0", {"ood.accuracy": 0.75})
    logged = client.get_logged_model(model_id_of(first))
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("ood.accuracy", 0.75)]
    [experiment] = client.search_experiments(filter_string="name = 'Ballast'")
    assert client.search_logged_models([experiment.experiment_id], "metrics.`ood.accuracy` > 0.7")[0].model_id == logged.model_id
    artifacts = Path(logged.artifact_location)
    assert json.loads((artifacts / "input_example.json").read_text()) == {"messages": [{"role": "user", "content": "a b c"}]}
    assert "signature:" in (artifacts / "MLmodel").read_text()
    requirements = (artifacts / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements][:3] == ["mlflow", "torch", "transformers"]
    assert all("==" in line and "+" not in line for line in requirements)
    told = json.loads(Path(client.download_artifacts(first.run_id, "generations.json")).read_text())
    assert [row["prompt"] for row in told["generations"]] == PROMPTS


def test_the_same_weights_again_are_the_same_version_and_no_second_copy(store: Path, candidate: Path) -> None:
    one = register(candidate, "again")
    copies = weights_below(store)
    two = register(candidate, "again", alias="other", tags={"gate": "passed"}, metrics={"ood.accuracy": 0.5, "bad": math.nan})
    assert (two.version, two.alias, two.run_id, weights_below(store)) == (one.version, "other", one.run_id, copies)
    client = open_client()
    assert len(client.search_model_versions("name = 'again'")) == 1
    assert client.get_model_version("again", "1").tags.items() >= {"git.commit": "abc", "gate": "passed"}.items()
    assert client.get_run(one.run_id).data.metrics == {"ood.accuracy": 0.5}
    assert get_version_by_alias("again", "challenger") == one


def test_the_same_weights_under_another_name_are_not_copied(store: Path, candidate: Path, first: RegisteredVersion) -> None:
    copies = weights_below(store)
    assert register(candidate, "namesake").artifact_bytes == first.artifact_bytes
    assert weights_below(store) == copies


def test_other_weights_are_another_version_and_take_the_alias(store: Path, tmp_path: Path) -> None:
    versions = [register(save(tmp_path / str(seed), make_model(seed)), "two") for seed in (11, 12)]
    assert [version.version for version in versions] == [1, 2]
    assert get_version_by_alias("two", "challenger") == versions[1]
    open_client().set_registered_model_alias("two", "challenger", "1")
    assert get_version_by_alias("two", "challenger") == versions[0]


def test_an_interrupted_registration_goes_on_with_the_weights_it_stored(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    folder = save(tmp_path / "model", make_model(21))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "create_model_version", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        register(folder, "interrupted")
    assert get_version_by_alias("interrupted", "challenger") is None
    copies = weights_below(store)
    assert register(folder, "interrupted").version == 1
    assert weights_below(store) == copies


def test_weights_that_were_deleted_are_stored_again(store: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", make_model(31))
    one = register(folder, "deleted")
    [lost] = [path for path in weights_below(store) if one.run_id in (path.parents[1] / "MLmodel").read_text()]
    for path in sorted(lost.parents[1].rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    two = register(folder, "deleted")
    assert (two.version, two.artifact_bytes) == (2, one.artifact_bytes)


def test_a_model_that_does_not_generate_gets_no_version(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("weights are damaged")

    monkeypatch.setattr(registry, "generate_answers", fail)
    with pytest.raises(TrackingError, match="weights are damaged"):
        register(save(tmp_path / "model", make_model(41)), "broken")
    assert get_version_by_alias("broken", "challenger") is None
    assert open_client().search_model_versions("name = 'broken'") == []


def test_two_at_once_store_the_same_weights_once(store: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", make_model(51))
    before = len(weights_below(store))
    threads = [threading.Thread(target=register, args=(folder, "racing")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(open_client().search_model_versions("name = 'racing'")) == 1
    assert len(weights_below(store)) == before + 1


@pytest.mark.parametrize(
    ("end", "spelling", "said", "answer"),
    [
        ("<|end|>", False, (7, 8, 6), "a b"),
        ("</s>", False, (7, 8, 3), "a b"),
        (" END", False, (7, 8, 15), "a b END"),
        ("fg", True, (7, 8, 12, 13), "abfg"),
    ],
    ids=["a token of its own", "the end of text", "a word", "letters"],
)
def test_a_generation_stops_where_the_template_ends_a_turn(
    store: Path, tmp_path: Path, end: str, spelling: bool, said: tuple[int, ...], answer: str
) -> None:
    folder = save(tmp_path / "model", always(make_model(), *said, 7), make_tokenizer(end, spelling=spelling))
    found = ask(register(folder, "stops"), "c")
    assert found["usage"]["completion_tokens"] == len(said)
    assert (found["choices"][0]["finish_reason"], found["choices"][0]["message"]["content"]) == ("stop", answer)


def test_a_turn_that_a_closed_vocabulary_cannot_end_goes_on_to_the_limit(store: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", always(make_model(), 7), make_tokenizer(" f g"))
    assert ask(register(folder, "closed"), "c")["choices"][0]["finish_reason"] == "length"


def test_a_generation_stops_at_the_limit_of_tokens(store: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", always(make_model(), 7))
    answer = ask(register(folder, "endless"), "c")
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (8, "length")
    assert answer["choices"][0]["message"]["content"] == "a a a a a a a a"


def test_weights_keep_their_precision(store: Path, tmp_path: Path) -> None:
    version = register(save(tmp_path / "model", make_model(61, torch.bfloat16)), "precise")
    [stored] = [path for path in weights_below(store) if version.run_id in (path.parents[1] / "MLmodel").read_text()]
    assert {tensor.dtype for tensor in load_file(stored).values()} == {torch.bfloat16}


def test_what_cannot_be_served_is_refused_with_its_place(store: Path, tmp_path: Path) -> None:
    silent = make_tokenizer()
    silent.chat_template = None
    with pytest.raises(ModelError, match=r"silent: .*no chat template"):
        register(save(tmp_path / "silent", make_model(71), silent), "refused")
    adapter = save(tmp_path / "adapter", make_model(72))
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter is a LoRA adapter.*merge_and_unload"):
        register(adapter, "refused")
    with pytest.raises(ModelError, match=r"missing has no config\.json"):
        register(tmp_path / "missing", "refused")
    assert open_client().search_model_versions("name = 'refused'") == []


def test_an_unknown_model_or_alias_is_none(store: Path, first: RegisteredVersion) -> None:
    assert get_version_by_alias("nobody", "challenger") is None
    assert get_version_by_alias("ballast", "nobody") is None


def test_the_alias_loads_as_a_transformers_model_and_generates_and_the_card_lies_beside_the_weights(
    store: Path, candidate: Path, tmp_path: Path
) -> None:
    version = register(save(tmp_path / "model", make_model(81)), "carded", model_card="---\nlicense: mit\n---\n# A card\n")
    open_client().set_registered_model_alias("carded", "champion", str(version.version))
    code = """
import socket
def refuse(*arguments, **options): raise AssertionError("network")
socket.getaddrinfo = socket.socket.connect = refuse
import mlflow
pipeline = mlflow.transformers.load_model("models:/carded@champion")
chat = pipeline([{"role": "user", "content": "a b"}], do_sample=False, max_new_tokens=4)[0]["generated_text"]
print("ANSWER", chat[-1]["role"])
"""
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "ANSWER assistant" in done.stdout, done.stderr
    stored = Path(open_client().get_logged_model(model_id_of(version)).artifact_location)
    assert (stored / "model" / "README.md").read_text().endswith("# A card\n")
