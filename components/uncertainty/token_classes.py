"""Classes of tokens: where masks and losses behave differently, and which of them may be protected.

Every target token has one class, the first that applies: end_of_turn (a special token that closes a turn), first (the first
target of a turn), format (no letter and no digit: punctuation, white space, separators), digit (a digit and no letter), word.

Shapes: N target tokens in row-major order, V vocabulary.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

CLASSES = ("end_of_turn", "first", "format", "digit", "word")
END_OF_TURN, FIRST, FORMAT, DIGIT, WORD = range(len(CLASSES))


def classify_vocabulary(texts: Sequence[str], special_ids: Iterable[int]) -> Tensor:
    """Class of each token id by its text alone, [V] int8: every special token counts as end_of_turn."""
    classes = [_class_of_text(text) for text in texts]
    for token in special_ids:
        classes[token] = END_OF_TURN
    return torch.tensor(classes, dtype=torch.int8)


def _class_of_text(text: str) -> int:
    if any(character.isalpha() for character in text):
        return WORD
    return DIGIT if any(character.isdigit() for character in text) else FORMAT


def classify_targets(class_of_token_V: Tensor, label_N: Tensor, is_turn_start_N: Tensor) -> Tensor:
    """Class of each target token, [N] int8: by its text, but `first` where a turn's targets begin with another class."""
    class_N = class_of_token_V.to(label_N.device)[label_N]
    return torch.where(
        is_turn_start_N & (class_N != END_OF_TURN), torch.tensor(FIRST, dtype=torch.int8, device=class_N.device), class_N
    )
