"""What the tests of token scores share: rows, an identity, columns of known numbers."""

from typing import Any

import torch
from torch import Tensor

from components.token_scores.format import ScoresIdentity
from components.token_scores.rows import record_starts
from tests.conftest import Row, build_rows

ROWS = build_rows(30)
SETTINGS = {"token_scores.reference": "cross_fit", "token_scores.num_members": 4, "training.learning_rate": 0.002}


def build_scores_identity(**changes: Any) -> ScoresIdentity:
    fields = {"model_fingerprint": "m", "tokenizer_fingerprint": "t", "data_fingerprint": "d", "settings": dict(SETTINGS)}
    return ScoresIdentity(**{**fields, **changes})


def build_columns(rows: list[Row] = ROWS, *names: str) -> dict[str, Tensor]:
    num_tokens = record_starts(rows)[-1]
    return {name: torch.arange(num_tokens) / 7 + number for number, name in enumerate(names or ("reference_nll", "own"))}
