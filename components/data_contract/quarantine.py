"""A line of quarantine.jsonl: every row that is not used, with where it stands, why, and its own text.

The text of a row that is set aside for a secret or for personal data is not repeated: its line says where they stand, never
what they are.
"""

import json
from collections.abc import Sequence

from components.data.faults import FaultKind

NEVER_REPEATED = (FaultKind.SECRET, FaultKind.PERSONAL_DATA)
MAX_PLACES = 5
LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""Ends of lines to some readers, not to JSON."""


def quarantine_line(
    row_id: str, source: str, place: int, kind: FaultKind, reason: str, raw: str | None, raw_bytes: int | None
) -> str:
    """One JSON object without the end of the line. `raw_bytes` is the length of the whole row where `raw` is cut, else None.

    What UTF-8 cannot hold (half of a surrogate pair) is spelled as JSON's \\uXXXX.
    """
    line = {"row": row_id, "source": source, "line": place, "kind": str(kind), "reason": reason}
    line["raw"] = None if kind in NEVER_REPEATED else raw
    if raw_bytes is not None:
        line["raw_bytes"] = raw_bytes
    text = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    return text.translate(LINE_ENDS)


def reason_of_findings(kind: FaultKind, findings: Sequence[tuple[str, int, int]]) -> str:
    """Where a text holds what sets it aside: `findings` are [what, turn, offset] as INSPECTED has them, both from 0."""
    places = [f"{what.replace('_', ' ')} in turn {turn + 1} at character {offset + 1}" for what, turn, offset in findings]
    more = f" and {len(places) - MAX_PLACES} more" if len(places) > MAX_PLACES else ""
    return f"{str(kind).replace('_', ' ')}: {', '.join(places[:MAX_PLACES])}{more}"
