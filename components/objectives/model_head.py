"""The token-level loss inside a Hugging Face causal LM: backbone, target positions, fused head, in one forward call.

Shapes: B rows, T positions, N positions that predict a token of the loss, V vocabulary, H hidden width.

    reason = attach_token_loss(model)                      # once: after peft, before DDP, FSDP2 or accelerate
    terms = model(**inputs, token_loss=request)            # a dict of tensors, see `token_loss_terms`
    model(**inputs)                                        # still the original forward: generate, save_pretrained, evaluation

The loss is computed within the calls of the model and of its head, so whatever hooks into them works: DDP prepares its backward
pass, FSDP2 gathers the head's weight before and frees it after, peft's adapters are on. No module, parameter or buffer is added.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any, final

import torch
from torch import Tensor, nn

from components.objectives.fused_head import FusedLoss, HeadStatistics, fused_token_loss, head_statistics
from components.objectives.head import Head, naive_logits
from components.objectives.naive_loss import logits_entropy, naive_token_loss
from components.objectives.objective import Divergence, EntropyKind
from components.objectives.row_loss import DenseTeacher, LossSpec, Weigh
from components.objectives.sparse_target import TeacherTargets, label_nll

PROBE_TOKENS = 4
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit; half precision: 1/20
FORM = "_ballast_head_form"


@final
class TokenLossRequest:
    """What one micro-batch's loss needs beside the model's inputs.

    No dataclass on purpose: FSDP2's mixed precision casts every floating tensor that it finds in the arguments, dataclasses
    included, and would round the teacher's logprobs to bf16. `survey`, where given, sees every token's nll (and entropy) in a
    pass before the loss, which costs one more matrix product: for a threshold that is a quantile of this micro-batch.
    """

    def __init__(
        self,
        is_predicting_BT: Tensor,
        labels_N: Tensor,
        weigh: Weigh,
        *,
        teacher: TeacherTargets | DenseTeacher | None = None,
        temperature: float = 1.0,
        divergence: Divergence = "forward_kl",
        entropy: EntropyKind = "none",
        survey: Callable[[HeadStatistics], None] | None = None,
        chunk_bytes: int | None = None,
    ) -> None:
        """`is_predicting_BT[b, t]`: the hidden state at t predicts a token of the loss; `labels_N`: those tokens, row by row."""
        self.is_predicting_BT = is_predicting_BT
        self.spec = LossSpec(labels_N, weigh, teacher, temperature, divergence, entropy)
        self.survey = survey
        self.chunk_bytes = chunk_bytes


def token_loss_terms(loss: FusedLoss) -> dict[str, Tensor]:
    """`loss_sum`, `nll_N`, `kl_N`, `mle_weight_N`, `distil_weight_N` and, where asked for, `entropy_N`.

    A plain dict: FSDP2 and DDP look for the tensor that carries the graph in dicts and tuples, and would miss a dataclass's.
    """
    return {name: value for name, value in vars(loss).items() if value is not None}


def causal_lm(model: nn.Module) -> Any:
    """The causal LM inside peft's wrapper, or the model itself."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else model


def head_of(model: nn.Module) -> Head | str:
    """How this model's logits come from its hidden states, or the reason why that is not known to be a plain projection."""
    lm = causal_lm(model)
    projection = lm.get_output_embeddings()
    # The class's forward is compared, not the class: a quantised layer is an nn.Linear too, FSDP2's is a subclass of its own.
    if not isinstance(projection, nn.Linear) or type(projection).forward is not nn.Linear.forward:
        return f"its head is a {type(projection).__name__}, not a plain linear layer"
    if lm.base_model is lm:
        return f"{type(lm).__name__} does not say which part of it is the backbone"
    config = lm.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon H1
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    return Head(projection.weight, projection.bias, getattr(config, "final_logit_softcapping", None), float(scale))


def attach_token_loss(model: nn.Module) -> str | None:
    """Let `model` take `token_loss=`. Returns None, or the reason why it will go the long way, through whole logits.

    The long way is as correct, and holds [B, T, V]: an adapter on the head, or an architecture whose forward does more to its
    logits than `head_of` knows, which a probe of four tokens finds out.
    """
    lm = causal_lm(model)
    if FORM in vars(lm):
        return getattr(lm, FORM) if isinstance(getattr(lm, FORM), str) else None
    head = head_of(model)
    form = head if isinstance(head, str) else probe_head(lm, head) or replace(head, weight_VH=torch.empty(0), bias_V=None)
    setattr(lm, FORM, form)
    lm.forward = MethodType(_with_token_loss(type(lm)), lm)
    if isinstance(form, str):
        return form
    projection = lm.get_output_embeddings()
    projection.forward = MethodType(_linear_or_lend, projection)
    return None


