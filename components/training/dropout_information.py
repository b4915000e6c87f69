"""What Monte-Carlo dropout says of the student as it is now: the mutual information of its members at every target token.

Shapes: N target tokens, V vocabulary. In nats.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from components.data.training_rows import count_targets
from components.training.target_scoring import (
    CHUNK_ENTRIES,
    ScoredRow,
    batches,
    evaluating,
    logits_at,
    num_columns,
    place_targets,
)
from components.uncertainty.ensembles import dropout_members, has_dropout, score_members


@torch.no_grad()
def dropout_information(
    model: nn.Module, rows: Sequence[ScoredRow], *, pad_token_id: int, batch_tokens: int, num_members: int, seed: int
) -> Tensor | None:
    """Of all targets in row order, [N] on the CPU; None without members, and where the model has no dropout module that drops.

    One forward pass a member and chunk. Leaves no trace: every mode and the random state are as before. Every rank of a sharded
    model must call this with the same rows and seed.
    """
    if not num_members or not has_dropout(model):
        return None
    head = model.get_output_embeddings()  # type: ignore[operator]
    size = max(1, CHUNK_ENTRIES // num_columns(head))
    members = dropout_members(model, num_members, seed)
    information = [torch.empty(0)] * len(rows)
    with evaluating(model):
        for batch in batches(rows, batch_tokens, size):
            inputs, place_N2 = place_targets([rows[index] for index in batch], pad_token_id, next(model.parameters()).device)
            parts = [
                score_members(members, partial(logits_at, head=head, inputs=inputs, place_N2=chunk_N2)).mutual_information().cpu()
                for chunk_N2 in place_N2.split(size)
            ]
            counts = [count_targets(rows[index]) for index in batch]
            for index, own_N in zip(batch, torch.cat(parts).split(counts), strict=True):
                information[index] = own_N
    return torch.cat(information) if information else torch.empty(0)
