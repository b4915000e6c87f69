"""What the mask explorer knows of every target token before any training: scores, gradient mass, and the groups it is in.

Shapes: T tokens of all rows, N target tokens, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from components.data.tokenized import FlatRows
from components.errors import DataError
from components.teacher_cache.sidecar import Floats, predicted_targets, read_sidecar
from components.uncertainty.token_classes import CLASSES, classify_targets, classify_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SOURCES = 20
POSITIONS = (("first", 1), ("2 to 4", 4), ("5 to 16", 16), ("17 to 64", 64), ("65 and later", None))
"""Place among the targets of its turn: name and last place."""


@dataclass(frozen=True)
class Grouping:
    """`index_N` counts in `names`."""

    names: tuple[str, ...]
    index_N: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenTable:
    """`mass_N`: expected gradient mass; `groupings`: what the tokens are counted by."""

    scores: Mapping[str, Floats]
    mass_N: Floats
    groupings: Mapping[str, Grouping]

    @property
    def num_tokens(self) -> int:
        return len(self.mass_N)


def read_tokens(rows: FlatRows, cache: Path, tokenizer: "PreTrainedTokenizerBase") -> TokenTable:
    """All target tokens with the base's view of them, from the cache's sidecar alone."""
    is_target_T = predicted_targets(rows)
    if not is_target_T.any():
        raise DataError(
            f"none of the {len(rows.fingerprints)} training rows has a target token, so there is nothing for a mask to keep. "
            "Give rows with answers (data.path), or raise data.max_length where it cuts them off, in params.yaml, and run: "
            "dvc repro explore_mask"
        )
    sidecar = read_sidecar(cache, rows, ("label_logprob", "entropy"))
    return TokenTable(
        scores={"teacher_nll": -sidecar["label_logprob"], "entropy": sidecar["entropy"]},
        mass_N=gradient_mass(sidecar["label_logprob"]),
        groupings={
            "dataset": group_sources(rows, is_target_T),
            "class": group_classes(rows.input_ids[is_target_T], turn_starts(rows)[is_target_T], tokenizer),
            "position": group_positions(places_in_turn(rows)[is_target_T]),
        },
    )


def gradient_mass(label_logprob_N: Floats) -> Floats:
    """||softmax - onehot||_1 = 2 (1 - p_label), [N]: how hard maximum likelihood pulls at a token's logits.

    At step 0, where the student is the base, and on the logits: what reaches the weights depends on the hidden states too.
    """
    mass_N: Floats = -2 * np.expm1(label_logprob_N)
    return mass_N


def turn_starts(rows: FlatRows) -> npt.NDArray[np.bool_]:
    """Target tokens whose row begins with them or whose predecessor is none, [T]."""
    is_target_T = rows.is_target
    before_T = np.concatenate([[False], is_target_T[:-1]]) if len(is_target_T) else is_target_T
    starts = rows.row_starts[:-1]
    before_T[starts[starts < len(before_T)]] = False
    return is_target_T & ~before_T


def places_in_turn(rows: FlatRows) -> npt.NDArray[np.int64]:
    """1 for the first target of a turn, 2 for the next, [T]; without meaning at other tokens."""
    place_T = np.arange(len(rows.is_target))
    latest_start_T = np.maximum.accumulate(np.where(turn_starts(rows), place_T, 0)) if len(place_T) else place_T
    return place_T - latest_start_T + 1


def group_positions(place_N: npt.NDArray[np.int64]) -> Grouping:
    limits = [last for _, last in POSITIONS if last is not None]
    return Grouping(tuple(name for name, _ in POSITIONS), np.searchsorted(limits, place_N))


def group_sources(rows: FlatRows, is_target_T: npt.NDArray[np.bool_]) -> Grouping:
    """By file; of more than MAX_SOURCES files the smaller ones become one group."""
    names, source_of_row = np.unique(np.array(rows.sources, dtype=object), return_inverse=True)
    source_N = np.repeat(source_of_row, np.diff(rows.row_starts))[is_target_T]
    order = np.argsort(-np.bincount(source_N, minlength=len(names)), kind="stable")
    num_own = len(names) if len(names) <= MAX_SOURCES else MAX_SOURCES - 1
    rank_of = np.empty(len(names), dtype=np.int64)
    rank_of[order] = np.minimum(np.arange(len(names)), num_own)
    kept = tuple(str(names[source]) for source in order[:num_own])
    other = () if num_own == len(names) else (f"other ({len(names) - num_own} files)",)
    return Grouping((*kept, *other), rank_of[source_N])


def group_classes(
    label_N: npt.NDArray[np.int32], is_turn_start_N: npt.NDArray[np.bool_], tokenizer: "PreTrainedTokenizerBase"
) -> Grouping:
    """By token class; only the words that occur are looked at, so a large vocabulary costs nothing."""
    words, compact_N = np.unique(label_N, return_inverse=True)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} | {*tokenizer.all_special_ids}
    texts = [str(tokenizer.decode([int(word)])) for word in words]
    class_of_word = classify_vocabulary(texts, [place for place, word in enumerate(words) if int(word) in special])
    class_N = classify_targets(class_of_word, torch.from_numpy(compact_N), torch.from_numpy(is_turn_start_N))
    return Grouping(tuple(name.replace("_", " ") for name in CLASSES), class_N.numpy().astype(np.int64))
