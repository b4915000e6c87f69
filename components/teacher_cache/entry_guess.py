"""How many entries a row will keep, guessed from its tokens alone: rows of code and rows of chat differ more than lengths tell.

A token's entries follow what came before it, and the token right before tells a good part of that. The probe's totals are scaled
by these guesses in place of numbers of tokens, which costs no pass through a model; where they explain nothing, nothing is lost.

Shapes: S probed records, N kept tokens of a record, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from components.data.training_rows import TargetRow

Array = npt.NDArray[Any]
NUM_FOLDS = 8


def contexts_of(row: TargetRow, positions: str) -> Array:
    """The token before each kept one, [N]."""
    ids_T = np.asarray(row.input_ids[:-1], dtype=np.int64)
    return ids_T if positions == "all" else ids_T[np.asarray(row.is_target[1:], dtype=bool)]


def count_contexts(rows: Iterable[TargetRow], positions: str, vocabulary_size: int) -> Array:
    """How often each token id stands before a kept token, [V]."""
    counts_V = np.zeros(vocabulary_size, dtype=np.int64)
    for row in rows:
        np.add.at(counts_V, contexts_of(row, positions), 1)
    return counts_V


def guess_entries(contexts: Sequence[Array], kept: Sequence[Array], counts_V: Array) -> tuple[Array, float]:
    """Guessed entries of every probed record, [S], and of all records together.

    `contexts`, `kept`: a probed record's contexts and entries, [N] each. A record is guessed from records of other folds, so that
    what is left over is as large as it would be for a record that nobody has looked at.
    """
    fold_S = np.arange(len(contexts)) % NUM_FOLDS
    guessed_S = np.zeros(len(contexts))
    for fold in set(fold_S.tolist()):
        others = np.flatnonzero(fold_S != fold).tolist()
        mean_V = _mean_entries([contexts[place] for place in others], [kept[place] for place in others], len(counts_V))
        for place in np.flatnonzero(fold_S == fold).tolist():
            guessed_S[place] = mean_V[contexts[place]].sum()
    return guessed_S, float(counts_V @ _mean_entries(contexts, kept, len(counts_V)))


def _mean_entries(contexts: Sequence[Array], kept: Sequence[Array], vocabulary_size: int) -> Array:
    """Mean entries after each token id, [V], drawn towards the mean of all; 1 where nothing was seen at all.

    An id seen n times counts n, the mean of all as many as tells no more than the id does: the variance within the ids over that
    between them (empirical Bayes).
    """
    if not contexts:
        return np.ones(vocabulary_size)
    contexts_M, kept_M = np.concatenate(contexts), np.concatenate(kept).astype(float)
    seen_V = np.bincount(contexts_M, minlength=vocabulary_size)
    sum_V = np.bincount(contexts_M, weights=kept_M, minlength=vocabulary_size)
    left_M = kept_M - (sum_V / np.maximum(1, seen_V))[contexts_M]
    within = float((left_M**2).sum()) / max(1, len(kept_M) - int((seen_V > 0).sum()))
    between = max(float(kept_M.var()) - within, 1e-3 * within, 1e-9)
    prior = max(within / between, 1e-3)
    mean_V: Array = (sum_V + prior * kept_M.mean()) / (seen_V + prior)
    return mean_V
