"""Laws of the loss inside a model: real architectures, adapters included, equal their own logits; nothing else changes."""

import copy
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.objectives.fused_head import FusedLoss, HeadStatistics
from components.objectives.head import naive_logits
from components.objectives.model_head import TokenLossRequest, attach_token_loss, head_of, hidden_of
from components.objectives.naive_loss import naive_token_loss
from components.objectives.objective import Divergence
from components.objectives.row_loss import DenseTeacher, TokenChunk
from components.objectives.sparse_target import TeacherTargets
from components.uncertainty.selection import quantile_threshold

B, T, V, H = 3, 9, 61, 16
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": H,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64, "final_logit_softcapping": 2.0}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA),
    "phi3": ("phi3", {}),
    "phi": ("phi", {}),  # a head with a bias
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "granite": ("granite", {"logits_scaling": 4.0}),
}


def build(name: str, seed: int = 0) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, special = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SIZES, **special}), dtype=torch.float32)
    bias = model.get_output_embeddings().bias
    return model if bias is None else model.requires_grad_(nn.init.normal_(bias) is bias)


def build_batch() -> tuple[dict[str, Tensor], Tensor]:
    """Inputs padded on the right, and which positions predict a token of the loss."""
    generator = torch.Generator().manual_seed(1)
    lengths_B1 = torch.tensor([[9], [5], [7]])
    is_present_BT = (torch.arange(T)[None] < lengths_B1).long()
    inputs = {"input_ids": torch.randint(3, V, (B, T), generator=generator) * is_present_BT, "attention_mask": is_present_BT}
    return inputs, (torch.arange(T)[None] >= 2) & (torch.arange(T)[None] < lengths_B1 - 1)


INPUTS, IS_PREDICTING = build_batch()
LABELS = INPUTS["input_ids"].roll(-1, 1)[IS_PREDICTING]


def weigh(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
    selected_C = chunk.nll_C >= 3.0
    return selected_C, 0.5 * ~selected_C


def teacher_of(model: Any, num_entries: int = 5) -> TeacherTargets:
    with torch.no_grad():
        logprobs_NV = model(**INPUTS).logits[IS_PREDICTING].log_softmax(1)
    values_NK, ids_NK = logprobs_NV.topk(num_entries, dim=1)
    tail_N = logprobs_NV.scatter(1, ids_NK, float("-inf")).logsumexp(1)
    return TeacherTargets(ids_NK, values_NK, tail_N, torch.zeros(len(ids_NK)))


def request(teacher: Any = None, **knobs: Any) -> TokenLossRequest:
    knobs.setdefault("weigh", weigh)
    return TokenLossRequest(IS_PREDICTING, LABELS, teacher=teacher, entropy="full", chunk_bytes=5 * V * 4, **knobs)


def expected_of(model: Any, asked: TokenLossRequest) -> FusedLoss:
    """From the model's own logits."""
    return naive_token_loss(model(**INPUTS).logits[IS_PREDICTING], asked.spec)


def gradients_of(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_is_naive(model: Any, asked: TokenLossRequest) -> None:
    """Every number and every gradient, to a relative 1e-5 of the largest."""
    terms = model(**INPUTS, token_loss=asked)
    ours = gradients_of(model, terms["loss_sum"])
    expected = expected_of(model, asked)
    theirs = gradients_of(model, expected.loss_sum)
    for name, value in vars(expected).items():
        torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-5)
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_equals_its_own_logits_in_value_and_gradient(name: str) -> None:
    model = build(name)
    asked = request(teacher_of(build(name, seed=1)))
    assert attach_token_loss(model) is None
    assert_is_naive(model, asked)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["q_proj", "lm_head"], "modules_to_save"])
def test_an_adapter_equals_its_own_logits_whether_its_head_can_be_fused_or_not(targets: Any) -> None:
    from peft import LoraConfig, get_peft_model

    saved = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    knobs = saved if targets == "modules_to_save" else {"target_modules": targets}
    base = build("llama")
    asked = request(teacher_of(base))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **knobs))
    reason = attach_token_loss(model)
    assert (reason is None) == (targets in ("all-linear", ["q_proj", "v_proj"]))
    assert reason is None or "not a plain linear layer" in reason
    assert_is_naive(model, asked)
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained and all("lora_" in name or "modules_to_save" in name for name in trained), "the base stays frozen"
    assert attach_token_loss(model.merge_and_unload()) == reason, "attaching twice changes nothing"


