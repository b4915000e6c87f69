"""Sums between two log lines, divided once when the line is written."""

from typing import Any

import torch
from torch import Tensor

from components.objectives.fused_head import FusedLoss

SUMS = ("loss", "nll", "likelihood_loss", "distillation_kl", "selected", "mle_weight", "distilled", "targets")


class StepMeters:
    """State: the sums over this rank's tokens since the last log line, in the order of SUMS."""

    def __init__(self, *, per_selected_token: bool = False) -> None:
        self._sums: Tensor | None = None
        self._threshold: float | None = None
        self._per_selected_token = per_selected_token

    def add(self, terms: FusedLoss, is_target_N: Tensor, threshold: float | None) -> None:
        is_selected_N = terms.mle_weight_N > 0
        is_distilled_N = terms.distil_weight_N > 0  # prompt tokens among them, where the objective distils the prompt
        parts = (
            terms.loss_sum.detach(),
            terms.nll_N.sum(),
            (terms.mle_weight_N * terms.nll_N).sum(),
            terms.kl_N[is_distilled_N].sum(),
            is_selected_N.sum(),
            terms.mle_weight_N.sum(),
            (is_distilled_N & is_target_N).sum(),
            is_target_N.sum(),
        )
        new = torch.stack([part.double() for part in parts])
        self._sums = new if self._sums is None else self._sums + new
        self._threshold = threshold

    def sums(self, device: torch.device) -> Tensor:
        """The sums so far; the caller adds those of the other ranks."""
        return torch.zeros(len(SUMS), dtype=torch.float64, device=device) if self._sums is None else self._sums

    def take(self, sums: Tensor) -> dict[str, float]:
        """Means per target token (losses in nats) of the sums of all ranks, and the threshold; starts anew.

        `likelihood_loss`: the weighted nll of selected tokens; `distillation_kl`: the divergence of distilled tokens, those of
        the prompt included; both are divided by all target tokens, so that they add up to the loss. `threshold` is in the score's
        own unit. `loss` is per selected token where the objective divides by those.
        """
        found = dict(zip(SUMS, sums.tolist(), strict=True))
        num_targets = max(1.0, found.pop("targets"))
        means = {name: value / num_targets for name, value in found.items()}
        for share in ("selected", "distilled"):
            means[f"{share}_fraction"] = means.pop(share)
        means["masked_fraction"] = 1.0 - means["selected_fraction"]
        if self._per_selected_token and found["selected"]:
            means["loss"] = found["loss"] / found["selected"]
        if self._threshold is not None:
            means["threshold"] = self._threshold
        self._sums = None
        return means

    def state_dict(self, sums: Tensor) -> dict[str, Any]:
        """What a checkpoint between two log lines must keep: the sums of all ranks, which the first rank will carry on."""
        return {"sums": sums.tolist(), "threshold": self._threshold}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._sums = torch.tensor(state["sums"], dtype=torch.float64, device=device)
        self._threshold = state["threshold"]
