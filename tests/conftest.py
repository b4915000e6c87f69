"""A tiny random Llama, rows of unequal length and their teacher cache: small enough to train in a blink on one thread.

Plain functions, so that a test's own subprocess can import them too: `from tests.conftest import build_model`.
"""

import os
import random
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from components.artifacts import fingerprint_row
from components.teacher_cache.format import CacheIdentity
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.writer import CaptureSettings, write_cache

VOCABULARY = 50
PAD = 0
torch.set_num_threads(1)


@dataclass(frozen=True)
class Row:
    input_ids: list[int]
    is_target: list[bool]

    @property
    def fingerprint(self) -> str:
        return fingerprint_row(self.input_ids, self.is_target)


def build_model(seed: int = 0, **changes: Any) -> Any:
    """Weights large enough that its laws are far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **layers, "pad_token_id": PAD, **changes}))


def build_rows(num_rows: int, seed: int = 0) -> list[Row]:
    """Three to twenty tokens each; a prompt of one or more, then targets."""
    draw = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        length = draw.randint(3, 20)
        prompt = draw.randint(1, length - 1)
        tokens = [draw.randrange(1, VOCABULARY) for _ in range(length)]
        rows.append(Row(tokens, [position >= prompt for position in range(length)]))
    return rows


def build_identity(**changes: Any) -> CacheIdentity:
    fields = {"model_fingerprint": "m", "tokenizer_fingerprint": "t", "data_fingerprint": "d"}
    settings = {"num_entries": 8, "temperature": 1.0, "precision": "fp32"}
    return CacheIdentity(**{**fields, **settings, **changes})


def build_cache(
    folder: Path, model: Any, rows: Sequence[Row], *, shard_tokens: int = 1000, **identity: Any
) -> TeacherCacheReader:
    """Capture `rows` with `model` under `folder`, and open what was captured."""
    wanted = build_identity(**identity)
    with patch("components.artifacts.WORK", folder / ".work"):
        settings = CaptureSettings(batch_tokens=200, shard_tokens=shard_tokens)
        write_cache(model, rows, wanted, settings, target=folder / "cache", work=folder / ".work")
    return TeacherCacheReader(folder / "cache", wanted)


def start_child(work: Callable[[], Any]) -> int:
    """Run `work` in a process of its own (forked: it starts in milliseconds) and return its id; a fault ends it with code 1."""
    from components.errors import BallastError

    child = os.fork()
    if child:
        return child
    code = 1
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(120)  # a child that hangs fails its own test, not the whole run
    try:
        work()
        code = 0
    except BallastError as error:
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def end_of_child(child: int) -> int:
    """Its exit code; minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
