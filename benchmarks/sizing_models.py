"""Architectures as numbers, and what follows from them alone: parameters, and multiplications per token.

Letters: H hidden width, F width of the MLP, L layers, V vocabulary, A width of all query heads together, G of all key heads.
"""

from dataclasses import dataclass
from typing import Literal

LINEARS = 7
"""Of a layer: query, key, value, output, gate, up, down."""


@dataclass(frozen=True)
class Architecture:
    """A decoder with gated MLPs (LLaMA, Gemma 2). `attention` as transformers chooses it by default: fused (SDPA) or eager."""

    name: str
    hidden: int
    mlp: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    is_tied: bool
    norms_per_layer: int = 2
    attention: Literal["fused", "eager"] = "fused"
    has_softcap: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        return self.key_heads * self.head_width

    @property
    def layer_linears(self) -> int:
        """Weights of one layer's products: H(A + 2G) + AH + 3HF."""
        return self.hidden * (2 * self.query_width + 2 * self.key_width + 3 * self.mlp)

    @property
    def layer_parameters(self) -> int:
        return self.layer_linears + self.norms_per_layer * self.hidden

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def root_parameters(self) -> int:
        """What FSDP2 keeps in the root's unit: embedding, last norm, head."""
        return self.head_parameters * (1 if self.is_tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.root_parameters

    def adapter_parameters(self, rank: int) -> int:
        """LoRA on every linear of the layers (Hu et al. 2022): rank * (inputs + outputs) of each."""
        attention = 2 * (self.hidden + self.query_width) + 2 * (self.hidden + self.key_width)
        return self.layers * rank * (attention + 3 * (self.hidden + self.mlp))


MODELS = {
    "llama-3.2-1b": Architecture("Llama 3.2 1B", 2048, 8192, 16, 32, 8, 64, 128_256, is_tied=True),
    "gemma-2-2b": Architecture(
        "Gemma 2 2B", 2304, 9216, 26, 8, 4, 256, 256_000, is_tied=True, norms_per_layer=4, attention="eager", has_softcap=True
    ),
    "llama-3.1-8b": Architecture("Llama 3.1 8B", 4096, 14_336, 32, 32, 8, 128, 128_256, is_tied=False),
}
"""After the published configurations (config.json of the three models on the Hugging Face hub)."""


def forward_flops(model: Architecture, row_tokens: float) -> float:
    """Of all layers for one token: 2 per weight of a product (Kaplan et al. 2020: C = 2N forward, 6N with backward), and
    2 * A for each of the positions before it, once for its scores and once for its values: on average half of the row.
    """
    return model.layers * (2 * model.layer_linears + 4 * model.query_width * row_tokens / 2)


def head_flops(model: Architecture) -> float:
    """Of the head for one predicted token, forward: 2VH."""
    return 2 * model.head_parameters


def training_flops(model: Architecture, row_tokens: float, predicted_share: float, *, is_lora: bool, rank: int) -> float:
    """Of one token of a training step: forward, and twice that backward; half of the backward where weights are frozen.

    The head works on predicted tokens only, and its backward products are made in the forward pass (components/objectives).
    """
    forward = forward_flops(model, row_tokens) + predicted_share * head_flops(model)
    return 2 * forward + 6 * model.adapter_parameters(rank) if is_lora else 3 * forward


def teacher_flops(model: Architecture, row_tokens: float, predicted_share: float) -> float:
    """Of one token through the frozen base: a capture's, or an online teacher's."""
    return forward_flops(model, row_tokens) + predicted_share * head_flops(model)
