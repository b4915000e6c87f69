"""Laws of the marks: an empty token belongs to the word that it stands before, and a text without tokens is passed over."""

import pytest

from components.data.target_marks import _token_at


class FakeEncoding:
    """Tokens by their characters [begin, end)."""

    def __init__(self, *offsets: tuple[int, int]) -> None:
        self._offsets = offsets

    def char_to_token(self, character: int) -> int | None:
        return next((token for token, (begin, end) in enumerate(self._offsets) if begin <= character < end), None)

    def token_to_chars(self, token: int) -> tuple[int, int]:
        return self._offsets[token]


@pytest.mark.parametrize(
    ("offsets", "character", "token"),
    [
        (((0, 2), (2, 5)), 2, 1),
        (((0, 2), (2, 2), (2, 5)), 2, 1),  # the empty one stands before its word
        (((0, 2), (2, 2), (2, 2), (2, 5)), 2, 1),
        (((0, 3), (3, 5)), 2, 0),  # one that straddles the begin counts
        (((0, 2), (3, 5)), 2, 1),  # character 2 has no token
        (((0, 2), (2, 5), (2, 5)), 2, 1),  # a character of two tokens
        (((0, 2), (2, 5)), 5, 2),
    ],
)
def test_the_first_token_behind_a_character(offsets: tuple[tuple[int, int], ...], character: int, token: int) -> None:
    assert _token_at(FakeEncoding(*offsets), character, 5, len(offsets)) == token