def _with_token_loss(architecture: type) -> Any:
    """Keeps the signature of the architecture's own forward, which the Trainer and generate read."""

    @functools.wraps(architecture.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, token_loss: TokenLossRequest | None = None, **inputs: Any) -> Any:
        if token_loss is None:
            return type(self).forward(self, *args, **inputs)
        inputs = {name: value for name, value in inputs.items() if value is not None}  # peft fills in what it may pass
        inputs["use_cache"] = False
        form = getattr(self, FORM)
        if isinstance(form, str):
            logits_NV = type(self).forward(self, *args, **inputs).logits[token_loss.is_predicting_BT]
            return token_loss_terms(loss_of_logits(logits_NV, token_loss))
        hidden_NH = self.base_model(*args, **inputs).last_hidden_state[token_loss.is_predicting_BT]
        return self.get_output_embeddings()(hidden_NH, lend=functools.partial(_loss_of_hidden, form, token_loss))

    return forward


def _linear_or_lend(self: nn.Linear, input: Tensor, lend: Callable[[Tensor, Tensor, Tensor | None], Any] | None = None) -> Any:
    """A linear layer that lends its weights to whoever asks, within its own call: sharded weights are whole only there."""
    return nn.Linear.forward(self, input) if lend is None else lend(input, self.weight, self.bias)


def _loss_of_hidden(
    form: Head, request: TokenLossRequest, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None
) -> dict[str, Tensor]:
    head, spec = replace(form, weight_VH=weight_VH, bias_V=bias_V), request.spec
    if request.survey is not None:
        request.survey(head_statistics(hidden_NH, head, spec.labels_N, entropy=spec.entropy, chunk_bytes=request.chunk_bytes))
    return token_loss_terms(
        fused_token_loss(
            hidden_NH,
            head,
            spec.labels_N,
            spec.weigh,
            teacher=spec.teacher,
            temperature=spec.temperature,
            divergence=spec.divergence,
            entropy=spec.entropy,
            chunk_bytes=request.chunk_bytes,
        )
    )


def loss_of_logits(logits_NV: Tensor, request: TokenLossRequest) -> FusedLoss:
    """The same from whole logits of the predicting positions, row by row: the long way."""
    if request.survey is not None:
        detached_NV = logits_NV.detach().float()
        request.survey(
            HeadStatistics(label_nll(detached_NV, request.spec.labels_N), logits_entropy(detached_NV, request.spec.entropy))
        )
    return naive_token_loss(logits_NV, request.spec)


@torch.no_grad()
def probe_head(lm: Any, head: Head) -> str | None:
    """Compare the model's own logits of a few tokens with the head's; the reason not to fuse where they differ.

    Not possible, and not done, where the weights are sharded or on no device at all.
    """
    if head.weight_VH.is_meta or type(head.weight_VH.data) is not Tensor:
        return None
    was_training = lm.training
    lm.eval()
    input_ids = torch.arange(min(PROBE_TOKENS, head.num_columns), device=head.weight_VH.device)[None]
    own_TV = type(lm).forward(lm, input_ids=input_ids, use_cache=False).logits[0].float()
    ours_TV = naive_logits(head, lm.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0]).float()
    lm.train(was_training)
    allowed = PROBE_TOLERANCE.get(head.weight_VH.dtype, 0.05) * float(own_TV.abs().max())
    gap = float((own_TV - ours_TV).abs().max())
    return None if gap <= allowed else f"{type(lm).__name__} does more to its logits than scale and cap them (gap {gap:.3g})"


@torch.no_grad()
def hidden_of(model: nn.Module, inputs: dict[str, Tensor], is_predicting_BT: Tensor) -> Tensor:
    """Final hidden states of a frozen teacher at those positions, [N, H], for a `DenseTeacher`."""
    hidden_BTH: Tensor = causal_lm(model).base_model(**inputs, use_cache=False).last_hidden_state
    return hidden_BTH[is_predicting_BT]
