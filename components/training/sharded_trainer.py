"""A transformers.Trainer that takes a model which `shard_model` has sharded, as well as a plain one.

transformers 5.23 knows models that it has sharded itself while loading: it wraps those in nothing (no DDP, no accelerate), and
refuses to checkpoint their optimiser. We say that ours is such a model, and write the checkpoints ourselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from components.errors import TrainingError
from components.training.sharded_state import load_optimizer_state, load_weights, whole_optimizer_state, whole_weights
from components.training.sharding import is_sharded


class ShardedTrainer(Trainer):
    """`is_sharded`: the model came sharded. Then gradients are averaged over ranks by FSDP2, as DDP averages them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        model: Any = kwargs["model"]
        self.is_sharded = is_sharded(model)
        if not self.is_sharded:
            return
        if self.is_fsdp_enabled:
            raise TrainingError(
                "the model is sharded already, and accelerate's FSDP is switched on to shard it again. Leave out shard_model, "
                "or start the run without an FSDP configuration"
            )
        self.is_distributed_loading_by_transformers = True
        model._is_fsdp_managed_module = True

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """All micro-batches of a step but the last: gradients are summed on each rank, unsharded, and not yet sent."""
        model: Any = self.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The whole model, written by the first rank; every rank must call this."""
        if not self.is_sharded:
            super().save_model(output_dir, _internal_call)
            return
        weights = whole_weights(self._part_of("model"), keeps=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_optimizer_state(self._part_of("optimizer"), keeps=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self._part_of("lr_scheduler").state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_weights(self._part_of("model"), Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        load_optimizer_state(self._part_of("optimizer"), state)
        self._part_of("lr_scheduler").load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def _part_of(self, name: str) -> Any:
        """`model`, `optimizer` or `lr_scheduler`, which the Trainer annotates as perhaps None."""
        part = getattr(self, name)
        assert part is not None, f"the {name} is made by train()"
        return part
