"""Scoring rows by several models, each on its own rows, without ever holding the laws of all tokens.

Shapes: B rows, T positions, N target tokens, V vocabulary, M models that score a token. Entropies and losses in nats.

The mean law of M models is needed at the same tokens, and one model is in memory at a time. So rows are taken in blocks whose
summed laws [N, V] fit LAW_BYTES; each model passes over a block once, and weights are changed M times a block. Where one model
scores each token there is no mean law to sum, and everything is one block.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from components.data.batching import pad_rows
from components.data.training_rows import TrainingRow, count_targets
from components.errors import ModelError
from components.objectives.labels import IGNORED_LABEL
from components.token_scores.rows import record_starts
from components.training.checkpoints import is_sealed, seal_checkpoint
from components.uncertainty.scores import token_entropy, token_nll

LAW_BYTES = 2 << 30
"""Of the summed laws of a block, fp32, on the models' device."""
LOGIT_BYTES = 1 << 30
MAX_BATCH_TOKENS = 8192
CHUNK_BYTES = 1 << 28
COLUMNS = "columns.safetensors"


@dataclass(frozen=True)
class Scorer:
    """`load` gives the model (it may reuse the memory of the one before); `rows`: those that it may score, ascending."""

    load: Callable[[], Any]
    rows: tuple[int, ...]


