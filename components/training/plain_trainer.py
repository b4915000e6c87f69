"""The objective in a plain `transformers.Trainer`, or what descends from it (TRL's SFTTrainer): a `compute_loss_func`.

Shapes: B rows, T positions, N predicted tokens of the micro-batch, V vocabulary.

    loss = TokenObjectiveLoss(PRESETS["uncertainty_aware"])
    trainer = Trainer(model, arguments, collator, rows, compute_loss_func=loss, callbacks=[loss.callback])
    loss.attach(trainer.model)
    trainer.train()

It is the loss of ObjectiveTrainer, term by term, from the model's own logits: [B, T, V] and, in fp32, several copies of the
predicted rows of them are held. The fused head of `post_train` holds neither.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from components.artifacts import fingerprint_json
from components.data.training_rows import TrainingRow
from components.errors import ParamsError, TrainingError
from components.objectives.fused_head import FusedLoss
from components.objectives.model_head import loss_of_logits
from components.objectives.objective import Objective
from components.objectives.resolve import warnings_of
from components.objectives.row_loss import DenseTeacher
from components.objectives.rules import refuse_impossible
from components.objectives.sparse_target import TeacherTargets
from components.teacher_cache.reader import TeacherCacheReader
from components.training.alignment import prove_alignment
from components.training.collator import ScoreSource, TeacherCollator
from components.training.model_inputs import InputWatch, PassedInputs
from components.training.row_order import spread_rows
from components.training.step_tokens import StepPlace, gather_scores, refuse_non_finite, weigher_of
from components.training.student_loss import OnlineTeacher, token_loss_request
from components.training.threshold import ScoreThreshold
from components.training.token_layout import TokenLayout, layout_of
from components.training.token_row import row_of
from components.training.trainer_setup import initial_scores, refuse_missing_inputs

LOGGER = logging.getLogger(__name__)
OUTSIDE = StepPlace(seed=0, step=0, num_steps=1, part=0)
PROOF_ROWS = 8
REPAIR = (
    "Lower learning_rate or max_grad_norm, or remove that row (components.artifacts.fingerprint_row gives a row's fingerprint)"
)
STATE = "ballast_objective"
"""Key among the stateful callbacks of `trainer_state.json`. Not the name of a class: the Trainer would try to make one."""


@final
class TokenObjectiveLoss:
    """Called by the Trainer with the model's outputs. State: the threshold, which `callback` moves and keeps in the checkpoint.

    Without `cache` the teacher is online: the frozen model given as `teacher`, or the attached model as it is then (with LoRA
    its adapters off, else a copy). With `cache` an objective of `teacher="online"` reads the base's scores there and distils
    from the online one. `rows`: the training rows, whose cached scores give the first threshold and prove that the cache is the
    model's. What the objective cannot be, or would ignore, is refused; sources of scores that it does not read may be given.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        cache: TeacherCacheReader | None = None,
        rows: Sequence[TrainingRow] = (),
        teacher: nn.Module | None = None,
        scores: ScoreSource | None = None,
        class_of_token_V: Tensor | None = None,
    ) -> None:
        self.objective = objective if cache is not None or not objective.distils else replace(objective, teacher="online")
        refuse_impossible(self.objective, "objective")
        _refuse_two_teachers(self.objective, cache, teacher)
        _refuse_missing(self.objective, cache, rows, scores, class_of_token_V)
        for warning in warnings_of(self.objective):
            LOGGER.warning("%s", warning)
        self.cache, self.rows, self.scores = cache, rows, scores
        self.class_of_token_V = class_of_token_V
        self.threshold = ScoreThreshold(self.objective, initial_scores(self.objective, rows, cache, scores) if rows else None)
        self.callback = TokenObjectiveCallback(self)
        self.watch = InputWatch()
        self.num_seen = 0
        self._given_teacher = teacher
        self._online: OnlineTeacher | None = None

    @property
    def with_prompt(self) -> bool:
        return self.objective.prompt_tokens == "distil_only"

    def attach(self, model: nn.Module) -> None:
        """To the model as it will be trained, while it still is the base: the online teacher is made from it here."""
        if self.objective.distils and self.objective.teacher == "online":
            self._online = OnlineTeacher(model, self._given_teacher)  # before the hook: a copy must not have it
        if self.cache is not None:
            batch = TeacherCollator(0, self.cache)(spread_rows(self.rows, PROOF_ROWS))
            identity = self.cache.manifest.identity
            prove_alignment(model, batch, identity.precision, identity.temperature)
        self.watch.attach(model)

    def collator(self, pad_token_id: int, *, packing: bool = False) -> Callable[[Sequence[Any]], dict[str, Tensor]]:
        """Pads (or packs) rows, or examples with `input_ids` and `labels`, and adds the columns that this objective reads."""
        collate = TeacherCollator(
            pad_token_id,
            self.cache if self.objective.needs_teacher else None,
            scores=self.scores,
            columns=self.objective.columns,
            packing=packing,
            with_prompt=self.with_prompt,
        )
        return lambda rows: collate([row_of(row) if isinstance(row, Mapping) else row for row in rows])

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Sum over this micro-batch's tokens / target tokens of the step. The Trainer multiplies it by the number of ranks."""
        passed = self.watch.take()
        place = self._place(passed)
        layout = layout_of(passed.for_layout, labels, self.with_prompt)
        weigher = weigher_of(self.objective, layout, passed.columns, self.threshold, self.class_of_token_V, place)
        request = token_loss_request(self.objective, layout, self._laws(passed, layout), weigher)
        terms: FusedLoss = loss_of_logits(_whole_logits(outputs, labels)[layout.predicts_BT], request)
        if passed.is_training:
            refuse_non_finite(terms, layout, passed.for_layout, labels, place.step, repair=REPAIR)
            weigher.observe(terms.nll_N, terms.entropy_N)
            self.num_seen += 1
        return terms.loss_sum / self._divisor(num_items_in_batch, layout, passed).clamp(min=1)

    def _divisor(self, num_items_in_batch: Tensor | int | None, layout: TokenLayout, passed: PassedInputs) -> Tensor:
        if num_items_in_batch is None:
            if passed.is_training:
                raise TrainingError("the Trainer did not count the step's target tokens; give each batch `labels`")
            return layout.is_target_N.sum()  # evaluation in TRL
        return torch.as_tensor(num_items_in_batch)

    def _place(self, passed: PassedInputs) -> StepPlace:
        run = self.callback.run
        if run is None:
            if passed.is_training:
                raise TrainingError("the loss does not know its step; give the Trainer callbacks=[loss.callback]")
            return OUTSIDE
        arguments, state = run
        part = self.num_seen * arguments.world_size + arguments.process_index
        return StepPlace(arguments.seed, state.global_step, state.max_steps, part)

    def _laws(self, passed: PassedInputs, layout: TokenLayout) -> TeacherTargets | DenseTeacher | None:
        laws = passed.columns.teacher if self._online is None else self._online.laws(passed.inputs, layout.predicts_BT)
        if (laws is None and self.objective.distils) or (passed.columns.teacher is None and self.objective.needs_label_logprob):
            raise TrainingError("the batch lacks the teacher's columns; use data_collator=loss.collator(pad_token_id)")
        return laws


