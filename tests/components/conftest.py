"""Tokenizers and chat formats to test with: the structures of the published ones, trained on a few lines in the test itself."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.components.mlflow_stores import empty_store, running_server, server, store

__all__ = ["empty_store", "running_server", "server", "store"]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXT = [
    "the quick brown fox jumps over the lazy dog and the cat sat on the mat",
    "User: how many eggs do the hens lay in a week? Assistant: the hens lay fourteen eggs.",
    "system: answer in one word. assistant user model question answer 1 2 3 4 5 6 7 8 9 0",
] * 4


@dataclass(frozen=True)
class ChatFormat:
    """A chat template with the special tokens it needs; `end_of_turn` closes an assistant's turn."""

    template: str
    bos: str | None
    eos: str
    end_of_turn: str
    special: tuple[str, ...] = ()
    has_system: bool = True


FORMATS = {
    "gemma": ChatFormat(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "<bos>",
        "<eos>",
        "<end_of_turn>",
        ("<start_of_turn>", "<end_of_turn>"),
        has_system=False,
    ),
    "llama3": ChatFormat(
        "{% for message in messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
        " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "phi3": ChatFormat(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<s>",
        "<|endoftext|>",
        "<|end|>",
        ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "mistral": ChatFormat(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
        "<s>",
        "</s>",
        "</s>",
    ),
    "plain": ChatFormat("plain", "<s>", "</s>", "</s>"),
    "plain_without_bos": ChatFormat("plain", None, "</s>", "</s>"),
    "chatml": ChatFormat("chatml", None, "<|endoftext|>", "<|im_end|>", ("<|im_start|>", "<|im_end|>")),
}
KINDS = ("byte_level", "byte_fallback", "metaspace")


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """`make_tokenizer(kind, format_name)`: a fast tokenizer of that kind with the format's tokens and template."""
    made: dict[tuple[str, str | None], Any] = {}

    def make(kind: str, format_name: str | None = None) -> Any:
        if (kind, format_name) not in made:
            made[kind, format_name] = _make(kind, None if format_name is None else FORMATS[format_name])
        return made[kind, format_name]

    return make


@pytest.fixture
def make_new_tokenizer() -> Callable[..., Any]:
    """`make_new_tokenizer(kind, special)`: one without a chat template, to be changed by the test."""
    from transformers import PreTrainedTokenizerFast

    def make(kind: str, special: tuple[str, ...]) -> Any:
        fast = PreTrainedTokenizerFast(
            tokenizer_object=_train(kind),
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            additional_special_tokens=list(special),
            clean_up_tokenization_spaces=False,
        )
        fast.chat_template = None
        return fast

    return make


def _make(kind: str, chat: ChatFormat | None) -> Any:
    from transformers import PreTrainedTokenizerFast

    from components.data.chat_templates import apply_template

    fast = PreTrainedTokenizerFast(
        tokenizer_object=_train(kind),
        unk_token="<unk>",
        bos_token=chat.bos if chat else "<s>",
        eos_token=chat.eos if chat else "</s>",
        additional_special_tokens=list(chat.special) if chat else [],
        clean_up_tokenization_spaces=False,
    )
    if chat is not None:
        fast.chat_template = None if chat.template in ("plain", "chatml") else chat.template
        apply_template(fast, chat.template if chat.template in ("plain", "chatml") else "from_tokenizer")
    return fast


def _train(kind: str) -> Any:
    """Byte-level BPE (GPT-2, LLaMA 3), BPE with byte fallback (LLaMA 2, Gemma), the same over metaspace words (T5)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "byte_level":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(
            TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], initial_alphabet=alphabet)
        )
        return tokenizer
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"]))
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "byte_fallback":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        spaces = decoders.Replace("▁", " ")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        spaces = decoders.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer
