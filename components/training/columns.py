"""The columns that the collator adds to a micro-batch and the model must not see.

Shapes: N predicted tokens, K cached entries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from components.objectives.sparse_target import TeacherTargets
from components.training.collator import SCORE_PREFIX


@dataclass(frozen=True)
class StepColumns:
    """The teacher's laws, and scores by name, [N]."""

    teacher: TeacherTargets | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)


def take_columns(inputs: dict[str, Any]) -> StepColumns:
    """Pop the columns out of a batch."""
    names = [name for name in inputs if name.startswith(SCORE_PREFIX)]
    scores = {name.removeprefix(SCORE_PREFIX): inputs.pop(name).float() for name in names}
    if "teacher_entry_ids" not in inputs:
        return StepColumns(None, scores)
    teacher = TeacherTargets(
        entry_ids_NK=inputs.pop("teacher_entry_ids").long(),
        entry_logprobs_NK=inputs.pop("teacher_entry_logprobs").float(),
        tail_logprob_N=inputs.pop("teacher_tail_logprob").float(),
        label_logprob_N=inputs.pop("teacher_label_logprob").float(),
    )
    return StepColumns(teacher, scores)