@final
class TokenObjectiveCallback(TrainerCallback):
    """After each optimiser step one threshold for the next, from the scores of all ranks; it travels in `trainer_state.json`."""

    def __init__(self, loss: TokenObjectiveLoss) -> None:
        self._loss = loss
        self._initial = loss.threshold.state_dict()
        self._objective = fingerprint_json(asdict(loss.objective))
        self.run: tuple[TrainingArguments, TrainerState] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self._loss.watch.is_attached:
            raise TrainingError("call loss.attach(trainer.model) before trainer.train()")
        refuse_split_means(args)
        self.run = (args, state)
        self._loss.num_seen = 0
        self._loss.threshold.take_pending()  # of a run that was broken off
        self._loss.threshold.load_state_dict(self._kept(state) if state.global_step else self._initial)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._loss.num_seen = 0
        threshold = self._loss.threshold
        if threshold.is_lagged:
            threshold.advance(gather_scores(threshold.take_pending().to(args.device)))
        kept: Any = state.stateful_callbacks  # the Trainer saves it with the step's checkpoint, after this
        kept[STATE] = {"attributes": {"threshold": threshold.state_dict(), "objective": self._objective}}

    def _kept(self, state: TrainerState) -> dict[str, Any]:
        stored: Any = state.stateful_callbacks
        kept = stored.get(STATE, {}).get("attributes")
        if kept is None or kept["objective"] != self._objective:
            raise TrainingError(
                f"the checkpoint of step {state.global_step} was made with another objective or none, so its threshold is not "
                "known. Start anew, or from that checkpoint's weights without resume_from_checkpoint"
            )
        found: dict[str, Any] = kept["threshold"]
        return found


