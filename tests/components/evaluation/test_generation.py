"""Laws of generation: a batch says what each prompt alone would be told, an answer ends where the template ends it or is cut."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from components.evaluation.generation import Answer, endings, generate_answers, sample_texts
from components.models import build_tiny_model, build_word_tokenizer
from components.params import BaseModelParams
from tests.components.evaluation.conftest import scripted_model
from tests.conftest import build_model

POSITIONS = 48
WORDS = [f"w{number}" for number in range(60)]


def make(architecture: Any = "llama", seed: int = 0) -> tuple[Any, Any]:
    """A random model whose laws are far from uniform, and its tokenizer."""
    tokenizer = build_word_tokenizer(WORDS, POSITIONS)
    params = BaseModelParams(architecture=architecture, hidden_size=16, num_layers=2, num_heads=2, seed=seed)
    model = build_tiny_model(params, tokenizer, POSITIONS).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(12.0)
    return model, tokenizer


def prompts(num: int, longest: int = 30) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, longest, (num,), generator=generator).tolist()
    return [torch.randint(7, 67, (length,), generator=generator).tolist() for length in lengths]


def answer(model: Any, tokenizer: Any, asked: list[list[int]], batch_size: int = 4, max_new_tokens: int = 12) -> list[Answer]:
    return generate_answers(model, tokenizer, asked, max_new_tokens=max_new_tokens, batch_size=batch_size, name="set")


@torch.no_grad()
def literal(model: Any, tokenizer: Any, prompt: list[int], num_tokens: int) -> tuple[list[int], bool]:
    """The most likely token again and again, the whole row read anew each time."""
    said: list[int] = []
    while len(said) < num_tokens:
        token = int(model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            return said, True
        said.append(token)
    return said, False


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "phi3"])
def test_a_batch_says_what_every_prompt_alone_is_told(architecture: str) -> None:
    model, tokenizer = make(architecture)
    asked = prompts(11)
    together, alone = answer(model, tokenizer, asked), answer(model, tokenizer, asked, batch_size=1)
    assert together == alone
    assert [(one.input_ids, one.is_finished) for one in together] == [literal(model, tokenizer, one, 12) for one in asked]
    assert len({tuple(one.input_ids) for one in together}) > 3, "the test must be able to see a mix-up"


def test_an_answer_that_never_ends_is_cut_and_says_so() -> None:
    tokenizer = build_word_tokenizer(WORDS, POSITIONS)
    forever = scripted_model({8: 9, 9: 10, 10: 9}, len(tokenizer))
    [said] = answer(forever, tokenizer, [[7, 8]], max_new_tokens=5)
    assert (said.input_ids, said.is_finished, said.text) == ([9, 10, 9, 10, 9], False, "w2 w3 w2 w3 w2")
    ending = scripted_model({8: 9, 9: tokenizer.eos_token_id}, len(tokenizer))
    assert answer(ending, tokenizer, [[7, 8], [9]], max_new_tokens=5) == [Answer([9], True, "w2"), Answer([], True, "")]


def test_an_answer_that_ends_with_its_last_token_is_finished() -> None:
    tokenizer = build_word_tokenizer(WORDS, POSITIONS)
    model = scripted_model({8: 9, 9: tokenizer.eos_token_id}, len(tokenizer))
    assert [answer(model, tokenizer, [[8]], max_new_tokens=num)[0].is_finished for num in (1, 2, 3)] == [False, True, True]


def test_no_answer_goes_past_the_positions_that_the_model_has_and_none_is_lengthened_by_its_neighbour() -> None:
    model, tokenizer = make()
    asked = [one[:1] * length for one, length in zip(prompts(4), (POSITIONS - 1, POSITIONS - 3, POSITIONS - 3, 5), strict=True)]
    said = answer(model, tokenizer, asked, max_new_tokens=20)
    assert [(one.input_ids, one.is_finished) for one in said] == [
        literal(model, tokenizer, one, min(20, POSITIONS - len(one))) for one in asked
    ]


def test_settings_that_came_with_the_model_change_nothing_and_stay_with_it() -> None:
    model, tokenizer = make()
    before = answer(model, tokenizer, prompts(6))
    strange = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=9.0, eos_token_id=3, max_length=4)
    model.generation_config = strange
    assert answer(model, tokenizer, prompts(6)) != []
    assert model.generation_config is strange
    model.generation_config = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=9.0, min_new_tokens=12)
    assert answer(model, tokenizer, prompts(6)) == before


@pytest.mark.parametrize(("name", "end"), [("gemma", "<end_of_turn>"), ("llama3", "<|eot_id|>"), ("chatml", "<|im_end|>")])
def test_the_template_s_end_of_turn_ends_an_answer(name: str, end: str, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("byte_level", name)
    model = build_model(vocab_size=len(tokenizer))
    ends = endings(model, tokenizer)
    assert tokenizer.convert_tokens_to_ids(end) in ends.ids and tokenizer.eos_token_id in ends.ids


def test_an_end_of_turn_of_several_tokens_ends_an_answer_as_a_text(make_new_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_new_tokenizer("byte_level", ())
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' =!' }}{% endfor %}"
    ids = tokenizer("cat =! mat", add_special_tokens=False)["input_ids"]
    assert endings(build_model(vocab_size=len(tokenizer)), tokenizer).text == "=!" and len(set(ids)) == len(ids)
    model = scripted_model(dict(pairwise(ids)), len(tokenizer), otherwise=ids[0])
    said = answer(model, tokenizer, [[ids[-1]], [ids[0]], [ids[0], ids[-1]]], max_new_tokens=20)
    assert [(one.text, one.is_finished) for one in said] == [
        ("cat", True),
        ("", True),
        ("cat", True),
    ]
    assert not answer(model, tokenizer, [[ids[-1]]], max_new_tokens=2)[0].is_finished


def test_nothing_asked_is_nothing_said() -> None:
    model, tokenizer = make()
    assert answer(model, tokenizer, []) == []
    assert sample_texts(model, 2, num_texts=0, num_tokens=5, seed=0) == []


def test_the_same_seed_draws_the_same_texts_and_another_seed_draws_others() -> None:
    model, _ = make()
    first = sample_texts(model, 2, num_texts=70, num_tokens=6, seed=1)
    assert len(first) == 70 and all(len(text) == 6 for text in first)
    assert (
        first
        == sample_texts(model, 2, num_texts=70, num_tokens=6, seed=1)
        != sample_texts(model, 2, num_texts=70, num_tokens=6, seed=2)
    )
    assert all(len(text) == POSITIONS - 1 for text in sample_texts(model, 2, num_texts=2, num_tokens=999, seed=1))


@torch.no_grad()
def test_texts_are_drawn_from_the_laws_of_the_model() -> None:
    """Means over 3,000 drawn pairs of tokens: their nll is the entropy of the laws they were drawn from."""
    model = build_model(initializer_range=0.3)
    texts = torch.tensor([[1, *text] for text in sample_texts(model, 1, num_texts=3000, num_tokens=2, seed=0)])
    logprobs_BTV = model(input_ids=texts).logits[:, :-1].log_softmax(-1)
    nll_BT = -logprobs_BTV.gather(2, texts[:, 1:, None])[..., 0]
    entropy_BT = -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)
    error = float((nll_BT - entropy_BT).std()) / math.sqrt(nll_BT.numel())
    assert abs(float((nll_BT - entropy_BT).mean())) < 4 * error < 0.2
    law_V = logprobs_BTV[0, 0].exp()
    drawn_V = torch.bincount(texts[:, 1], minlength=len(law_V)) / len(texts)
    assert 0.5 * float((law_V - drawn_V).abs().sum()) < 0.06
