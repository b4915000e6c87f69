"""Laws of scoring answers: sharing, batching, padding and order change nothing, and lm-evaluation-harness finds the same."""

import random
from typing import Any

import pytest
import torch

from components.evaluation import prefix_sharing
from components.evaluation.items import ItemRow
from components.evaluation.prefix_sharing import OptionScore, can_share, score_options
from tests.conftest import PAD, VOCABULARY, build_model

KINDS = ["llama", "gemma2", "gemma3_text", "phi3"]


def tiny(kind: str, window: int = 64) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5, "max_position_embeddings": 64}
    tokens = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    sliding = {} if kind == "llama" else {"sliding_window": window}
    config = AutoConfig.for_model(kind, **{**sizes, **heads, **tokens, **sliding})
    return AutoModelForCausalLM.from_config(config).float().eval()


def questions(num: int, num_options: int = 4, longest: int = 3) -> list[ItemRow]:
    draw = random.Random(num)
    rows = []
    for _ in range(num):
        prompt = [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(1, 20))]
        for _ in range(num_options):
            answer = [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(1, longest))]
            rows.append(ItemRow([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)))
    return rows


def alone(model: Any, row: ItemRow) -> OptionScore:
    """One row, one target after the other, from the model's own logits."""
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0].float()
    places = [place for place, is_target in enumerate(row.is_target) if is_target]
    nll = [-float(logits_TV[place - 1].log_softmax(0)[row.input_ids[place]]) for place in places]
    return OptionScore(sum(nll), len(nll), all(int(logits_TV[place - 1].argmax()) == row.input_ids[place] for place in places))


def assert_same(found: list[OptionScore], wanted: list[OptionScore]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one.num_tokens, one.is_greedy) == (other.num_tokens, other.is_greedy)
        assert abs(one.nll_sum - other.nll_sum) <= 1e-5 * max(1, one.num_tokens)


@pytest.mark.parametrize("window", [8, 64])
@pytest.mark.parametrize("batch_tokens", [1, 60, 4000])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_each_row_alone(kind: str, batch_tokens: int, window: int) -> None:
    model, rows = tiny(kind, window), questions(12)
    assert_same(score_options(model, rows, batch_tokens), [alone(model, row) for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_shared_within_the_window_only(kind: str) -> None:
    assert can_share(tiny(kind), 20)
    assert can_share(tiny(kind, 8), 20) == (kind == "llama")


def test_order_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = build_model(seed=1).eval(), questions(12)
    wanted = score_options(model, rows, 300)
    assert_same(score_options(model, rows[::-1], 300)[::-1], wanted)
    monkeypatch.setattr(prefix_sharing, "CHUNK_ENTRIES", 1)
    assert_same(score_options(model, rows, 300), wanted)


def harness(model: Any, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"t{token}": token for token in range(VOCABULARY)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t2", bos_token="t1")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu", max_length=60)


def requests(rows: list[ItemRow]) -> list[Any]:
    borders = [row.is_target.index(True) for row in rows]
    return [(("", ""), row.input_ids[:at], row.input_ids[at:]) for row, at in zip(rows, borders, strict=True)]


@pytest.mark.parametrize("longest", [1, 3])
def test_lm_eval_finds_the_same_on_two_hundred_items(longest: int) -> None:
    model, rows = build_model(seed=1, num_hidden_layers=2).eval(), questions(200, longest=longest)
    theirs = harness(model, 8)._loglikelihood_tokens(requests(rows), disable_tqdm=True)
    ours = score_options(model, rows, 2000)
    assert max(abs(loglikelihood + score.nll_sum) for (loglikelihood, _), score in zip(theirs, ours, strict=True)) <= 1e-4
    assert [bool(greedy) for _, greedy in theirs] == [score.is_greedy for score in ours]
    for start in range(0, len(rows), 4):
        of_theirs = [loglikelihood for loglikelihood, _ in theirs[start : start + 4]]
        of_ours = [-score.nll_sum for score in ours[start : start + 4]]
        assert of_theirs.index(max(of_theirs)) == of_ours.index(max(of_ours))
