"""The section "Data" of the report, from data_card.json: what people must know of the data before they trust the figures.

Names, reasons and turns are other people's text: the template escapes it, and here every character that cannot be seen, or that
would turn the text around it, is made visible.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components.evaluation.report_histograms import bin_rows, histogram_panels
from components.evaluation.token_text import Piece, pieces

SPLITS = ("train", "validation", "test")
QUANTITIES = {"tokens": "tokens", "target_tokens": "target tokens", "turns": "turns"}
MAX_SOURCES = 30
"""Lines of the table of sources; those with fewer rows are added up in one line more."""
KINDS = {
    "unreadable": "bytes or JSON that cannot be read",
    "not_an_object": "no JSON object",
    "unknown_schema": "the fields of no schema that is known",
    "wrong_type": "a value of the wrong type",
    "missing": "a field that must be there is not",
    "empty_turn": "a turn without text",
    "unknown_role": "a role that is not known",
    "role_order": "turns in an order that no conversation has",
    "no_answer": "no “#### number” at the end",
    "control_token": "the text spells a special token of the tokenizer",
    "too_long": "not even the first exchange fits into the maximum length",
    "refused_by_template": "the chat template refuses it",
    "lossy": "decoding the targets does not give the text back",
    "duplicate": "repeats another row",
    "near_duplicate": "nearly repeats another row",
    "ood_overlap": "shares text with an OOD set",
    "test_overlap": "shares text with in-domain test rows",
    "encoding": "damaged or invisible characters",
    "secret": "holds what looks like a secret",
    "personal_data": "holds what looks like personal data",
    "language": "in a language that is not asked for",
}
FINDINGS = (
    ("duplicates", "repeat another row, but for case, Unicode form and blanks", ""),
    ("near_duplicates", "nearly repeat another row", ""),
    ("ood_overlaps", "are for training and share text with an OOD set", "by_set"),
    ("test_overlaps", "are for training and share text with in-domain test rows", ""),
    ("encoding_faults", "hold damaged or invisible characters", "by_kind"),
    ("secrets", "hold what looks like a secret", "by_kind"),
    ("personal_data", "hold what looks like personal data", "by_kind"),
)
"""Key, words, and what its rows are told apart by."""


def data_section(card: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Everything that the section shows; None where there is no card."""
    if card is None:
        return None
    counts = card["counts"]
    return {
        "counts": counts,
        "num_used": sum(counts["rows_used"].values()),
        "facts": _facts(card),
        "splits": _split_lines(card),
        "lengths": _length_lines(card["lengths"]),
        "sources": source_lines(card["sources"]),
        "has_weights": any(source["weight"] is not None for source in card["sources"]),
        "histograms": [_histogram(card, name) for name in ("tokens", "target_tokens")],
        "languages": _language_lines(card["languages"]),
        "findings": _finding_lines(card["findings"], counts["rows_in"]),
        "quarantine": _quarantine_lines(card["quarantine"], counts["rows_in"]),
        "examples": [_example(example) for example in card["examples"]],
    }


def shown(text: str) -> list[Piece]:
    """Text as it is, with marks in place of control characters and of those that change the direction of what follows."""
    found: list[Piece] = []
    for part in re.split(r"([ \n]+)", text):
        if part:
            found += [Piece(part, False)] if part[0] in " \n" else pieces(part)
    return found


def _facts(card: Mapping[str, Any]) -> dict[str, list[Piece]]:
    facts = {"chat template": str(card["chat_template"]), "vocabulary": f"{card['vocabulary_size']:,} tokens"}
    if card["max_length"] is not None:
        facts["maximum length"] = f"{card['max_length']:,} tokens"
    return {name: shown(text) for name, text in facts.items()}


def _split_lines(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    lines = []
    for split in SPLITS:
        figures = {name: card["lengths"][name][split] or {"total": 0} for name in ("tokens", "target_tokens")}
        totals = {name: of_split["total"] for name, of_split in figures.items()}
        lines.append({"name": split, "rows": card["counts"]["rows_used"][split], **totals, "cut": card["rows_cut"][split]})
    return lines


def _length_lines(lengths: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"quantity": words, "split": split, "figures": lengths[name][split]}
        for name, words in QUANTITIES.items()
        for split in SPLITS
        if lengths[name][split]
    ]


