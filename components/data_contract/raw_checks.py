"""The suite `raw_rows`: what is asked of the rows as they came, before any of them is a row of tokens.

A row that cannot be used has a `fault_kind`, and is judged by that alone: what else was found in it counts against no limit,
because nobody trains on it. So findings that `data_contract.quarantine` sets aside fail nothing, and are reported by kind.
Every fraction is of the rows in.
"""

from typing import TYPE_CHECKING, Any

from components.data.faults import POLICY_KINDS, FaultKind
from components.data_contract.check import Between, Check, Counts, Empty, Expected, NoneOf, OneOf, Suite, at_most
from components.data_params import DataContractParams

if TYPE_CHECKING:
    from pandas import DataFrame, Series

COMPLETE = (
    "row_id", "split", "source", "schema", "fault_kind", "num_turns", "prompt_characters", "target_characters",
    "num_encoding_faults", "num_secrets", "num_personal_data", "language",
)  # fmt: skip
PARTIAL = (
    "repeats_row", "nearly_repeats_row", "repeats_row_of_other_split", "ood_overlap", "test_overlap", "answer_is_well_formed",
)  # fmt: skip
"""Columns of the RAW frame: those that every row has, and those that say nothing (None) of most rows."""

REJECTED_KINDS = tuple(kind for kind in FaultKind if kind not in POLICY_KINDS)

KIND_CHECKS = {
    FaultKind.UNREADABLE: ("rows_are_readable", "Every row is readable.", "cannot be read",
        "export the file again as UTF-8 JSON, one complete value per row"),
    FaultKind.NOT_AN_OBJECT: ("rows_are_objects", "Every row is a JSON object.", "are no JSON object",
        "write each row as one object of key and value"),
    FaultKind.UNKNOWN_SCHEMA: ("schemas_are_known", "Every row has one of the known schemas.", "have no schema that is known",
        "rename the keys to those of a schema in the README's table of inputs"),
    FaultKind.WRONG_TYPE: ("values_have_their_type", "Every value has the type of its key.", "hold a value of the wrong type",
        "write text as a string and a conversation as a list of turns"),
    FaultKind.MISSING: ("nothing_is_missing", "No row lacks a key or a value.", "lack a key or a value",
        "fill in what the reason in quarantine.jsonl names"),
    FaultKind.EMPTY_TURN: ("turns_are_not_empty", "Every turn says something.", "have an empty turn",
        "fill in the turn, or remove the row"),
    FaultKind.UNKNOWN_ROLE: ("roles_are_known", "Every role is known.", "have a role that is not known",
        "name the roles system, user and assistant, or an alias of theirs"),
    FaultKind.ROLE_ORDER: ("roles_alternate", "User and assistant take turns, and the assistant is last.",
        "have their roles out of order", "put the turns in order; only a system turn may stand before the first user's"),
    FaultKind.NO_ANSWER: ("gsm8k_rows_have_an_answer", "Every GSM8K row has a '#### <number>'.", "have no '#### <number>'",
        "write the final answer after '####', or it cannot be scored"),
    FaultKind.CONTROL_TOKEN: ("texts_spell_no_control_token", "No text spells a special token of the tokenizer.",
        "spell a special token of the tokenizer", "remove the token from the text: it would open or close a turn"),
    FaultKind.TOO_LONG: ("a_turn_fits", "The first exchange of every row fits into data.max_length.",
        "are too long even for their first exchange", "raise data.max_length in params.yaml, or shorten the rows"),
    FaultKind.REFUSED_BY_TEMPLATE: ("the_template_takes_the_rows", "The chat template takes every row.",
        "are refused by the chat template", "set data.chat_template in params.yaml to one that has these roles"),
    FaultKind.LOSSY: ("texts_survive_the_tokenizer", "Decoding a row's targets gives its text back.",
        "do not come back from the tokenizer as they were", "remove the characters that the tokenizer does not know"),
}  # fmt: skip
"""Name, rule, fault and repair of the check of each kind."""


def raw_rows(limits: DataContractParams) -> Suite:
    """The checks over the RAW frame (COMPLETE and PARTIAL columns), one row per row in."""
    checks = (*_totals(limits), *_kinds(), *_findings(limits), *_policies())
    return Suite("raw_rows", "Rows as they came", checks, COMPLETE, PARTIAL, _columns, _count, _totals_of)


def _totals(limits: DataContractParams) -> tuple[Check, ...]:
    limit = limits.max_rejected_fraction
    return (
        Check("a_row_is_used", "critical", "rows_used", Between(1, None), "At least one row is used.", "are used",
              "check data.path in params.yaml; quarantine.jsonl says of every row why it is not used", of="totals"),
        Check("few_rows_rejected", "critical", "fault_kind", NoneOf(REJECTED_KINDS),
              f"{at_most(limit)} may be rejected (data_contract.max_rejected_fraction).", "were rejected",
              f"mend the rows that quarantine.jsonl names, or raise {_key('max_rejected_fraction', limit)}", limit),
    )  # fmt: skip


def _kinds() -> tuple[Check, ...]:
    """How many rows each kind of fault has: `few_rows_rejected` is the limit over all of them."""
    about = {kind: KIND_CHECKS[kind] for kind in REJECTED_KINDS}
    return tuple(
        Check(name, "warning", "fault_kind", NoneOf((kind,)), rule, fault, repair)
        for kind, (name, rule, fault, repair) in about.items()
    )


def check_of_kind(kind: str) -> str:
    """The name of the check that counts the rows of a kind."""
    return KIND_CHECKS[FaultKind(kind)][0] if kind in KIND_CHECKS else f"{kind}_sets_no_row_aside"


