"""Sums between two log lines, divided once when the line is written."""

import torch
from torch import Tensor

from components.objectives.token_loss import ObjectiveTerms


class StepMeters:
    """Per rank: the curves of a run with several ranks are those of rank 0."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_targets = 0
        self._threshold: float | None = None

    def add(self, terms: ObjectiveTerms, threshold: float | None) -> None:
        parts = {
            "nll": terms.nll_sum,
            "selected_nll": terms.selected_nll_sum,
            "distillation_kl": terms.kl_sum,
            "selected_fraction": terms.num_selected.float(),
        }
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._num_targets += terms.num_targets
        self._threshold = threshold

    def take(self) -> dict[str, float]:
        """Means per target token since the last call: nll, selected_nll, distillation_kl in nats, selected_ and masked_fraction."""
        total = max(1, self._num_targets)
        means = {name: float(value) / total for name, value in self._sums.items()}
        means["masked_fraction"] = 1.0 - means.get("selected_fraction", 1.0)
        if self._threshold is not None:
            means["threshold_nats"] = self._threshold
        self.__init__()  # type: ignore[misc]
        return means