def source_lines(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line per source, those with most rows in the order of the card; the others together in the last one."""
    by_size = sorted(range(len(sources)), key=lambda place: (-sources[place]["rows_read"], place))
    kept = sorted(by_size[:MAX_SOURCES])
    lines = [_source_line([sources[place]], shown(sources[place]["name"])) for place in kept]
    if others := [sources[place] for place in by_size[MAX_SOURCES:]]:
        lines.append(_source_line(others, shown(f"{len(others)} smaller ones, see data_card.json")))
    return lines


def _source_line(sources: Sequence[Mapping[str, Any]], name: list[Piece]) -> dict[str, Any]:
    licences = list(dict.fromkeys(source["licence"] or "not given" for source in sources))
    schemas = list(dict.fromkeys(schema for source in sources for schema in source["schemas"]))
    alone = sources[0] if len(sources) == 1 else {"origin": None, "weight": None}
    return {
        "name": name,
        "origin": shown(alone["origin"]) if alone["origin"] else None,
        "weight": alone["weight"],
        "licence": shown(licences[0] if len(licences) == 1 else f"{len(licences)} different"),
        "is_licensed": any(source["licence"] for source in sources),
        "schemas": ", ".join(schemas),
        "read": sum(source["rows_read"] for source in sources),
        "not_drawn": sum(source["rows_not_drawn"] for source in sources),
        "used": {split: sum(source["rows_used"][split] for source in sources) for split in SPLITS},
        "quarantined": sum(sum(source["quarantined_by_kind"].values()) for source in sources),
        "target_tokens": sum(source["target_tokens"] for source in sources),
    }


def _histogram(card: Mapping[str, Any], name: str) -> dict[str, Any]:
    edges = card["histograms"][name]["edges"]
    counts = {split: card["histograms"][name][split] for split in SPLITS}
    medians = {split: (card["lengths"][name][split] or {}).get("median") for split in SPLITS}
    return {
        "title": QUANTITIES[name].capitalize(),
        "panels": histogram_panels(edges, counts, medians, QUANTITIES[name]),
        "lines": bin_rows(edges, counts),
    }


def _language_lines(languages: Mapping[str, int]) -> list[dict[str, Any]]:
    total = sum(languages.values())
    by_count = sorted(languages.items(), key=lambda item: (-item[1], item[0]))
    return [{"name": name, "rows": count, "share": _percent(count, total)} for name, count in by_count]


def _finding_lines(findings: Mapping[str, Any], rows_in: int) -> list[dict[str, Any]]:
    lines = []
    for name, words, groups in FINDINGS:
        found = findings[name]
        told = [
            (shown(group.replace("_", " ") if groups == "by_kind" else group), n) for group, n in found.get(groups, {}).items()
        ]
        if found.get("of_other_split"):
            told.append((shown("of another split"), found["of_other_split"]))
        lines.append({"words": words, "rows": found["rows"], "share": _percent(found["rows"], rows_in), "groups": told})
    return lines


def _quarantine_lines(quarantine: Iterable[Mapping[str, Any]], rows_in: int) -> list[dict[str, Any]]:
    return [
        {
            "kind": told["kind"].replace("_", " "),
            "words": KINDS.get(told["kind"], ""),
            "count": told["count"],
            "share": _percent(told["count"], rows_in),
            "rows": [{"name": shown(row["row"]), "reason": shown(row["reason"])} for row in told["rows"]],
            "num_more": told["count"] - len(told["rows"]),
        }
        for told in quarantine
    ]


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    turns = [
        {"role": turn["role"], "text": shown(turn["text"]), "num_left_out": turn["num_characters_left_out"]}
        for turn in example["turns"]
    ]
    return {**example, "row": shown(example["row"]), "turns": turns, "num_turns_left_out": example["num_turns"] - len(turns)}


def _percent(count: int, total: int) -> float:
    return round(100 * count / total, 2) if total else 0.0
