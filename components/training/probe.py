"""Looks at the student during training: how well scores tell what is left to learn, what the mask picks, how it moves.

A look is a forward pass over a few training rows (and the validation rows) that leaves no trace in the training: no gradient,
no random number, every module's mode restored. What it records is made in components.training.probe_record, what it warns of
in components.training.probe_warnings.

    {"score", "select", "classes", "truth": "law" | "reference" | "none", "num_rows", "num_tokens",
     "steps": [{"step", "epoch", "threshold", "selected_fraction", "entered", "left", "jaccard", "jaccard_epoch",
                "classes": {name: ...}, "scores": {name: {"epistemic", "aleatoric"}}, "mean_dropout_information",
                "mask": {...}, "kl_to_teacher", "validation": {...}}],
     "returned": one more look like these, or None,
     "examples": [{"row_id", "tokens": [{"text", "is_target"}], "classes", "teacher_nll",
                   "steps": [{"step", "score", "selected", "mle_weight", "distil_weight", "student_nll"}]}],
     "warnings": [{"step", "kind", "message"}]}

`entered` and `left` count tokens since the look before, `jaccard` compares the two masks, `jaccard_epoch` this mask with the
last one that is at least one pass over the data older. A field is None where it does not exist. The mask is the one that the
next step would use on these rows; with `select: random` it is drawn anew at each look, as it is at each step.

`scores` has `dropout_information` too where the model has dropout modules that drop: the mutual information of Monte-Carlo
dropout members of the student as it is then (nats; its mean stands beside). `returned`: the model that the training leaves,
where early stopping has put an earlier step's weights back; its threshold is the last one in force, and unless that step was
looked at in its time, its mask is compared with none.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from components.data.training_rows import count_targets
from components.objectives.objective import Objective
from components.objectives.weights import TokenWeights
from components.params import ProbeParams
from components.training.callbacks import MetricSink, Observer
from components.training.dropout_information import dropout_information
from components.training.mask_history import MaskHistory
from components.training.probe_record import (
    Moment,
    ProbeRow,
    Seen,
    against_truth,
    all_scores,
    class_table,
    facts_of,
    mask_table,
    mean,
    number,
    numbers,
    score_table,
    truth_of,
    validation_table,
    weigh_probe,
)
from components.training.probe_warnings import warnings_of
from components.training.target_scoring import ScoredRow, ScoredTokens, join_scored, score_targets
from components.uncertainty.selection import random_scores
from components.uncertainty.token_classes import CLASSES

BATCH_TOKENS = 8192
LOGGER = logging.getLogger(__name__)


class TrainingProbe(Observer):
    """State: the record so far, the masks it is compared with, the steps looked at (the same on every rank), the warnings said.

    `rows`: the rows looked at, the first `params.num_examples` of them shown token by token; `threshold`: gives the one in
    force; `name`: the objective's key in params.yaml. Add it to the Trainer after the callback that moves the threshold, and
    keep state_dict() in each checkpoint.
    """

    def __init__(
        self,
        objective: Objective,
        rows: Sequence[ProbeRow],
        validation: Sequence[ScoredRow],
        *,
        name: str,
        threshold: Callable[[], float | None],
        params: ProbeParams,
        pad_token_id: int,
        teacher_temperature: float = 1.0,
        sink: MetricSink | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self._objective, self._rows, self._validation = objective, list(rows), list(validation)
        self._name, self._threshold, self._params = name, threshold, params
        self._scoring = {"pad_token_id": pad_token_id, "batch_tokens": batch_tokens}
        self._teacher_temperature, self._sink = teacher_temperature, sink
        self._facts = facts_of(self._rows)
        self._truth = truth_of(self._rows, self._facts)
        self._examples = self._rows[: params.num_examples]
        self._steps: list[dict[str, Any]] = []
        self._shown: list[list[dict[str, Any]]] = [[] for _ in self._examples]
        self._masks = MaskHistory()
        self._looked: list[int] = []
        self._said: list[str] = []
        self._returned: dict[str, Any] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if state.global_step == 0:
            self._look_now(state, given["model"])
            return
        for entry in self._steps if state.is_world_process_zero else []:  # a process that was killed may not have sent them
            self._send(entry, "probe")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Early stopping comes before this callback and has said by now that this step is the last. A signal to stop is heard
        after it: that run goes on later, and its record is that of a run without the signal."""
        is_last = control.should_training_stop or state.global_step >= state.max_steps
        if state.global_step % self._params.every_steps == 0 or is_last:
            self._look_now(state, given["model"], is_last=is_last)

    def _look_now(self, state: TrainerState, model: nn.Module, is_last: bool = False) -> None:
        self.look(
            model,
            step=state.global_step,
            epoch=state.epoch or 0.0,
            num_steps=state.max_steps,
            is_recorder=state.is_world_process_zero,
            is_last=is_last,
        )

    def look(
        self, model: nn.Module, *, step: int, epoch: float, num_steps: int, is_recorder: bool = True, is_last: bool = False
    ) -> None:
        """One look, unless this step has been looked at. Every rank must call it; the recorder keeps what is seen."""
        if self._looked and step <= self._looked[-1]:
            return
        self._looked.append(step)
        seen = self._see(model, step, epoch, num_steps)
        if not is_recorder or seen is None:
            return
        entry, weights, score_N = self._judge(seen, self._masks)
        self._steps.append(entry)
        self._send(entry, "probe")
        self._show(step, seen.tokens, score_N, weights)
        self._warn(is_last=is_last or step >= num_steps)

    def look_at_returned(self, model: nn.Module, *, step: int, epoch: float, num_steps: int, is_recorder: bool = True) -> None:
        """At the model that the training leaves, whose weights are those of `step`. Where that step was looked at, that look
        serves. Every rank must call it."""
        if step in self._looked:
            self._returned = next((entry for entry in self._steps if entry["step"] == step), None)
            return
        seen = self._see(model, step, epoch, num_steps)
        if is_recorder and seen is not None:
            self._returned, _, _ = self._judge(seen, MaskHistory())
            self._send(self._returned, "probe_returned")

    def _see(self, model: nn.Module, step: int, epoch: float, num_steps: int) -> Seen | None:
        """None without a row."""
        parts = score_targets(model, self._rows, temperature=self._teacher_temperature, **self._scoring)
        members = self._params.num_dropout_members
        information_N = dropout_information(model, self._rows, num_members=members, seed=step, **self._scoring)
        validation = score_targets(model, self._validation, **self._scoring)
        if not parts:
            return None
        threshold = self._threshold()
        weight = self._objective.distil_weight_at(step, num_steps)
        moment = Moment(step, epoch, None if threshold is None else float(threshold), weight)
        return Seen(moment, join_scored(parts), join_scored(validation) if validation else None, information_N)

    def _judge(self, seen: Seen, masks: MaskHistory) -> tuple[dict[str, Any], TokenWeights, Tensor]:
        """The look as it is recorded; each token's weights; each token's score, [N]."""
        objective, tokens, moment, facts = self._objective, seen.tokens, seen.moment, self._facts
        if objective.select == "random":
            facts = replace(facts, random_N=random_scores(len(tokens), moment.step))
        scores = all_scores(objective, tokens, facts)
        assert not objective.scores or objective.score in scores, f"the probe's rows lack what score {objective.score} needs"
        weights = weigh_probe(objective, tokens, scores.get(objective.score), facts, moment)
        information_N = seen.dropout_information
        compared = scores if information_N is None else {**scores, "dropout_information": information_N}
        epistemic_N, aleatoric_N = against_truth(self._truth, tokens, facts)
        entry = {
            "step": moment.step,
            "epoch": number(moment.epoch),
            "threshold": None if moment.threshold is None else number(moment.threshold),
            "selected_fraction": mean(weights.selected_N),
            **masks.compare_and_add(moment.epoch, weights.selected_N),
            "classes": class_table(tokens, facts, weights),
            "scores": score_table(compared, self._truth, epistemic_N, aleatoric_N),
            "mean_dropout_information": None if information_N is None else mean(information_N),
            "mask": mask_table(weights.selected_N, epistemic_N, aleatoric_N),
            "kl_to_teacher": mean(tokens.teacher_kl),
            "validation": None if seen.validation is None else validation_table(seen.validation),
        }
        return entry, weights, scores.get(objective.score, tokens.nll)

    def _send(self, entry: Mapping[str, Any], prefix: str) -> None:
        if self._sink is not None:
            self._sink(entry["step"], flat_numbers(entry, prefix))

    def _show(self, step: int, tokens: ScoredTokens, scores_N: Tensor, weights: TokenWeights) -> None:
        start = 0
        for row, shown in zip(self._examples, self._shown, strict=True):
            own = slice(start, start + count_targets(row))
            start = own.stop
            shown.append(
                {
                    "step": step,
                    "score": numbers(scores_N[own]),
                    "selected": weights.selected_N[own].tolist(),
                    "mle_weight": numbers(weights.mle_N[own]),
                    "distil_weight": numbers(weights.distil_N[own]),
                    "student_nll": numbers(tokens.nll[own]),
                }
            )

    def _warn(self, is_last: bool) -> None:
        """Say each warning once. The mask has to follow noise in two looks in a row, or in the last one."""
        for warning in warnings_of(self._objective, self._name, self._steps):
            is_settled = warning["kind"] != "follows_noise" or is_last or warning["step"] < self._steps[-1]["step"]
            key = warning["kind"] if warning["kind"] == "follows_noise" else f"{warning['kind']} {warning['class']}"
            if is_settled and key not in self._said:
                self._said.append(key)
                LOGGER.warning(warning["message"])

    def record(self) -> dict[str, Any]:
        """Everything recorded so far, as JSON can hold it (see the module's docstring)."""
        return {
            "score": self._objective.score,
            "select": self._objective.select,
            "classes": list(CLASSES),
            "truth": self._truth,
            "num_rows": len(self._rows),
            "num_tokens": len(self._facts.row_N),
            "steps": self._steps,
            "returned": self._returned,
            "examples": [{**_describe(row), "steps": shown} for row, shown in zip(self._examples, self._shown, strict=True)],
            "warnings": warnings_of(self._objective, self._name, self._steps),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON can hold it; that of the main process is the one that matters."""
        return {
            "steps": self._steps,
            "shown": self._shown,
            "masks": self._masks.state_dict(),
            "looked": list(self._looked),
            "said": self._said,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps, self._shown, self._said = list(state["steps"]), [list(one) for one in state["shown"]], list(state["said"])
        self._masks.load_state_dict(state["masks"])
        self._looked = list(state["looked"])


def _describe(row: ProbeRow) -> dict[str, Any]:
    """The part of an example that no step changes. Token texts are those given; without them, the ids."""
    texts = list(row.texts) or [str(token) for token in row.input_ids]
    is_scored = [False, *row.is_target[1:]]  # nothing predicts a row's first token
    return {
        "row_id": row.row_id,
        "tokens": [{"text": text, "is_target": target} for text, target in zip(texts, is_scored, strict=True)],
        "classes": [CLASSES[index] for index in row.class_N.tolist()],
        "teacher_nll": None if row.teacher_logprob_N is None else numbers(-row.teacher_logprob_N),
    }


def flat_numbers(entry: Mapping[str, Any], prefix: str = "probe") -> dict[str, float]:
    """The numbers of one look under names like probe/scores/entropy/epistemic, for the tracker; what is None is left out."""
    found: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found |= flat_numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and name not in ("step", "epoch"):
            found[f"{prefix}/{name}"] = float(value)
    return found
