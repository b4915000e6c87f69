"""Seconds of a training micro-batch with the teacher in the cache and online, measured on the probe of a cache plan.

A micro-batch is the collator's lookup, forward, loss and backward by the trainer of `post_train`; no optimiser, which is the same
for all. Every token is learned and distilled: a mask costs nothing. Shapes: N predicted tokens, V vocabulary.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.artifacts import fingerprint_row
from components.data.training_rows import TrainingRow
from components.objectives.head import naive_logits, slices
from components.objectives.labels import IGNORED_LABEL
from components.objectives.model_head import head_of
from components.objectives.objective import Objective
from components.params import TrainingParams
from components.teacher_cache.law_errors import CHUNK_LOGITS
from components.teacher_cache.plan_probe import MAX_ROUNDS, ROUND_BUDGET_SECONDS
from components.teacher_cache.planner import Seconds
from components.teacher_cache.reader import RecordRequest, TeacherCacheReader
from components.training.collator import TeacherCollator
from components.training.lora import add_adapter
from components.training.row_order import RowOrder
from components.training.student_loss import OnlineTeacher
from components.training.token_layout import layout_of
from components.training.trainer_setup import build_trainer

NUM_MICRO_BATCHES = 4
KINDS = ("plain", "cached", "online")


@dataclass(frozen=True)
class StepRates:
    """Seconds of one micro-batch; None where it did not fit the device's memory, or its head."""

    plain: Seconds | None
    cached: Seconds | None
    online: Seconds | None

    @property
    def cached_per_online(self) -> float | None:
        return self.cached.best / self.online.best if self.cached and self.online else None


@dataclass(frozen=True)
class TeacherRates:
    """`forward` (to logits) and `read` are of one micro-batch, like the steps.

    `teacher_bytes`: the second model that an online teacher is, beside a full student.
    """

    forward: Seconds
    read: Seconds
    full: StepRates
    lora: StepRates
    teacher_bytes: int


@dataclass(frozen=True)
class RateProbe:
    """What the rates are measured with: `load` gives a fresh student on the device."""

    load: Callable[[], Any]
    rows: Sequence[TrainingRow]
    cache: TeacherCacheReader
    training: TrainingParams
    with_prompt: bool
    device: torch.device
    pad_token_id: int
    work: Path

    def micro_batches(self) -> list[list[TrainingRow]]:
        """In the order of a training over the probed rows alone."""
        size = self.training.micro_batch_size
        drawn = list(RowOrder(len(self.rows), NUM_MICRO_BATCHES * size, seed=0))
        return [[self.rows[place] for place in drawn[part.start : part.stop]] for part in slices(0, len(drawn), size)]


def measure_rates(probe: RateProbe) -> TeacherRates:
    """One model at a time: the teacher alone, a full student, one with adapters."""
    model = probe.load()
    teacher_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    forward, read = time_forward(model, probe), time_reading(probe)
    full = time_steps(model.requires_grad_(True), probe)
    del model
    release_memory()
    lora = time_steps(add_adapter(probe.load(), probe.training.lora), probe)
    release_memory()
    return TeacherRates(forward, read, full, lora, teacher_bytes)


def time_forward(model: nn.Module, probe: RateProbe) -> Seconds:
    """The online teacher's pass over a micro-batch, up to its logits of the predicted tokens, a chunk of them at a time."""
    teacher, through_logits = OnlineTeacher(model, frozen=model), isinstance(head_of(model), str)
    collator = TeacherCollator(probe.pad_token_id, None, packing=probe.training.packing)

    def forward(rows: Sequence[TrainingRow]) -> None:
        batch = {name: values.to(probe.device) for name, values in collator(rows).items()}
        layout = layout_of(batch, batch.pop("labels"), probe.with_prompt)
        with torch.no_grad():
            if through_logits:
                model(**batch, use_cache=False)
                return
            laws = teacher.laws(batch, layout.predicts_BT)
            for chunk in slices(0, len(laws.hidden_NH), max(1, CHUNK_LOGITS // laws.head.num_columns)):
                naive_logits(laws.head, laws.hidden_NH[chunk])

    return _time({"forward": forward}, probe)["forward"]


def time_reading(probe: RateProbe) -> Seconds:
    """Records of a micro-batch by their rows' own fingerprints; the bytes are in the machine's memory already."""

    def request(row: TrainingRow) -> RecordRequest:
        name = fingerprint_row(row.input_ids, row.is_target)
        if probe.with_prompt and probe.cache.holds_prompt:
            return RecordRequest(name, len(row.input_ids) - 1)
        return probe.cache.targets_of(name, row.is_target)

    return _time({"read": lambda rows: probe.cache.read_batch([request(row) for row in rows])}, probe)["read"]


def time_steps(student: Any, probe: RateProbe) -> StepRates:
    """Without a teacher, with the cache, with an online one: the same rows, interleaved."""
    temperature = probe.cache.manifest.identity.temperature
    cached = Objective(
        select="all", distil_on="all", temperature=temperature, prompt_tokens="distil_only" if probe.with_prompt else "ignore"
    )
    plain = Objective(select="all", distil_on="none")
    objectives = {"plain": plain, "cached": cached, "online": replace(cached, teacher="online")}
    steps: dict[str, Callable[[Sequence[TrainingRow]], object]] = {}
    for kind in KINDS[:2] if isinstance(head_of(student), str) else KINDS:  # an online teacher needs a plain head
        try:
            steps[kind] = _step(student, objectives[kind], probe, probe.work / kind)
        except torch.OutOfMemoryError:
            release_memory()
    found = _time(steps, probe)
    return StepRates(**{kind: found.get(kind) for kind in KINDS})


def _step(student: Any, objective: Objective, probe: RateProbe, work: Path) -> Callable[[Sequence[TrainingRow]], object]:
    trainer = build_trainer(
        student,
        probe.rows,
        probe.cache,
        objective,
        probe.training,
        seed=0,
        device=probe.device,
        pad_token_id=probe.pad_token_id,
        work=work,
    )
    prepared: list[Any] = []  # not before all trainers are built: an online teacher is a copy of the student as it came

    def step(rows: Sequence[TrainingRow]) -> None:
        if not prepared:
            prepared.append(trainer.accelerator.prepare_model(trainer.model))
        batch: dict[str, Any] = trainer.data_collator(list(rows))  # type: ignore[arg-type]  # rows, not dicts
        num_targets = (batch["labels"] != IGNORED_LABEL).sum()
        trainer.training_step(prepared[0], batch, num_items_in_batch=num_targets)
        student.zero_grad()
        trainer.finish_step()

    return step


def _time(works: dict[str, Callable[[Sequence[TrainingRow]], object]], probe: RateProbe) -> dict[str, Seconds]:
    """Mean seconds of a micro-batch, in rounds over all works after one that warms up; what needs too much memory is left out."""
    batches = probe.micro_batches()
    rounds: dict[str, list[float]] = {name: [] for name in works}
    fitting: dict[str, Callable[[Sequence[TrainingRow]], object]] = {}
    for name, work in works.items():
        try:
            work(batches[0])
            fitting[name] = work
        except torch.OutOfMemoryError:
            release_memory()
    began = time.perf_counter()
    for number in range(MAX_ROUNDS):
        if number and time.perf_counter() - began > ROUND_BUDGET_SECONDS:
            break
        for name, work in fitting.items():
            started = _now(probe.device)
            for rows in batches:
                work(rows)
            rounds[name].append((_now(probe.device) - started) / len(batches))
    return {name: Seconds.of(rounds[name]) for name in fitting}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def release_memory() -> None:
    """Of models that nobody holds any more, on a GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
