"""Turns of a conversation: the many ways to write who speaks and what is said, and the one order that can be learnt from."""

from collections.abc import Mapping
from typing import Any

from components.data.conversations import Message
from components.data.faults import BadRowError, FaultKind
from components.data.strict_json import kind_of, text_of

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "bing", "bard"), "assistant"),
}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
_KEYS = (("from", "value"), ("role", "content"))


def parse_turns(turns: Any, name: str) -> list[Message]:
    """The turns of a list, either {from, value} or {role, content}."""
    if not isinstance(turns, list):
        raise BadRowError(f"{name} must be a list of turns, found {kind_of(turns)}. Write a list", FaultKind.WRONG_TYPE)
    if not turns:
        raise BadRowError(f"{name} has no turns. Add a user's and an assistant's, or remove the row", FaultKind.EMPTY_TURN)
    return [_parse_turn(turn, f"{name}[{number}]") for number, turn in enumerate(turns, start=1)]


def filled(row: Mapping[str, Any], key: str) -> str:
    """The text under a key, which must not be blank."""
    value = text_of(row, key)
    if not value or value.isspace():
        raise BadRowError(f"{key} is empty. Write what is said, or remove the row", FaultKind.EMPTY_TURN)
    return value


def optional(row: Mapping[str, Any], key: str) -> str | None:
    """The text under a key that may be missing, null or blank."""
    value = text_of(row, key) if row.get(key) is not None else ""
    return None if not value or value.isspace() else value


def check_order(messages: list[Message]) -> tuple[Message, ...]:
    """At most one system turn, at the start; then user and assistant in turn, the assistant last."""
    roles = [message["role"] for message in messages]
    first = 1 if roles[0] == "system" else 0
    body = roles[first:]
    if not body or body[0::2].count("user") * 2 != len(body) or body[1::2].count("assistant") * 2 != len(body):
        shown = " ".join(roles[:8]) + (" …" if len(roles) > 8 else "")
        what, repair = _order_fault(body, first)
        raise BadRowError(f"{what} (found {shown}). {repair}", FaultKind.ROLE_ORDER)
    return tuple(messages)


def _order_fault(body: list[str], first: int) -> tuple[str, str]:
    if not body:
        return "there is a system turn and nothing else", "Add a user's and an assistant's turn, or remove the row"
    if "system" in body:
        number = first + body.index("system") + 1
        return f"turn {number} is a system turn, and one may stand at the very start only", "Move it there, or remove it"
    if body[0] == "assistant":
        return f"turn {first + 1} is the assistant's, before any user's", "Add the question, or remove the turn"
    for number in range(first + 1, first + len(body)):
        if (role := body[number - first]) == body[number - first - 1]:
            return f"turns {number} and {number + 1} are both the {role}'s", "Join them, or add what is missing between them"
    return "the last turn is the user's: there is no answer to learn", "Add the answer, or remove the last turn"


def _parse_turn(turn: Any, name: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRowError(
            f"{name} must be an object with a role and a text, found {kind_of(turn)}. Write {{from, value}} or {{role, content}}",
            FaultKind.WRONG_TYPE,
        )
    role_key, text_key = _KEYS[0] if "from" in turn else _KEYS[1]
    role = _role_of(turn, role_key, name)
    if isinstance(turn.get(text_key), list):
        return {"role": role, "content": _joined_parts(turn[text_key], f"{name}.{text_key}")}
    if turn.get(text_key) is None and any(turn.get(key) for key in ("tool_calls", "function_call")):
        raise BadRowError(f"{name} calls a tool and says nothing. Ballast learns texts only: remove the row", FaultKind.MISSING)
    try:
        return {"role": role, "content": filled(turn, text_key)}
    except BadRowError as fault:
        raise BadRowError(f"{name}.{fault}", fault.kind) from None


def _role_of(turn: Mapping[str, Any], key: str, name: str) -> str:
    role = turn.get(key)
    if role is None:
        raise BadRowError(
            f"{name} does not say who speaks. Add role or from: {', '.join(ROLES)}",
            FaultKind.MISSING if key not in turn else FaultKind.WRONG_TYPE,
        )
    if not isinstance(role, str):
        raise BadRowError(
            f"{name}.{key} must be a text, found {kind_of(role)}. Write one of {', '.join(ROLES)}", FaultKind.WRONG_TYPE
        )
    if (known := ROLES.get(role) or ROLES.get(role.strip().lower())) is not None:
        return known
    if role.lower() in TOOL_ROLES:
        repair = "Ballast learns conversations of user and assistant only: remove the row"
    else:
        repair = f"Write one of {', '.join(ROLES)}"
    raise BadRowError(f"{name}.{key}: the role {role[:40]!r} is not known. {repair}", FaultKind.UNKNOWN_ROLE)


def _joined_parts(parts: list[Any], name: str) -> str:
    """OpenAI's list of parts, where all are texts."""
    texts = []
    for number, part in enumerate(parts, start=1):
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        if kind != "text":
            raise BadRowError(
                f"{name}[{number}] must be a part of type text, found {kind!r:.40}. Ballast learns texts only: remove the row",
                FaultKind.WRONG_TYPE,
            )
        try:
            texts.append(text_of(part, "text"))
        except BadRowError as fault:
            raise BadRowError(f"{name}[{number}].{fault}", fault.kind) from None
    if not (joined := "".join(texts)).strip():
        raise BadRowError(f"{name} is empty. Write what is said, or remove the row", FaultKind.EMPTY_TURN)
    return joined
