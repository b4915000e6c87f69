"""What the report and the model card say about the run itself, as an argument: equal facts give equal bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReportContext:
    """What is None or empty is not mentioned.

    `objectives`: method -> its loss in a line. `cached_teacher`: methods that ask the teacher's cache. `uncommitted`: paths that
    decide results and were not in `git_commit`.
    """

    base_model: str
    data: str
    num_train_rows: int
    reproduce_command: str
    objectives: Mapping[str, str] = field(default_factory=dict)
    base_fingerprint: str | None = None
    base_hub_id: str | None = None
    cached_teacher: tuple[str, ...] = ()
    git_commit: str | None = None
    uncommitted: tuple[str, ...] = ()
    params_fingerprint: str | None = None
    dvc_lock_fingerprint: str | None = None
