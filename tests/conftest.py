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

import pytest
import torch
from torch import Tensor

from components.artifacts import fingerprint_row
from components.objectives.sparse_target import TeacherTargets
from components.teacher_cache.encoding import encode, logprob_of_code, pad_entries
from components.teacher_cache.format import CacheIdentity, CacheManifest
from components.teacher_cache.reader import TeacherCacheReader
from components.teacher_cache.reduction import reduce_logits
from components.teacher_cache.shard_plan import CaptureSettings
from components.teacher_cache.writer import ALONE, Rank, Teacher, write_cache

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
    fields = {"model_fingerprint": "m", "tokenizer_fingerprint": "t", "template_fingerprint": "c", "data_fingerprint": "d"}
    settings = {"max_entries": 8, "tail_mass": 0.0, "probability_bits": 16, "temperature": 1.0}
    settings |= {"source": "capture", "precision": "fp32", "positions": "targets"}
    return CacheIdentity(**{**fields, **settings, **changes})


def capture_rows(
    folder: Path, model: Any, rows: Sequence[Row], identity: CacheIdentity, *, shard_tokens: int = 1000, rank: Rank = ALONE
) -> CacheManifest | None:
    """Capture `rows` with `model` into folder/cache."""
    return write_cache(
        Teacher(lambda: model, model.config.vocab_size),
        rows,
        identity,
        CaptureSettings(batch_tokens=200, shard_tokens=shard_tokens),
        target=folder / "cache",
        work=folder / ".work",
        rank=rank,
    )


def build_cache(
    folder: Path, model: Any, rows: Sequence[Row], *, shard_tokens: int = 1000, **identity: Any
) -> TeacherCacheReader:
    """Capture `rows` with `model` under `folder`, and open what was captured."""
    wanted = build_identity(**identity)
    capture_rows(folder, model, rows, wanted, shard_tokens=shard_tokens)
    return TeacherCacheReader(folder / "cache", wanted)


def stored_laws(
    logits_NV: Tensor,
    labels_N: Tensor,
    max_entries: int,
    temperature: float = 1.0,
    *,
    tail_mass: float = 0.0,
    probability_bits: int = 16,
) -> TeacherTargets:
    """The laws of `logits_NV` as a cache hands them out again: cut, rounded, padded."""
    laws = reduce_logits(logits_NV, labels_N, max_entries=max_entries, temperature=temperature)
    tokens = encode(laws, tail_mass, probability_bits)
    logprobs_M = logprob_of_code(probability_bits)[tokens.entry_codes_M]
    ids_NK, logprobs_NK = pad_entries(tokens.entry_ids_M, logprobs_M, tokens.columns["num_entries"])
    tail_N, label_N = (torch.from_numpy(tokens.columns[name].astype("float32")) for name in ("tail_logprob", "label_logprob"))
    return TeacherTargets(ids_NK.long(), logprobs_NK, tail_N, label_N)


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