class MeanLaw:
    """Running sums over the models that score the N tokens of a block, each its own part of them."""

    def __init__(self, num_tokens: int, vocabulary_size: int, device: torch.device, *, is_single: bool) -> None:
        self._num_models_N = torch.zeros(num_tokens, device=device)
        self._log_label_sum_N = torch.full((num_tokens,), -math.inf, dtype=torch.float64, device=device)
        self._entropy_sum_N = torch.zeros(num_tokens, device=device)
        self._law_sum_NV = None if is_single else torch.zeros(num_tokens, vocabulary_size, device=device)

    def add(self, places_N: Tensor, logprobs_NV: Tensor, labels_N: Tensor) -> None:
        """The laws of one model at some tokens; `places_N` are their numbers in the block, each at most once."""
        self._num_models_N[places_N] += 1
        label_logprob_N = -token_nll(logprobs_NV, labels_N).double()
        self._log_label_sum_N[places_N] = torch.logaddexp(self._log_label_sum_N[places_N], label_logprob_N)
        self._entropy_sum_N[places_N] += token_entropy(logprobs_NV)
        if self._law_sum_NV is not None:
            self._law_sum_NV.index_add_(0, places_N, logprobs_NV.exp())

    def columns(self) -> dict[str, Tensor]:
        """`reference_nll` = -log mean p(label), `reference_entropy` of the mean law, `mutual_information` = that less the mean
        entropy (>= 0 but for rounding, which is cut off; left out where one model scores each token)."""
        reference_nll_N = self._num_models_N.log() - self._log_label_sum_N
        mean_entropy_N = self._entropy_sum_N / self._num_models_N
        if self._law_sum_NV is None:
            return {"reference_nll": reference_nll_N.float().cpu(), "reference_entropy": mean_entropy_N.cpu()}
        rows = max(1, CHUNK_BYTES // (4 * self._law_sum_NV.shape[1]))
        chunks = zip(self._law_sum_NV.split(rows), self._num_models_N.split(rows), strict=True)
        entropy_N = torch.cat([token_entropy((sum_NV / num_N[:, None]).log()) for sum_NV, num_N in chunks])
        return {
            "reference_nll": reference_nll_N.float().cpu(),
            "reference_entropy": entropy_N.cpu(),
            "mutual_information": (entropy_N - mean_entropy_N).clamp(min=0).cpu(),
        }


def score_rows(
    rows: Sequence[TrainingRow],
    scorers: Sequence[Scorer],
    vocabulary_size: int,
    *,
    device: torch.device,
    precision: str,
    work: Path,
    pad_token_id: int = 0,
    law_bytes: int = LAW_BYTES,
) -> dict[str, Tensor]:
    """The columns of all rows, [N] each, row after row. Finished blocks are kept under `work`."""
    num_models = sum(len(scorer.rows) for scorer in scorers) // max(1, len(rows))
    is_single = num_models == 1
    num_tokens = sum(count_targets(row) for row in rows)
    block_tokens = num_tokens if is_single else max(1, law_bytes // (4 * vocabulary_size))
    parts = []
    with tqdm(total=num_models * num_tokens, unit="tok", desc="score_tokens") as progress:
        for first, block in _blocks(rows, block_tokens):
            folder = work / f"block-{first}-{len(block)}"
            if not is_sealed(folder):
                law = MeanLaw(record_starts(block)[-1], vocabulary_size, device, is_single=is_single)
                for scorer in scorers:
                    mine = [number - first for number in scorer.rows if first <= number < first + len(block)]
                    if any(count_targets(block[number]) for number in mine):
                        _score_block(scorer.load(), block, mine, law, vocabulary_size, device, precision, pad_token_id, progress)
                columns = law.columns()
                _refuse_non_finite(columns, block)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                save_file(columns, folder / COLUMNS)
                seal_checkpoint(folder)
            else:
                progress.update(num_models * record_starts(block)[-1])
            parts.append(load_file(folder / COLUMNS))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _blocks(rows: Sequence[TrainingRow], block_tokens: int) -> Iterator[tuple[int, list[TrainingRow]]]:
    """Number of the first row, and rows in order, of at most `block_tokens` targets together (one row at least)."""
    first, size = 0, 0
    for number, row in enumerate(rows):
        if number > first and size + count_targets(row) > block_tokens:
            yield first, list(rows[first:number])
            first, size = number, 0
        size += count_targets(row)
    yield first, list(rows[first:])


@torch.no_grad()
def _score_block(
    model: Any,
    block: Sequence[TrainingRow],
    numbers: Sequence[int],
    law: MeanLaw,
    vocabulary_size: int,
    device: torch.device,
    precision: str,
    pad_token_id: int,
    progress: "tqdm[Any]",
) -> None:
    """Add one model's laws at the targets of its rows, in batches of rows of like length and chunks of tokens."""
    starts = record_starts(block)
    batch_tokens = min(MAX_BATCH_TOKENS, LOGIT_BYTES // (4 * vocabulary_size))
    model.eval()
    for batch in batches_by_tokens(numbers, block, batch_tokens):
        inputs = {name: tensor.to(device) for name, tensor in pad_rows([block[number] for number in batch], pad_token_id).items()}
        labels_BT = inputs.pop("labels")[:, 1:]
        is_target_BT = labels_BT != IGNORED_LABEL
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits_NV = model(**inputs, use_cache=False).logits[:, :-1][is_target_BT]
        labels_N = labels_BT[is_target_BT]
        places_N = torch.cat([torch.arange(starts[number], starts[number + 1]) for number in batch]).to(device)
        size = max(1, CHUNK_BYTES // (4 * logits_NV.shape[1]))
        for chunk in zip(places_N.split(size), logits_NV.split(size), labels_N.split(size), strict=True):
            law.add(chunk[0], chunk[1].float().log_softmax(1), chunk[2])
        progress.update(len(labels_N))


def batches_by_tokens(numbers: Sequence[int], rows: Sequence[TrainingRow], batch_tokens: int) -> list[list[int]]:
    """Rows of like length together (ascending), their padded size within `batch_tokens`; a longer row is alone."""
    batches: list[list[int]] = []
    for number in sorted(numbers, key=lambda number: len(rows[number].input_ids)):
        if batches and (len(batches[-1]) + 1) * len(rows[number].input_ids) <= batch_tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _refuse_non_finite(columns: dict[str, Tensor], block: Sequence[TrainingRow]) -> None:
    """A model that has diverged, or rules a label out entirely, would only be noticed as a strange mask."""
    starts = torch.tensor(record_starts(block))
    for name, column_N in columns.items():
        is_broken_N = ~torch.isfinite(column_N)
        if is_broken_N.any():
            row = block[int(torch.searchsorted(starts, int(is_broken_N.int().argmax()), right=True)) - 1]
            raise ModelError(
                f"{name} is not finite on row {row.fingerprint} (it begins with tokens {row.input_ids[:8]}): the reference has "
                "diverged or rules that token out. Lower training.learning_rate or token_scores.num_steps, set "
                "training.precision: fp32, or remove that row from the data"
            )
