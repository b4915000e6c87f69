"""Published conversations, published vocabularies: a row's targets say what the assistant says, or it is refused by kind."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.data.chat_templates import apply_template
from components.data.faults import BadRowError
from components.data.rendering import render_batch
from components.data.schemas import parse_rows
from components.data.unrenderable import UnrenderableError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no real data beside the project (../shared/data is absent)")
FILES = ("alpaca/alpaca_data.json", "gsm8k/train.jsonl", "sharegpt/sharegpt_zh.jsonl", "sharegpt/oasst_en_sharegpt.json")


@pytest.fixture(scope="module", params=["gpt2 chatml", "gpt2 llama3", "stories260K gemma", "stories260K plain"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    name, template = request.param.split()
    made = gpt2() if name == "gpt2" else stories()
    apply_template(made, template)
    return made


def gpt2() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = SHARED / "tokenizers" / "gpt2"
    backend = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", additional_special_tokens=special)


def stories() -> Any:
    from components.models import load_tokenizer

    return load_tokenizer(SHARED / "models" / "stories260K")


def conversations(file: Path) -> Iterator[Any]:
    text = file.read_text(encoding="utf-8")
    for row in json.loads(text) if file.suffix == ".json" else map(json.loads, text.splitlines()):
        try:
            yield from parse_rows(row)[1]
        except BadRowError:
            continue


@pytest.mark.parametrize("name", FILES)
def test_the_targets_of_published_rows_decode_to_their_answers(name: str, tokenizer: Any) -> None:
    chats = list(conversations(SHARED / "train" / name))[:600]
    kinds: Counter[str] = Counter()
    for messages, row in zip(chats, render_batch(chats, tokenizer, 1 << 20), strict=True):
        if isinstance(row, UnrenderableError):
            kinds[row.kind.value] += 1
            continue
        assert row.end_of_turn_is_target
        targets = [token for token, is_target in zip(row.input_ids, row.is_target, strict=True) if is_target]
        said = tokenizer.backend_tokenizer.decode(targets, skip_special_tokens=False)
        for message in messages:
            if message["role"] == "assistant":
                assert message["content"].strip() in said
    print(f"\n{name}: {len(chats)} conversations, refused {dict(kinds)}")
    assert set(kinds) <= {"control_token", "lossy"} and kinds.total() <= len(chats) // 50
