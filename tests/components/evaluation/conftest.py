"""A model whose law is a table, so that every figure can be worked out by hand; rows to score with it."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from components.evaluation.items import EvaluationItem, ItemRow, Law


class TableModel(nn.Module):
    """The next token depends on the last one only: `logits = table[token]`, [V, V]."""

    def __init__(self, table_VV: Tensor) -> None:
        super().__init__()
        self.table_VV = nn.Parameter(table_VV)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        assert attention_mask.shape == input_ids.shape and not use_cache
        return SimpleNamespace(logits=self.table_VV[input_ids])


def table_model(vocabulary: int = 7, seed: int = 0, scale: float = 2.0) -> TableModel:
    return TableModel(scale * torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed)))


def laws_model(laws: dict[int, Law], vocabulary: int) -> TableModel:
    """A model that knows the law after each of these tokens, and nothing (uniform) after the others."""
    table_VV = torch.zeros(vocabulary, vocabulary)
    for token, law in laws.items():
        table_VV[token] = torch.tensor([law.get(index, 1e-9) for index in range(vocabulary)]).log()
    return TableModel(table_VV)


def scripted_model(follows: dict[int, int], vocabulary: int, otherwise: int = 0) -> Any:
    """A real Hugging Face model that says `follows[token]` after a token: its layers add nothing, its head is the script."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": vocabulary + vocabulary % 2, "intermediate_size": 2, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, **heads, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(*model.model.embed_tokens.weight.shape))
        model.lm_head.weight.zero_()
        for token in range(vocabulary):
            model.lm_head.weight[follows.get(token, otherwise), token] = 1.0
    model.generation_config.eos_token_id = None
    return model


def item(
    *rows: list[int], num_context: int = 1, kind: Any = "tokens", gold: int = 0, laws: list[Law] | None = None
) -> EvaluationItem:
    """Rows whose first `num_context` tokens are context and whose others are targets."""
    made = [ItemRow(row, [position >= num_context for position in range(len(row))], laws) for row in rows]
    return EvaluationItem(f"set.jsonl:{rows}", kind, tuple(made), gold)


def evaluation(preset: str, seed: int | None = 0, nll: float = 1.0, **shares: float) -> dict[str, Any]:
    """One model's evaluation on 200 items a set: in each set the first `share` of the items are right (default .5)."""
    names = {"validation": "validation", "in_domain": "in_domain", "copy": "ood/copy", "sort": "ood/sort"}
    sets = {full: _set(full, shares.get(short, 0.5), nll) for short, full in names.items()}
    model = "base" if seed is None else f"{preset}-{seed}"
    return {"model": model, "preset": preset, "seed": seed, "model_fingerprint": f"fingerprint of {model}", "sets": sets}


def _set(name: str, share: float, nll: float) -> dict[str, Any]:
    items = [
        {
            "item_id": f"{name}:{index}",
            "nll_sum": 4 * nll,
            "num_tokens": 4,
            "num_correct": float(index < round(share * 200)),
            "num_scored": 1,
        }
        for index in range(200)
    ]
    values = {"nll": nll, "accuracy": share, "ece": 0.1, "brier": 0.3, "aurc": 0.05, "drift_kl": 0.2}
    metrics = {metric: {"value": value, "unit": "", "num": 200, "standard_error": 0.01} for metric, value in values.items()}
    curve = [{"coverage": share, "risk": nll * share} for share in (0.5, 1.0)]
    return {"metrics": metrics, "items": items, "uncertainty": None, "reliability": [], "risk_coverage": curve}
