"""Who is champion: the aliases champion and previous_champion of the MLflow registry, how they move, and the history of it.

    promote("ballast", 3, who="anna", why="less forgetting")    rollback("ballast", who="anna", why="it repeats itself")

Each move is signed on the version (tags ballast.promoted.who|when|why) and entered in the registered model's tag
ballast.champion_history, newest last. An alias that somebody moves in MLflow's UI is as good: it is noticed at the next look.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from components.artifacts import WORK
from components.errors import ParamsError, TrackingError
from components.tracking_store import hold_lock, initialise_store, open_client, tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

CHAMPION, PREVIOUS = "champion", "previous_champion"
HISTORY_TAG, WHY_TAG, VERDICT_TAG, REASONS_TAG = "ballast.champion_history", "ballast.why", "gate.verdict", "gate.reasons"
BY_HAND_WHO, BY_HAND_WHY = "MLflow UI or API (not named)", "alias edited by hand"
MAX_HISTORY_CHARACTERS = 4800
"""MLflow's databases keep 5,000 of a registered model's tag; the oldest entries go first, and the versions' tags keep theirs."""
MAX_WORDS_CHARACTERS = 500
LOCK = WORK / "registry.lock"
LOCK_SECONDS = 1800.0
"""Copying an 8 B model to a slow store is what others may have to wait for."""


class GateRefusalError(TrackingError):
    """The gate has not let this version pass, and nobody said FORCE=1."""

    exit_code = 4


@dataclass(frozen=True)
class Promotion:
    """Where `alias` points after a move, and what was entered in the history (None: it pointed there already)."""

    name: str
    version: int
    alias: str
    entry: dict[str, Any] | None


def promote(name: str, version: int, *, who: str, why: str, force: bool = False) -> Promotion:
    """Make a version the champion. The one until now stays at hand as previous_champion; at no moment is there none."""
    _check_words(who, why)
    initialise_store()
    with hold_lock(LOCK, LOCK_SECONDS), tracking_errors(f"Promoting version {version} of {name}"):
        client = open_client()
        model = _known_model(client, name, version)
        tags = client.get_model_version(name, str(version)).tags
        verdict = tags.get(VERDICT_TAG, "none")
        if verdict != "pass" and not force:
            raise GateRefusalError(_refusal(name, version, verdict, tags.get(REASONS_TAG, "[]")))
        _enter_hand_edit(client, model)
        champion = _version_at(client, name, CHAMPION)
        if champion == version:
            return Promotion(name, version, CHAMPION, None)
        _point_previous(client, name, champion)
        client.set_registered_model_alias(name, CHAMPION, str(version))
        forced: dict[str, Any] = {"forced": True, "gate": verdict} if verdict != "pass" else {}
        entry = _enter(client, name, "promoted", version, champion, who, why, **forced)
        return Promotion(name, version, CHAMPION, entry)


def rollback(name: str, *, who: str, why: str) -> Promotion:
    """Swap champion and previous_champion, so that a second rollback takes the first one back."""
    _check_words(who, why)
    initialise_store()
    with hold_lock(LOCK, LOCK_SECONDS), tracking_errors(f"Rolling back {name}"):
        client = open_client()
        model = _find_model(client, name)
        if model is not None:
            _enter_hand_edit(client, model)
        champion, previous = _version_at(client, name, CHAMPION), _version_at(client, name, PREVIOUS)
        if previous is None or previous == champion:
            raise TrackingError(
                f'{name} has no previous champion to go back to. Promote a version: make promote VERSION=1 WHY="…"'
            )
        client.set_registered_model_alias(name, CHAMPION, str(previous))
        _point_previous(client, name, champion)
        if champion is not None:
            _sign(client, name, champion, "rolled_back", who, why)
        entry = _enter(client, name, "rolled_back", previous, champion, who, why, sign="promoted")
        return Promotion(name, previous, CHAMPION, entry)


def note_hand_edit(name: str) -> dict[str, Any] | None:
    """Enter a move of the alias that nobody has told us of; None when the history knows where it points."""
    initialise_store()
    with hold_lock(LOCK, LOCK_SECONDS), tracking_errors(f"Reading the champion of {name}"):
        client = open_client()
        model = _find_model(client, name)
        return None if model is None else _enter_hand_edit(client, model)


