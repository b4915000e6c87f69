"""Sums between two log lines, divided once when the line is written."""

from typing import Any

import torch
from torch import Tensor

from components.objectives.token_loss import ObjectiveTerms

MEANS = ("loss", "nll", "selected_nll", "distillation_kl", "selected_fraction")


class StepMeters:
    """State: the sums over this rank's targets since the last log line, in the order of MEANS, and their number."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._threshold: float | None = None

    def add(self, terms: ObjectiveTerms, threshold: float | None) -> None:
        parts = (terms.loss_sum.detach(), terms.nll_sum, terms.selected_nll_sum, terms.kl_sum, terms.num_selected)
        new = torch.stack([*(part.double() for part in parts), torch.full_like(terms.nll_sum, terms.num_targets).double()])
        self._sums = new if self._sums is None else self._sums + new
        self._threshold = threshold

    def sums(self, device: torch.device) -> Tensor:
        """The sums so far; the caller adds those of the other ranks."""
        return torch.zeros(len(MEANS) + 1, dtype=torch.float64, device=device) if self._sums is None else self._sums

    def take(self, sums: Tensor) -> dict[str, float]:
        """Means per target token (losses in nats) of the sums of all ranks, and the threshold; starts anew."""
        *parts, num_targets = sums.tolist()
        means = {name: part / max(1.0, num_targets) for name, part in zip(MEANS, parts, strict=True)}
        means["masked_fraction"] = 1.0 - means["selected_fraction"]
        if self._threshold is not None:
            means["threshold_nats"] = self._threshold
        self._sums = None
        return means

    def state_dict(self, sums: Tensor) -> dict[str, Any]:
        """What a checkpoint between two log lines must keep: the sums of all ranks, which the first rank will carry on."""
        return {"sums": sums.tolist(), "threshold": self._threshold}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._sums = torch.tensor(state["sums"], dtype=torch.float64, device=device)
        self._threshold = state["threshold"]