def _policies() -> tuple[Check, ...]:
    """How many rows each finding set aside: what was asked for, so no fault, and yet never silent."""
    return tuple(
        Check(check_of_kind(kind), "info", "fault_kind", NoneOf((kind,)), f"No row is set aside as {kind}.",
              f"are set aside as {kind}", f"take {kind} out of data_contract.quarantine in params.yaml to use them again")
        for kind in POLICY_KINDS
    )  # fmt: skip


def _findings(limits: DataContractParams) -> tuple[Check, ...]:
    checks = [
        _limited(limits, FaultKind.DUPLICATE, "few_duplicates", "repeats_row", Empty(),
                 "repeat an earlier row", "remove the repeats"),
        _limited(limits, FaultKind.NEAR_DUPLICATE, "few_near_duplicates", "nearly_repeats_row", Empty(),
                 "nearly repeat an earlier row", "remove the repeats"),
        Check("splits_share_no_row", "warning", "repeats_row_of_other_split", Empty(), "No row stands in two splits.",
              "stand in another split too", "remove the repeats: a test row that was trained on flatters the in-domain results"),
        _limited(limits, FaultKind.OOD_OVERLAP, "few_ood_overlaps", "ood_overlap", Empty(), "share text with an OOD item",
                 "remove these rows: what they teach would pass for not forgetting"),
        _limited(limits, FaultKind.TEST_OVERLAP, "few_test_overlaps", "test_overlap", Empty(), "share text with a test row",
                 "remove these rows: a test row that was trained on flatters the in-domain results"),
        _limited(limits, FaultKind.ENCODING, "few_encoding_faults", "num_encoding_faults", OneOf((0,)),
                 "hold text that was decoded wrongly", "export the text again as UTF-8"),
        _limited(limits, FaultKind.SECRET, "few_secrets", "num_secrets", OneOf((0,)), "hold a secret",
                 "revoke the secrets and remove them from the text"),
        _limited(limits, FaultKind.PERSONAL_DATA, "little_personal_data", "num_personal_data", OneOf((0,)),
                 "hold personal data", "remove the personal data from the text, or make sure that you may use them"),
        Check("answers_are_well_formed", "warning", "answer_is_well_formed", OneOf((True,)),
              "Every GSM8K answer ends with '#### <number>'.", "do not end with '#### <number>'",
              "write the final answer after '####', or it cannot be scored"),
    ]  # fmt: skip
    if limits.languages:
        known, names = OneOf((*limits.languages, "")), ", ".join(limits.languages)
        fault, repair = f"are in another language than {names}", "add the language to data_contract.languages, remove these rows"
        checks.append(_limited(limits, FaultKind.LANGUAGE, "few_other_languages", "language", known, fault, repair))
    return tuple(checks)


def _limited(
    limits: DataContractParams, kind: FaultKind, name: str, column: str, expected: Expected, fault: str, repair: str
) -> Check:
    """A finding with a limit of its own, that may be set aside instead."""
    key = {FaultKind.LANGUAGE: "max_other_language_fraction"}.get(kind, f"max_{kind}_fraction")
    limit: float = getattr(limits, key)
    rule = f"{at_most(limit)} may {_infinitive(fault)} (data_contract.{key})."
    ways = f"{repair}, or set them aside ({kind} in data_contract.quarantine), or raise {_key(key, limit)}"
    return Check(name, "critical", column, expected, rule, fault, ways, limit)


def _infinitive(fault: str) -> str:
    return f"be {fault.removeprefix('are ')}" if fault.startswith("are ") else fault


def _key(key: str, value: float) -> str:
    return f"data_contract.{key} (now {value:.10g}) in params.yaml"


def _columns(block: "DataFrame") -> "DataFrame":
    """The findings of the rows that are used; a row set aside, and an overlap of a row that is not trained on, has none.

    A repeat is an exact or a near one, never both.
    """
    import pandas

    unknown = set(block["fault_kind"].unique()) - {"", *FaultKind}
    assert not unknown, f"no kind of fault: {unknown}"
    used, trained = block["fault_kind"] == "", block["split"] == "train"
    frame = {
        column: block[column].where(used) for column in ("repeats_row", "repeats_row_of_other_split", "answer_is_well_formed")
    }
    frame |= {column: block[column].where(used & trained) for column in ("ood_overlap", "test_overlap")}
    frame |= {column: block[column].where(used, 0) for column in ("num_encoding_faults", "num_secrets", "num_personal_data")}
    frame["nearly_repeats_row"] = block["nearly_repeats_row"].where(used & block["repeats_row"].isna())
    frame["language"] = block["language"].where(used, "")
    frame["fault_kind"] = block["fault_kind"]
    return pandas.DataFrame(frame)


def _count(block: "DataFrame") -> Counts:
    kinds = block["fault_kind"]
    used = block[kinds == ""]
    sources = {
        str(source): {"rows_in": len(rows)} | _use_of(rows) for source, rows in kinds.groupby(block["source"], observed=True)
    }
    return {
        "rows_in": len(block),
        "rows_used": len(used),
        "rows_quarantined": len(block) - len(used),
        "quarantined_by_kind": _shares(kinds[kinds != ""]),
        "rows_used_by_split": _shares(used["split"]),
        "rows_used_by_schema": _shares(used["schema"]),
        "rows_used_by_language": _shares(used["language"]),
        "by_source": sources,
    }


def _totals_of(counts: Counts) -> dict[str, int]:
    return {"rows_used": counts["rows_used"]}


def _use_of(kinds: "Series[Any]") -> dict[str, int]:
    num_used = int((kinds == "").sum())
    return {"rows_used": num_used, "rows_quarantined": len(kinds) - num_used}


def _shares(values: "Series[Any]") -> dict[str, int]:
    """How many rows have each value, by value."""
    return {str(value): int(count) for value, count in values.value_counts().sort_index().items()}
