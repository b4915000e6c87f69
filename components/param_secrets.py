"""No credential in params.yaml: git keeps the file, DVC copies it into dvc.lock, and every reader of MLflow sees its values.

    refuse_secrets(path, text, values)    # before anything of the text can reach a message

Found by the name of a key (`token: …`, `api_key: …`) and by the shape of a text, comments included. The value is never shown.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from components.errors import ParamsError
from components.secrets_in_text import find_secrets

SECRET_KEY = re.compile(
    r"(?:^|[_-])(?:passwords?|passwd|passphrase|pwd|secrets?|token|credentials?|auth_string|(?:api|access|secret|private|account)[_-]?key)$",
    re.IGNORECASE,
)
"""`token` at the end only: `batch_tokens` and `max_secret_fraction` count something."""


def refuse_secrets(path: Path, text: str, values: object = None) -> None:
    """Raise a ParamsError for the text of the file and, where it is YAML, for its values."""
    faults = find_faults(text, values)
    if faults:
        lines = [f"{path.name}: {place} {what}" for place, what in faults]
        raise ParamsError(
            "\n".join(lines)
            + "\nTake it out, and out of git's history if it was committed, and make it invalid where it came from. "
            "Credentials come from the environment (HF_TOKEN, MLFLOW_TRACKING_PASSWORD, ...), a Prefect Secret block or "
            ".dvc/config.local: docs/security.md"
        )


def find_faults(text: str, values: object) -> list[tuple[str, str]]:
    """Place and kind of everything that looks like a credential: by key in the values, by line in the text with its comments."""
    faults = list(_walk(values, ()))
    for number, line in enumerate(text.splitlines(), 1):
        if found := find_secrets(line):
            faults.append((f"line {number}", f"holds what looks like a credential ({found[0].kind})"))
    return faults


def _walk(value: object, keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    place = ".".join(keys) or "(whole file)"
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _walk(below, (*keys, str(key)))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _walk(below, (*keys, str(number)))
    elif keys and SECRET_KEY.search(keys[-1]) and value not in (None, "") and not isinstance(value, bool):
        yield place, "has the name of a credential, and a value"
    elif isinstance(value, str) and (found := find_secrets(value)):
        yield place, f"holds what looks like a credential ({found[0].kind})"
