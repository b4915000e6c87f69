"""The items of several models side by side: sums and counts of each, refused where the models were asked different things."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from components.errors import ArtifactError
from components.evaluation.statistics import REPAIR, ItemScores

Figure = Literal["accuracy", "nll", "exact_match"]
_PARTS: dict[str, Callable[[Mapping[str, Any]], tuple[float, float]]] = {
    "accuracy": lambda item: (item["num_correct"], item["num_scored"]),
    "nll": lambda item: (item["nll_sum"], item["num_tokens"]),
    "exact_match": lambda item: (0.0, 0.0) if item.get("exact_match") is None else (item["exact_match"], 1.0),
}
FIGURES: tuple[Figure, ...] = ("accuracy", "nll", "exact_match")


def item_scores(runs: Sequence[Mapping[str, Any]], names: Sequence[str], figure: Figure = "accuracy") -> dict[str, ItemScores]:
    """Per set, the figure's sums by seed and counted item; sets without a counted item are left out."""
    scores: dict[str, ItemScores] = {}
    for name in names:
        items = [run["sets"][name]["items"] for run in runs]
        keys = [[(item["item_id"], item["num_tokens"], item["num_scored"]) for item in one] for one in items]
        if any(other != keys[0] for other in keys):
            raise ArtifactError(f"models were evaluated on different items of {name}. Evaluate all on the same sets: {REPAIR}")
        parts = np.array([[_PARTS[figure](item) for item in one] for one in items], dtype=np.float64)
        if not parts.size:
            continue
        counts_I = parts[0, :, 1]
        kept = counts_I > 0
        if kept.any():
            ids = tuple(f"{key[0]} ({key[1]} tokens)" for key, is_kept in zip(keys[0], kept, strict=True) if is_kept)
            scores[name] = ItemScores(ids, parts[:, kept, 0], counts_I[kept])
    return scores
