"""Do the targets, as they will be written, say what the assistant said? Asked once more of the finished rows.

Rendering has refused rows that its own tokens cannot say. Here columns of two passes meet, so a row beside another's tokens
would be found as well.
"""

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def targets_say_the_answers(table: pa.Table, tokenizer: "PreTrainedTokenizerBase") -> npt.NDArray[np.bool_]:
    """For each row: do all its answers, but those cut off, stand in the decoded targets, in order? White space aside.

    Takes `parsed.conversation`, `tokenised.input_ids`, `is_target` and `num_turns_cut`; a row without tokens says nothing.
    """
    ids = table.column("tokenised.input_ids").combine_chunks()
    marks = table.column("tokenised.is_target").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    flat, ends = ids.flatten().to_numpy(), ids.offsets.to_numpy() - ids.offsets[0].as_py()
    targets = [flat[start:end][marks[start:end]] for start, end in pairwise(ends)]
    decoded = tokenizer.batch_decode(targets, clean_up_tokenization_spaces=False)
    conversations = table.column("parsed.conversation").to_pylist()
    num_cut = table.column("tokenised.num_turns_cut").to_pylist()
    told = [_stand_in_order(_answers(turns, cut), text) for turns, cut, text in zip(conversations, num_cut, decoded, strict=True)]
    return np.array(told, dtype=bool)


def _answers(conversation: str | None, num_cut: int | None) -> list[str]:
    turns: list[list[str]] = json.loads(conversation) if conversation else []
    answers = [content for role, content in turns if role == "assistant"]
    return answers[: len(answers) - (num_cut or 0)]


def _stand_in_order(answers: list[str], text: Any) -> bool:
    said, place = "".join(str(text).split()), 0
    for answer in answers:
        words = "".join(answer.split())
        place = said.find(words, place)
        if place < 0:
            return False
        place += len(words)
    return True
