"""The summed nll of answers whose prompt is shared: the prompt is run once, the answers against its cache.

Rows whose inputs are the same altogether (answers of one token) are run once. Prompts are padded on the left, answers on the
right, so distances within a row stay what they were. Sharing is tried on a few tokens of each model before it is believed.
Shapes: B rows, T positions, N target tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from components.evaluation.items import ItemRow
from components.evaluation.target_logits import known_head, pieces, target_logits
from components.objectives.model_head import causal_lm

CHUNK_ENTRIES = 1 << 20
"""Few logits at a time (4 MiB in fp32): larger pieces leave the processor's cache."""
MIN_SAVED = 0.2
"""Share of the positions that must be saved: a second call of the model has its price."""

_can_share: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class OptionScore:
    nll_sum: float
    num_tokens: int
    is_greedy: bool


@dataclass(frozen=True)
class Group:
    """Rows (indices) that share `num_shared` tokens; `inputs`: what remains of each distinct row, and who asks for it."""

    prefix: tuple[int, ...]
    inputs: dict[tuple[int, ...], list[int]]

    @property
    def width(self) -> int:
        return len(self.prefix) + max(map(len, self.inputs))


def score_options(model: nn.Module, rows: Sequence[ItemRow], batch_tokens: int) -> list[OptionScore]:
    """Summed nll, number and greediness of each row's targets, in the order given."""
    scores: dict[int, OptionScore] = {
        index: OptionScore(0.0, 0, True) for index, row in enumerate(rows) if not any(row.is_target)
    }
    asked = [index for index in range(len(rows)) if index not in scores]
    for batch in _batches(_groups(model, rows, asked, batch_tokens), batch_tokens):
        scores |= _score_batch(model, rows, batch)
    return [scores[index] for index in range(len(rows))]


