"""The chat templates that come with Ballast, in the layouts of the model families, and which one a tokenizer gets.

A prompt must not end with a space: tokenizers keep a space with the word after it, which is the first target.
"""

import logging
from typing import TYPE_CHECKING

from components.artifacts import ROOT
from components.data.chat_text import chat_writer
from components.data.json_rows import read_utf8
from components.data.unrenderable import UnrenderableError
from components.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOGGER = logging.getLogger(__name__)
TEMPLATES = {
    "plain": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}"
        "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "chatml": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set lead = messages[0]['content'] | trim + '\n\n' %}{% set turns = messages[1:] %}"
        "{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
        "{% for turn in turns %}{{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}"
        "{{ lead if loop.first else '' }}{{ turn['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "phi3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
MARKERS = {
    "gemma": ("<start_of_turn>",),
    "llama3": ("<|start_header_id|>",),
    "chatml": ("<|im_start|>",),
    "phi3": ("<|end|>", "<|user|>", "<|assistant|>"),
}
"""A vocabulary that has these was made for this layout."""
PROBE = ({"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"})


def default_template(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """Name of the template for a tokenizer that has none, and why this one."""
    vocabulary = tokenizer.get_vocab()
    for name, markers in MARKERS.items():
        if all(marker in vocabulary for marker in markers):
            return name, f"its vocabulary has {', '.join(markers)}"
    return "plain", "its vocabulary has no token that begins a turn"


def apply_template(tokenizer: "PreTrainedTokenizerBase", choice: str) -> str:
    """Give the tokenizer the template that `data.chat_template` names, check it on one exchange, and return its name.

    A tokenizer that has none of its own gets the one of `default_template`, and the log says which and why.
    """
    name = choice
    if choice == "from_tokenizer" and not tokenizer.chat_template:
        name, reason = default_template(tokenizer)
        LOGGER.warning(
            "The tokenizer of %s has no chat template: taking %s, because %s. Name one in params.yaml (data.chat_template) "
            "if the model was trained with another.",
            tokenizer.name_or_path or "the base model",
            name,
            reason,
        )
    if name in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[name]
    elif name != "from_tokenizer":
        file = ROOT / choice
        if not file.is_file():
            raise ModelError(f"data.chat_template: {choice!r} is neither from_tokenizer, {', '.join(TEMPLATES)} nor a file")
        tokenizer.chat_template = read_utf8(file)
    _check(tokenizer, name)
    return name


def _check(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Refuse what cannot work before any row is read."""
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token; set eos_token in tokenizer_config.json"
        )
    try:
        tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(f"data.chat_template: {name!r} has several templates and no default one: {error}") from None
    writer = chat_writer(tokenizer)
    try:
        text = writer.template(PROBE)
        if PROBE[1]["content"] not in text:
            raise ModelError(f"data.chat_template: {name!r} leaves out what the assistant says: {text!r}")
        writer.write_by_turns(PROBE)
    except UnrenderableError as error:
        raise ModelError(f"data.chat_template: {name!r} cannot render one question and its answer: {error}") from None
