"""Ensembles, one member at a time: mutual information without ever holding the laws of all members.

Shapes: N target tokens of a chunk, V vocabulary, M members. Entropies in nats.

An ensemble is a list of members; a member is a function that gives a context in which a model is that member, so that
several models, several LoRA adapters of one model, and one model with dropout (Gal & Ghahramani 2016, arXiv 1506.02142) look
the same to whoever scores with them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import ModelError
from components.uncertainty.scores import token_entropy
from components.uncertainty.selection import keyed_generator

Member = Callable[[], AbstractContextManager[nn.Module]]


class RunningEnsemble:
    """State: the log of the summed laws [N, V], the summed entropies [N] and the number of members so far.

    Two [N, V] tensors are alive at a time (the sum and the newest member), whatever M; give it chunks of tokens.
    """

    def __init__(self) -> None:
        self._log_sum_NV: Tensor | None = None
        self._entropy_sum_N: Tensor | None = None
        self.num_members = 0

    def add(self, logprobs_NV: Tensor) -> None:
        """One more member's laws of the same tokens."""
        entropy_N = token_entropy(logprobs_NV)
        if self._log_sum_NV is None or self._entropy_sum_N is None:
            self._log_sum_NV, self._entropy_sum_N = logprobs_NV, entropy_N
        else:
            self._log_sum_NV = torch.logaddexp(self._log_sum_NV, logprobs_NV)
            self._entropy_sum_N = self._entropy_sum_N + entropy_N
        self.num_members += 1

    def mean_logprobs(self) -> Tensor:
        """The ensemble's own law, [N, V]: the log of the mean of its members' laws."""
        assert self._log_sum_NV is not None, "an ensemble has at least one member"
        return self._log_sum_NV - math.log(self.num_members)

    def mutual_information(self) -> Tensor:
        """Entropy of the mean law minus the mean entropy, [N] in [0, log M] (Houlsby et al. 2011, arXiv 1112.5745).

        What the members disagree about: epistemic uncertainty as far as their differences stand for it. Rounding below zero is
        cut off.
        """
        assert self._entropy_sum_N is not None, "an ensemble has at least one member"
        return (token_entropy(self.mean_logprobs()) - self._entropy_sum_N / self.num_members).clamp(min=0.0)


@torch.no_grad()
def score_members(members: Sequence[Member], logits_of: Callable[[nn.Module], Tensor]) -> RunningEnsemble:
    """Run every member over one chunk: `logits_of` gives a model's logits [N, V] of the chunk's tokens."""
    ensemble = RunningEnsemble()
    for member in members:
        with member() as model:
            ensemble.add(logits_of(model).float().log_softmax(1))
    return ensemble


def model_members(models: Sequence[nn.Module]) -> list[Member]:
    """Models of different seeds (deep ensemble: Lakshminarayanan et al. 2017, arXiv 1612.01474), as they are."""
    return [partial(_as_it_is, model) for model in models]


def adapter_members(model: Any, adapter_names: Sequence[str]) -> list[Member]:
    """LoRA adapters of one PEFT model, switched on in turn."""
    return [partial(_adapter_on, model, name) for name in adapter_names]


def dropout_members(model: nn.Module, num_members: int, seed: int) -> list[Member]:
    """One model with dropout left on, drawn `num_members` times; member m draws from (seed, m) on every chunk."""
    return [partial(_drawn_dropout, model, seed, number) for number in range(num_members)]


def _as_it_is(model: nn.Module) -> AbstractContextManager[nn.Module]:
    return nullcontext(model)


@contextmanager
def _adapter_on(model: Any, name: str) -> Iterator[nn.Module]:
    previous = model.active_adapter
    is_trained = {parameter: parameter.requires_grad for parameter in model.parameters()}  # set_adapter changes these
    model.set_adapter(name)
    try:
        yield model
    finally:
        model.set_adapter(previous)
        for parameter, requires_grad in is_trained.items():
            parameter.requires_grad_(requires_grad)


@contextmanager
def _drawn_dropout(model: nn.Module, seed: int, number: int) -> Iterator[nn.Module]:
    """The random state of the caller is the same afterwards."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), dropout_on(model):
        torch.manual_seed(keyed_generator(seed, number).initial_seed())
        yield model


def has_dropout(model: nn.Module) -> bool:
    """Some dropout module drops something, so that Monte Carlo members differ."""
    return any(module.p > 0 for module in _dropouts(model))


def _dropouts(model: nn.Module) -> list[nn.modules.dropout._DropoutNd]:
    return [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]


@contextmanager
def dropout_on(model: nn.Module) -> Iterator[None]:
    """Dropout modules, and they alone, in training mode: Monte Carlo dropout. Every module's mode is restored.

    Transformers' attention dropout is a function, not a module: it follows the mode of its layer and stays off.
    """
    dropouts = _dropouts(model)
    if not has_dropout(model):
        raise ModelError(
            "the model has no dropout module with p > 0, so all Monte Carlo members would be equal. "
            "Set training.lora.dropout above 0, or use an ensemble (token_scores.reference: cross_fit)"
        )
    modes = {module: module.training for module in dropouts}
    for module in dropouts:
        module.training = True
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
