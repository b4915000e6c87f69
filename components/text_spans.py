"""What a search in one text gives back: kind, start and end of a find. The value itself is never kept."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from re import Match, Pattern
from typing import NamedTuple


class Span(NamedTuple):
    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Rule:
    """A kind, its pattern, and what else must hold. The pattern runs only where one of the `anchors` occurs in the text.

    Every pattern takes linear time on any text: bounded repeats, and a look-behind that lets a run start at its head only.
    """

    kind: str
    anchors: tuple[str, ...]
    pattern: Pattern[str]
    accept: Callable[[Match[str]], bool] = bool
    group: int | str = 0

    def spans(self, text: str) -> list[Span]:
        return [Span(self.kind, *match.span(self.group)) for match in self.pattern.finditer(text) if self.accept(match)]


def apart(spans: Sequence[Span], taken: Sequence[Span] = ()) -> list[Span]:
    """In order of place, without overlaps: the one that starts first stays, of two at one place the first of the list.

    Nothing stays on the place of one that is `taken` (these are in order and apart themselves).
    """
    starts = [span.start for span in taken]
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        before = bisect_right(starts, span.end - 1)
        is_taken = before > 0 and taken[before - 1].end > span.start
        if not is_taken and (not kept or kept[-1].end <= span.start):
            kept.append(span)
    return kept