def test_a_model_that_does_more_to_its_logits_goes_the_long_way_and_is_right() -> None:
    model = build("llama")
    plain = type(model).forward

    class Shifted(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **inputs: Any) -> Any:
            outputs = plain(self, *args, **inputs)
            outputs.logits = outputs.logits * 1.5
            return outputs

    model.__class__ = Shifted
    assert "does more to its logits" in str(attach_token_loss(model))
    assert_is_naive(model, request(teacher_of(build("llama", seed=1))))


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew"])
def test_a_dense_teacher_from_another_models_hidden_states(name: Divergence) -> None:
    model, base = build("gemma2"), build("gemma2", seed=1)
    head = head_of(base)
    assert not isinstance(head, str)
    hidden_NH = hidden_of(base, INPUTS, IS_PREDICTING)
    with torch.no_grad():
        torch.testing.assert_close(naive_logits(head, hidden_NH), base(**INPUTS).logits[IS_PREDICTING])
    attach_token_loss(model)
    assert_is_naive(model, request(DenseTeacher(hidden_NH, head), divergence=name, temperature=1.5))
    assert all(weight.grad is None for weight in base.parameters())


@pytest.mark.parametrize("way", ["fused", "long"])
def test_a_survey_before_the_loss_makes_a_quantile_of_this_micro_batch_possible(way: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = build("llama")
    if way == "long":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head"]))
    assert (attach_token_loss(model) is None) == (way == "fused")
    seen: list[float] = []

    def survey(statistics: HeadStatistics) -> None:
        assert not statistics.nll_N.requires_grad and statistics.entropy_N is not None
        seen.append(quantile_threshold(statistics.nll_N, 0.5, "high"))

    def upper_half(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return chunk.nll_C >= seen[0], torch.zeros_like(chunk.nll_C)

    terms = model(**INPUTS, token_loss=request(weigh=upper_half, survey=survey))
    assert len(seen) == 1 and int(terms["mle_weight_N"].sum()) == round(len(LABELS) / 2)
    assert torch.equal(terms["mle_weight_N"] > 0, terms["nll_N"] >= seen[0])


def test_no_predicting_position_is_a_zero_with_a_graph() -> None:
    model = build("llama")
    attach_token_loss(model)
    nothing = TokenLossRequest(torch.zeros(B, T, dtype=torch.bool), LABELS[:0], weigh)
    gradients = gradients_of(model, model(**INPUTS, token_loss=nothing)["loss_sum"])
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    assert not any(gradient.any() for gradient in gradients.values())


def test_generation_saving_and_plain_calls_are_what_they_were(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    untouched, model = build("gemma2").eval(), build("gemma2").eval()
    attach_token_loss(model)
    assert not model.training and model.state_dict().keys() == untouched.state_dict().keys()
    assert [name for name, _ in model.named_modules()] == [name for name, _ in untouched.named_modules()]
    assert inspect.signature(model.forward).parameters.keys() == inspect.signature(untouched.forward).parameters.keys()
    prompt = {name: value[:1, :4] for name, value in INPUTS.items()}
    written = [lm.generate(**prompt, max_new_tokens=6, do_sample=False) for lm in (model, untouched)]
    assert torch.equal(*written)
    assert torch.equal(model(**INPUTS, labels=INPUTS["input_ids"]).loss, untouched(**INPUTS, labels=INPUTS["input_ids"]).loss)
    model.save_pretrained(tmp_path)
    reloaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(reloaded(**INPUTS).logits, untouched(**INPUTS).logits)


def test_a_copy_of_the_model_computes_with_its_own_weights() -> None:
    model = build("llama")
    attach_token_loss(model)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone.lm_head.weight.zero_()
    losses = [lm(**INPUTS, token_loss=request())["nll_N"].mean() for lm in (model, clone)]
    assert float(losses[0]) != float(losses[1]) == pytest.approx(torch.tensor(V).log().item(), rel=1e-5)


def test_the_loss_runs_within_the_heads_own_call_so_that_hooks_see_it() -> None:
    model = build("llama")
    attach_token_loss(model)
    outputs: list[Any] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: outputs.append((inputs[0].shape, output)))
    terms = model(**INPUTS, token_loss=request())
    assert len(outputs) == 1 and outputs[0] == ((len(LABELS), H), terms)
    assert isinstance(terms, dict) and terms["loss_sum"].requires_grad
    assert not any(value.requires_grad for name, value in terms.items() if name != "loss_sum")


def test_a_request_hides_its_tensors_from_whoever_casts_arguments() -> None:
    from torch.distributed.utils import _apply_to_tensors

    asked = request(teacher_of(build("llama")))
    assert _apply_to_tensors(partial(Tensor.to, dtype=torch.bfloat16), {"token_loss": asked})["token_loss"] is asked
    assert isinstance(asked.spec.teacher, TeacherTargets) and asked.spec.teacher.entry_logprobs_NK.dtype == torch.float32