def read_history(name: str) -> list[dict[str, Any]]:
    """Newest last: {"what": promoted|rolled_back|edited, "version", "previous", "who", "when", "why"}, "forced" where it was."""
    initialise_store()
    with tracking_errors(f"Reading the history of {name}"):
        model = _find_model(open_client(), name)
        return [] if model is None else parse_history(model.tags.get(HISTORY_TAG))


def parse_history(text: str | None) -> list[dict[str, Any]]:
    """What is no history (somebody has edited the tag) counts as none: it must not stop a pipeline."""
    try:
        entries = json.loads(text or "[]")
    except ValueError:
        return []
    return [entry for entry in entries if isinstance(entry, dict) and "version" in entry] if isinstance(entries, list) else []


def is_noted(entries: list[dict[str, Any]], version: int | None) -> bool:
    """Whether the history ends with this champion."""
    return (entries[-1]["version"] if entries else None) == version


def _check_words(who: str, why: str) -> None:
    if not why.strip():
        raise ParamsError('a champion is changed for a reason that others can read: WHY="…"')
    if not who.strip():
        raise ParamsError('who changes the champion is not known: WHO="…"')


def _find_model(client: "MlflowClient", name: str) -> "RegisteredModel | None":
    models = client.search_registered_models(f"name = '{name}'")
    return models[0] if models else None


def _version_at(client: "MlflowClient", name: str, alias: str) -> int | None:
    model = _find_model(client, name)
    number = model.aliases.get(alias) if model is not None else None
    return None if number is None else int(number)


def _known_versions(client: "MlflowClient", name: str) -> list[int]:
    return sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))


def _known_model(client: "MlflowClient", name: str, version: int) -> "RegisteredModel":
    model, known = _find_model(client, name), _known_versions(client, name)
    if model is None or version not in known:
        has = f"it has {', '.join(map(str, known))}" if known else "it has none; register one: dvc repro register_model"
        raise TrackingError(f"Promoting version {version} of {name}: there is no such version, {has}")
    return model


def _refusal(name: str, version: int, verdict: str, reasons: str) -> str:
    try:
        sentences = [str(reason) for reason in json.loads(reasons)]
    except (ValueError, TypeError):
        sentences = [reasons]
    head = f"version {version} of {name} did not pass the gate (verdict: {verdict}); to promote it all the same: FORCE=1"
    return "\n".join([head, *(f"  {sentence}" for sentence in sentences)])


def _enter_hand_edit(client: "MlflowClient", model: "RegisteredModel") -> dict[str, Any] | None:
    entries = parse_history(model.tags.get(HISTORY_TAG))
    number = model.aliases.get(CHAMPION)
    version = None if number is None else int(number)
    if is_noted(entries, version):
        return None
    before = entries[-1]["version"] if entries else None
    if before in _known_versions(client, model.name):
        _point_previous(client, model.name, before)
    tags = client.get_model_version(model.name, str(version)).tags if version is not None else {}
    return _enter(client, model.name, "edited", version, before, BY_HAND_WHO, tags.get(WHY_TAG) or BY_HAND_WHY, sign="promoted")


def _point_previous(client: "MlflowClient", name: str, version: int | None) -> None:
    if version is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(version))


def _enter(
    client: "MlflowClient",
    name: str,
    what: str,
    version: int | None,
    previous: int | None,
    who: str,
    why: str,
    sign: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One entry more in the model's history, and the same words on the version."""
    when = _sign(client, name, version, sign or what, who, why)
    words = {"who": who[:MAX_WORDS_CHARACTERS], "why": why[:MAX_WORDS_CHARACTERS], "when": when}
    entry = {"what": what, "version": version, "previous": previous, **words, **more}
    model = _find_model(client, name)
    entries = [*parse_history(model.tags.get(HISTORY_TAG) if model else None), entry]
    while len(json.dumps(entries)) > MAX_HISTORY_CHARACTERS and len(entries) > 1:
        del entries[0]
    client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(entries))
    return entry


def _sign(client: "MlflowClient", name: str, version: int | None, what: str, who: str, why: str) -> str:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    if version is not None:
        for key, value in {"who": who, "when": when, "why": why}.items():
            client.set_model_version_tag(name, str(version), f"ballast.{what}.{key}", value)
    return when
