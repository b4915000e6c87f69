"""Laws of one batch through the teacher: the right positions, whatever the head, the padding and the architecture."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from components.data.training_rows import count_targets
from components.teacher_cache.capture import LawCapture, LawSettings, count_kept
from components.teacher_cache.reduction import ReducedLaws
from tests.conftest import VOCABULARY, Row, build_model, build_rows

ROWS = build_rows(12)
ALL = LawSettings(max_entries=64, temperature=1.0, positions="all")


class DoubledHead(nn.Linear):
    """No plain projection: such a head is not fused."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def with_doubled_head() -> Any:
    model = build_model()
    head = DoubledHead(16, VOCABULARY, bias=False)
    head.weight = model.lm_head.weight
    model.set_output_embeddings(head)
    return model


def capped() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "final_logit_softcapping": 3.0, "initializer_range": 0.5}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, pad_token_id=0, attn_implementation="eager"))


MODELS = {"llama": (build_model, True), "another head": (with_doubled_head, False), "gemma2 with a softcap": (capped, True)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("positions", ["targets", "all"])
def test_every_kept_token_has_the_law_of_its_own_position(name: str, positions: str) -> None:
    build, is_fused = MODELS[name]
    model = build().eval()
    capture = LawCapture(model, LawSettings(64, 1.0, positions))
    assert (capture.goes_through_logits is None) == is_fused
    laws = capture(ROWS)
    start = 0
    for row in ROWS:
        places = [place for place in range(1, len(row.input_ids)) if positions == "all" or row.is_target[place]]
        assert len(places) == count_kept(row, positions)
        with torch.no_grad():
            logits_TV = model(torch.tensor([row.input_ids])).logits[0].float()
        logprobs_TV = logits_TV.log_softmax(1)
        for place in places:
            law_V, label = logprobs_TV[place - 1], row.input_ids[place]
            assert float(laws.label_logprob_N[start]) == pytest.approx(float(law_V[label]), abs=1e-4)
            assert int(laws.label_rank_N[start]) == int((law_V > law_V[label]).sum())
            torch.testing.assert_close(laws.entry_logprobs_NK[start], law_V[laws.entry_ids_NK[start].long()], rtol=0, atol=1e-4)
            start += 1
    assert start == len(laws.label_logprob_N)


def gaps(one: ReducedLaws, other: ReducedLaws) -> float:
    return float((one.label_logprob_N - other.label_logprob_N).abs().max())


def test_company_and_padding_change_a_law_by_float_noise_alone() -> None:
    capture = LawCapture(build_model(), ALL)
    together = capture(ROWS)
    alone = [capture([row]) for row in ROWS]
    assert torch.allclose(together.label_logprob_N, torch.cat([laws.label_logprob_N for laws in alone]), atol=1e-5)


def test_sixteen_bits_are_close_and_dropout_is_off() -> None:
    exact = LawCapture(build_model(), ALL)(ROWS)
    assert 0 < gaps(LawCapture(build_model().bfloat16(), ALL)(ROWS), exact) < 0.3
    dropping = build_model(attention_dropout=0.9).train()
    assert gaps(LawCapture(dropping, ALL)(ROWS), exact) < 1e-5


def test_rows_without_a_kept_token_give_an_empty_law_beside_others() -> None:
    rows = [Row([3, 4, 5], [False] * 3), Row([6], [True]), ROWS[0]]
    laws = LawCapture(build_model(), LawSettings(64, 1.0, "targets"))(rows)
    assert len(laws.label_logprob_N) == count_targets(ROWS[0])
    assert len(LawCapture(build_model(), ALL)(rows[1:2]).label_logprob_N) == 0
