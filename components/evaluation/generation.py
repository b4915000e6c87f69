"""Letting a model write: answers, greedily and in batches with a cache of keys and values, and texts by drawing.

Batches are padded on the left, and prompts of like length share one. A prompt's answer is what the model would say to it alone
(in fp32; in half precision a batch may round a near tie the other way). The settings of generation that came with the model
(sampling, penalties) are set aside: they would change what is measured.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from components.data.end_of_turn import end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS_AT_A_TIME = 64


@dataclass(frozen=True)
class Answer:
    """What was said, without what ends it; `is_finished` is False where it had to be cut."""

    input_ids: list[int]
    is_finished: bool
    text: str


@dataclass(frozen=True)
class Endings:
    """Ids that end an answer, and a text that does ("": none)."""

    ids: tuple[int, ...]
    text: str


def endings(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Endings:
    """The end of sequence of tokenizer and model, and the end of turn of the chat template."""
    ids, text = end_of_turn(tokenizer)
    known: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
    of_model = known if isinstance(known, list) else [known]
    found = {*ids, *of_model, tokenizer.eos_token_id} - {None}
    return Endings(tuple(sorted(found)), text)


def generate_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    name: str,
) -> list[Answer]:
    """The greedy answer to each prompt, in the order given. A prompt must leave the model one position at least."""
    if not prompts:
        return []
    ends = endings(model, tokenizer)
    answers: dict[int, Answer] = {}
    batches = _batches([len(prompt) for prompt in prompts], model, max_new_tokens, batch_size)
    with tqdm(total=len(prompts), desc=f"evaluate_ood: {name}", unit="answer", leave=False) as progress:
        for indices, room in batches:
            said = _generate(model, tokenizer, [prompts[index] for index in indices], ends, room)
            answers |= {index: _answer(ids, ends, tokenizer) for index, ids in zip(indices, said, strict=True)}
            progress.update(len(indices))
    return [answers[index] for index in range(len(prompts))]


def _batches(
    lengths: Sequence[int], model: "PreTrainedModel", max_new_tokens: int, batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """Indices of prompts of like length, the longest first (what does not fit into memory fails at once), and how many tokens
    each may be answered with. That is the same for all of a batch: a neighbour must not lengthen an answer."""
    positions = positions_of(model)
    rooms = [max_new_tokens if positions is None else min(max_new_tokens, positions - length) for length in lengths]
    assert min(rooms) > 0, "a prompt that fills the context is left out before"
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == batch_size or rooms[index] != rooms[batch[0]]):
            yield batch, rooms[batch[0]]
            batch = []
        batch.append(index)
    if batch:
        yield batch, rooms[batch[0]]


def positions_of(model: "PreTrainedModel") -> int | None:
    """How many positions the model can read, where its configuration says so."""
    return getattr(model.config, "max_position_embeddings", None)


@torch.no_grad()
def _generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    ends: Endings,
    max_new_tokens: int,
) -> list[list[int]]:
    """What follows each prompt, its end included; a row that has ended is filled up with its first ending."""
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    input_BT = torch.tensor([[ends.ids[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    present_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    settings: dict[str, Any] = {"do_sample": False, "eos_token_id": list(ends.ids), "pad_token_id": ends.ids[0]}
    stop = {"stop_strings": [ends.text], "tokenizer": tokenizer} if ends.text else {}
    with _without_settings(model):
        said_BT: Any = model.generate(  # type: ignore[operator]  # the mixin's method is not seen on the class
            input_ids=input_BT, attention_mask=present_BT, max_new_tokens=max_new_tokens, **settings, **stop
        )
    return [row[width:].tolist() for row in said_BT.cpu()]


def _answer(ids: list[int], ends: Endings, tokenizer: "PreTrainedTokenizerBase") -> Answer:
    stop = next((place for place, token in enumerate(ids) if token in ends.ids), None)
    said = ids[:stop]
    text = str(tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
    is_ended_by_text = bool(ends.text) and ends.text in text
    if is_ended_by_text:
        text = text.partition(ends.text)[0].strip()
    return Answer(said, stop is not None or is_ended_by_text, text)


@torch.no_grad()
def sample_texts(model: "PreTrainedModel", begin: int, *, num_texts: int, num_tokens: int, seed: int) -> list[list[int]]:
    """What the model writes by itself after `begin`: each token drawn from its law (temperature 1, nothing cut off).

    Every text has `num_tokens` tokens: where one ends the model goes on with the next, as it read them.
    """
    positions = positions_of(model)
    room = num_tokens if positions is None else min(num_tokens, positions - 1)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    texts: list[list[int]] = []
    for start in range(0, num_texts, TEXTS_AT_A_TIME):
        token_B1 = torch.full((min(TEXTS_AT_A_TIME, num_texts - start), 1), begin, device=device)
        written, cache = [], None
        for _ in range(room):
            output: Any = model(input_ids=token_B1, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            token_B1 = torch.multinomial(output.logits[:, -1].float().softmax(1), 1, generator=generator)
            written.append(token_B1)
        texts += torch.cat(written, 1).tolist()
    return texts


@contextmanager
def _without_settings(model: "PreTrainedModel") -> Iterator[None]:
    """generate() fills in what it is not told from the model's own settings, penalties among them."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept
