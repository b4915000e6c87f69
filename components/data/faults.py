"""Why a row cannot be used, or is set aside: the kinds that quarantine.jsonl, the contract and the data card speak of."""

from enum import StrEnum


class FaultKind(StrEnum):
    """The first nine are found in parsing, the next four in rendering, the last eight are set aside by policy
    (`data_contract.quarantine`)."""

    UNREADABLE = "unreadable"
    """Bytes or JSON that cannot be decoded."""
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_SCHEMA = "unknown_schema"
    WRONG_TYPE = "wrong_type"
    MISSING = "missing"
    EMPTY_TURN = "empty_turn"
    UNKNOWN_ROLE = "unknown_role"
    ROLE_ORDER = "role_order"
    NO_ANSWER = "no_answer"
    """GSM8K: no `#### <number>`."""
    CONTROL_TOKEN = "control_token"
    """The text spells a special token of the tokenizer."""
    TOO_LONG = "too_long"
    REFUSED_BY_TEMPLATE = "refused_by_template"
    LOSSY = "lossy"
    """Decoding the targets does not give the assistant's text back."""
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    OOD_OVERLAP = "ood_overlap"
    TEST_OVERLAP = "test_overlap"
    ENCODING = "encoding"
    SECRET = "secret"
    PERSONAL_DATA = "personal_data"
    LANGUAGE = "language"


POLICY_KINDS = tuple(FaultKind)[-8:]


class BadRowError(Exception):
    """Why one row cannot be used; becomes a line of quarantine.jsonl."""

    def __init__(self, message: str, kind: FaultKind = FaultKind.UNREADABLE) -> None:
        super().__init__(message)
        self.kind = kind