def _groups(model: nn.Module, rows: Sequence[ItemRow], asked: list[int], batch_tokens: int) -> list[Group]:
    """Neighbours in dictionary order that share their prompt; a prompt ends before the token that predicts the first target."""
    found: list[Group] = []
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index in asked:
        by_prompt.setdefault(tuple(rows[index].input_ids[: rows[index].is_target.index(True) - 1]), []).append(index)
    for prompt, indices in by_prompt.items():
        inputs: dict[tuple[int, ...], list[int]] = {}
        for index in indices:
            inputs.setdefault(tuple(rows[index].input_ids[:-1]), []).append(index)
        width = max(map(len, inputs))
        saved = (len(inputs) - 1) * len(prompt)
        if saved < MIN_SAVED * sum(map(len, inputs)) or not prompt or not can_share(model, width):
            found += [Group((), {ids: who}) for ids, who in inputs.items()]
            continue
        items, most = list(inputs.items()), max(1, batch_tokens // width)
        for start in range(0, len(items), most):
            found.append(Group(prompt, {ids[len(prompt) :]: who for ids, who in items[start : start + most]}))
    return found


def _batches(groups: list[Group], batch_tokens: int) -> Iterator[list[Group]]:
    """Groups of one sort and of like length together."""
    batch: list[Group] = []
    num_rows = prefix = rest = 0
    for group in sorted(groups, key=lambda group: (bool(group.prefix), group.width)):
        more = num_rows + len(group.inputs)
        wide = max(prefix, len(group.prefix)) + max(rest, group.width - len(group.prefix))
        if batch and (more * wide > batch_tokens or bool(batch[0].prefix) != bool(group.prefix)):
            yield batch
            batch, more, prefix, rest = [], len(group.inputs), 0, 0
        batch.append(group)
        num_rows, prefix, rest = more, max(prefix, len(group.prefix)), max(rest, group.width - len(group.prefix))
    if batch:
        yield batch


@torch.no_grad()
def _score_batch(model: nn.Module, rows: Sequence[ItemRow], batch: list[Group]) -> dict[int, OptionScore]:
    asked = [(len(group.prefix), who) for group in batch for who in group.inputs.values()]
    places = [
        (line, position - 1 - num_shared, index, rows[index].input_ids[position])
        for line, (num_shared, who) in enumerate(asked)
        for index in who
        for position, is_target in enumerate(rows[index].is_target)
        if is_target
    ]
    line_N, position_N, index_N, label_N = torch.tensor(places, device=next(model.parameters()).device).T
    logits_of = target_logits(model, _inputs(model, batch), (line_N, position_N))
    nll, greedy = [], []
    for piece in pieces(len(label_N), logits_of(slice(0)).shape[1], CHUNK_ENTRIES):
        logits_NV = logits_of(piece).float()
        nll.append(torch.logsumexp(logits_NV, 1) - logits_NV.gather(1, label_N[piece, None])[:, 0])
        greedy.append(logits_NV.argmax(1) == label_N[piece])
    sums: dict[int, list[Any]] = {}
    for index, one, first in zip(index_N.tolist(), torch.cat(nll).double().tolist(), torch.cat(greedy).tolist(), strict=True):
        entry = sums.setdefault(index, [0.0, 0, True])
        entry[0], entry[1], entry[2] = entry[0] + one, entry[1] + 1, entry[2] and first
    return {index: OptionScore(*entry) for index, entry in sums.items()}


def _inputs(model: nn.Module, batch: list[Group]) -> dict[str, Any]:
    """Of the rest of each row; where there are prompts, after running them."""
    device = next(model.parameters()).device
    rests = [rest for group in batch for rest in group.inputs]
    ids_BT, present_BT = (one.to(device) for one in _padded(rests, left=False))
    if not batch[0].prefix:
        # No mask: a token does not see the padding to its right, and attention has a faster way where it need not look for it.
        return {"input_ids": ids_BT, "attention_mask": present_BT if known_head(model) is None else None, "use_cache": False}
    prompt_ids, prompt_present = (one.to(device) for one in _padded([group.prefix for group in batch], left=True))
    positions = (prompt_present.cumsum(1) - 1).clamp(min=0)
    cache = (
        causal_lm(model)
        .base_model(input_ids=prompt_ids, attention_mask=prompt_present, position_ids=positions, use_cache=True)
        .past_key_values
    )
    whose = torch.tensor([number for number, group in enumerate(batch) for _ in group.inputs], device=device)
    cache.batch_select_indices(whose)
    after = prompt_present.sum(1)[whose, None] + torch.arange(ids_BT.shape[1], device=device)
    present = torch.cat([prompt_present[whose], present_BT], 1)
    return {
        "input_ids": ids_BT,
        "attention_mask": present,
        "position_ids": after,
        "past_key_values": cache,
        "use_cache": True,
    }


def _padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    gaps = [[0] * (width - len(row)) for row in rows]
    ids = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, gaps, strict=True)]
    present = [[*gap, *[1] * len(row)] if left else [*[1] * len(row), *gap] for row, gap in zip(rows, gaps, strict=True)]
    return torch.tensor(ids), torch.tensor(present)


def can_share(model: nn.Module, width: int) -> bool:
    """Within a sliding window only (beyond it caches drop what the mask still counts), and only where a trial gave the same."""
    lm = causal_lm(model)
    if not hasattr(lm, "base_model") or lm.base_model is lm:
        return False
    config = lm.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is not None and width >= window:
        return False
    if lm not in _can_share:
        _can_share[lm] = _trial(model, config.vocab_size)
    return _can_share[lm]


@torch.no_grad()
def _trial(model: nn.Module, vocabulary_size: int) -> bool:
    """Prompts of unequal length, answers of unequal length: shared against each row alone."""
    ids = [token % vocabulary_size for token in range(1, 8)]
    groups = [Group(tuple(ids[:2]), {(3, 4): [0], (5,): [1]}), Group(tuple(ids[:4]), {(1,): [2], (2, 6): [3]})]
    groups = [Group(g.prefix, {tuple(t % vocabulary_size for t in rest): who for rest, who in g.inputs.items()}) for g in groups]
    try:
        shared = model(**_inputs(model, groups)).logits
    except (TypeError, ValueError, AttributeError, RuntimeError):  # an architecture without positions or without such a cache
        return False
    alone = [Group((), {(*group.prefix, *rest): who}) for group in groups for rest, who in group.inputs.items()]
    gap = largest = 0.0
    for line, group in enumerate(alone):
        wanted = model(**_inputs(model, [group])).logits[0].float()
        rest = len([*groups[line // 2].inputs][line % 2])
        gap = max(gap, float((shared[line, :rest].float() - wanted[-rest:]).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
    return gap <= (1e-4 if shared.dtype == torch.float32 else 0.05) * largest
