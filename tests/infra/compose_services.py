"""What infra/compose.yaml says of a service, its variables filled in as compose does: for laws, and to run it as a process."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "infra" / "compose.yaml"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<rule>:[?-])(?P<rest>[^}]*))?\}")


def read_services(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """By name; without variables as they are written, with `${...}` in them."""
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    filled: dict[str, Any] = services if variables is None else fill_in(services, variables)
    return filled


def fill_in(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: fill_in(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [fill_in(value, variables) for value in node]
    return VARIABLE.sub(lambda found: value_of(found, variables), node) if isinstance(node, str) else node


def value_of(found: re.Match[str], variables: Mapping[str, str]) -> str:
    value = variables.get(found["name"], "")
    if not value and found["rule"] == ":?":
        raise KeyError(f"{found['name']} {found['rest']}")
    return value or (found["rest"] or "" if found["rule"] == ":-" else "")


def variables_of(text: str) -> dict[str, set[str]]:
    """Every variable of a text and the rules it is used with: `:?` (required), `:-` (with a default), or none."""
    used: dict[str, set[str]] = {}
    for found in VARIABLE.finditer(text):
        used.setdefault(found["name"], set()).add(f"{found['rule'] or ''}{found['rest'] if found['rule'] == ':-' else ''}")
    return used
