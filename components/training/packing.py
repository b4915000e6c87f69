"""The proof, before the first step, that this model keeps the rows of a packed sequence apart.

transformers finds the borders of documents in `position_ids` that restart, where no attention mask is given, and builds its
attention masks from them: for Llama, Gemma 1-3, Phi, Qwen, Mistral and their like, sliding windows included. What is no
attention (a state-space layer, a short convolution: Mamba, RWKV, LFM2) and what builds its masks or positions by itself (OPT,
Bloom, Falcon) crosses the borders: the rows would see their neighbours without a word, and the loss would look fine.

Shapes: N predicted tokens of the rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.data.batching import pack_rows, pad_rows
from components.data.training_rows import TargetRow
from components.errors import ParamsError
from components.objectives.sparse_target import label_nll
from components.training.student_loss import predicted_logits
from components.training.token_layout import layout_of

REPAIR = "set training.packing: false in params.yaml"
TOLERANCE_NATS = {torch.float32: 1e-3, torch.float64: 1e-6}  # half precision: .05
"""Mean difference per token that rounding may explain. A neighbour in sight costs tenths of nats."""


def prove_packing(model: nn.Module, rows: Sequence[TargetRow], pad_token_id: int) -> None:
    """Refuse a model whose losses on packed rows are not those on padded ones; two more forward passes, without dropout."""
    was_training = model.training
    model.eval()
    try:
        padded_N = next_token_nll(model, pad_rows(rows, pad_token_id))
        packed_N = next_token_nll(model, pack_rows(rows))
    except (TypeError, ValueError) as error:
        raise ParamsError(f"training.packing: this model cannot read packed rows ({error}); {REPAIR}") from error
    finally:
        model.train(was_training)
    gap = float((padded_N - packed_N).abs().mean()) if len(padded_N) else 0.0
    if not gap <= TOLERANCE_NATS.get(next(model.parameters()).dtype, 0.05):  # so that NaN is refused too
        raise ParamsError(
            "training.packing: in this model the rows of a packed sequence see each other, or positions that are not theirs: "
            f"their losses differ from those of padded rows by {gap:.3f} nats per token; {REPAIR}"
        )


@torch.no_grad()
def next_token_nll(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """nll of every token that has one before it in its row, prompt included, row by row, [N]."""
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
    is_next = layout_of(inputs, inputs["input_ids"], with_prompt=True)
    return label_nll(predicted_logits(model, inputs, is_next.predicts_BT), is_next.labels_N)