def _whole_logits(outputs: Any, labels: Tensor) -> Tensor:
    logits_BTV: Tensor | None = getattr(outputs, "logits", None)
    if logits_BTV is None or logits_BTV.shape[:2] != labels.shape:
        shape = None if logits_BTV is None else tuple(logits_BTV.shape)
        raise TrainingError(f"the loss needs logits of every position [B, T, V] for labels {tuple(labels.shape)}; it got {shape}")
    return logits_BTV


def _refuse_two_teachers(objective: Objective, cache: TeacherCacheReader | None, teacher: nn.Module | None) -> None:
    if teacher is None:
        return
    if not objective.distils:
        raise ParamsError("teacher= has no effect: the objective distils nothing; leave it out, or set distil_on")
    if cache is not None and objective.teacher == "cache":
        raise ParamsError(
            "cache= and teacher= are two teachers; leave one out. To read the base's scores from the cache and distil from "
            'the model, give the objective teacher="online"'
        )


def _refuse_missing(
    objective: Objective,
    cache: TeacherCacheReader | None,
    rows: Sequence[TrainingRow],
    scores: ScoreSource | None,
    class_of_token_V: Tensor | None,
) -> None:
    if cache is None and objective.needs_label_logprob:
        raise ParamsError(f"score {objective.score} is read from a teacher cache; give cache= and rows=")
    if cache is not None and not rows:
        raise ParamsError("cache= is proven to be the model's on the training rows, and gives the first threshold; give rows=")
    if not rows and objective.needs_threshold and objective.scope == "dataset":
        raise ParamsError("scope dataset: the threshold is a quantile over all training rows; give rows=")
    if scores is None and objective.columns:
        raise ParamsError(f"score {objective.score} is made of columns {', '.join(objective.columns)}; give scores=")
    if class_of_token_V is None and objective.protect:
        raise ParamsError("protect needs the class of every token of the vocabulary; give class_of_token_V=")
    if objective.normalizer == "selected_tokens":
        raise ParamsError(
            "normalizer selected_tokens is known only after a step's last micro-batch: a plain Trainer has no place for it"
        )
    refuse_missing_inputs(objective, cache, scores, class_of_token_V)


def refuse_split_means(arguments: TrainingArguments) -> None:
    """Where the Trainer would average means over unequal parts, the gradient would depend on how a step is cut up."""
    if arguments.n_gpu > 1:
        raise TrainingError(
            "one process drives several GPUs (DataParallel); start one process for each with torchrun or accelerate"
        )
    if arguments.world_size > 1 and not arguments.average_tokens_across_devices:
        raise TrainingError("several processes need TrainingArguments(average_tokens_across_devices=True)")
