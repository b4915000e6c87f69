"""What a training takes from the stages before it: rows, teacher cache, token scores, classes of tokens.

Shapes: V vocabulary, N target tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from components.artifacts import DATA, TEACHER_CACHE, TOKEN_SCORES, fingerprint_json
from components.data.tokenized import TokenizedRow, TokenizedRows, read_split, read_training_rows
from components.models import load_prepared_tokenizer, pad_token_id, refuse_changed_base
from components.objectives.sparse_target import TeacherTargets
from components.params import ProbeParams, TeacherCacheParams, TokenScoresParams, TrainingParams
from components.teacher_cache.identity import expected_identity
from components.teacher_cache.reader import TeacherCacheReader
from components.token_scores.identity import expected_identity as expected_scores_identity
from components.token_scores.reader import TokenScoreReader
from components.training.probe_record import ProbeRow
from components.training.row_order import spread_rows
from components.uncertainty.token_classes import classify_targets, classify_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_VALIDATION_ROWS = 200
"""Early stopping and the probe watch no more than these, spread over all validation files: each look is a pass over them."""


@dataclass(frozen=True)
class TrainingInputs:
    """`texts_V`: each token as people read it; `class_of_token_V`: its class by its text."""

    rows: TokenizedRows
    validation: TokenizedRows
    cache: TeacherCacheReader
    scores: TokenScoreReader
    tokenizer: "PreTrainedTokenizerBase"
    texts_V: Sequence[str]
    class_of_token_V: Tensor

    @property
    def pad_token_id(self) -> int:
        return pad_token_id(self.tokenizer)


def load_inputs(teacher_cache: TeacherCacheParams, token_scores: TokenScoresParams, training: TrainingParams) -> TrainingInputs:
    """Open everything; each is refused unless it was made for exactly these data, this base and these settings."""
    cache = TeacherCacheReader(TEACHER_CACHE, expected_identity(teacher_cache))
    refuse_changed_base()
    scores = TokenScoreReader(TOKEN_SCORES, expected_scores_identity(token_scores, training))
    tokenizer: Any = load_prepared_tokenizer()
    texts_V = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    special = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
    return TrainingInputs(
        rows=read_training_rows(DATA),
        validation=read_split(DATA, "validation"),
        cache=cache,
        scores=scores,
        tokenizer=tokenizer,
        texts_V=texts_V,
        class_of_token_V=classify_vocabulary(texts_V, [*special, *tokenizer.all_special_ids]),
    )


def probe_rows(inputs: TrainingInputs, params: ProbeParams) -> list[ProbeRow]:
    """Training rows from all over the data, with everything that is known of their tokens before training."""
    rows = [row for row in spread_rows(inputs.rows, params.num_rows) if row.num_targets]
    return [_probe_row(row, inputs, shown=index < params.num_examples) for index, row in enumerate(rows)]


def validation_rows(inputs: TrainingInputs) -> list[ProbeRow]:
    """Validation rows from all over their files, at most MAX_VALIDATION_ROWS, their tokens alone."""
    kept = spread_rows(inputs.validation, MAX_VALIDATION_ROWS)
    return [ProbeRow(row.row_id, row.input_ids, row.is_target, _classes(row, inputs)) for row in kept]


def validation_fingerprint(inputs: TrainingInputs) -> str:
    """Of the rows that early stopping and the probe watch, in their order."""
    return fingerprint_json([row.fingerprint for row in spread_rows(inputs.validation, MAX_VALIDATION_ROWS)])


def _probe_row(row: TokenizedRow, inputs: TrainingInputs, *, shown: bool) -> ProbeRow:
    record = inputs.cache.read_targets(row.fingerprint, row.is_target)
    columns = inputs.scores.read(row.fingerprint, sum(row.is_target[1:])) if inputs.scores.names else {}
    return ProbeRow(
        row_id=row.row_id,
        input_ids=row.input_ids,
        is_target=row.is_target,
        class_N=_classes(row, inputs),
        texts=[inputs.texts_V[token] for token in row.input_ids] if shown else (),
        laws=row.true_laws(),
        teacher_logprob_N=record["label_logprob"].float() if inputs.cache.knows("label_logprob") else None,
        teacher=TeacherTargets(
            record["entry_ids"].long(),
            record["entry_logprobs"].float(),
            record["tail_logprob"].float(),
            record["label_logprob"].float(),
        ),
        columns=columns,
    )


def _classes(row: TokenizedRow, inputs: TrainingInputs) -> Tensor:
    """Class of each target, [N] int8."""
    is_target_T = torch.tensor(row.is_target)
    is_start_T = is_target_T & ~is_target_T.roll(1)
    scored_T = is_target_T.clone()
    scored_T[0] = False  # nothing predicts a row's first token
    return classify_targets(inputs.class_of_token_V, torch.tensor(row.input_ids)[scored_T], is_start_T[scored_T])
