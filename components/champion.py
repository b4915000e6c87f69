"""The champion as the pipeline sees it: which version has the alias now, and its weights in Hugging Face form.

    champion = find_champion("ballast")     # {"name", "version", "model_fingerprint", ...} or None
    folder = fetch_champion(champion)       # config.json, safetensors, tokenizer

Finding is asked at every `dvc repro`, so a local database is read as it is: MLflow's client would import for two seconds.
"""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import WORK, publish_folder
from components.errors import ModelError, TrackingError
from components.plain_names import plain_name
from components.promotion import CHAMPION, HISTORY_TAG, is_noted, note_hand_edit, parse_history
from components.tracking_store import (
    PATIENCE_SECONDS,
    initialise_store,
    local_database,
    open_client,
    tracking_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FINGERPRINT_TAGS = ("model_fingerprint", "tokenizer_fingerprint", "base_fingerprint")
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
FETCHED = WORK / "champion"


def find_champion(name: str) -> dict[str, Any] | None:
    """The version with the alias `champion`; a move that was made in MLflow's UI is entered in the history."""
    database = local_database(tracking_uri())
    if database is not None:
        if not database.exists():
            return None
        try:
            champion, is_known = _read_database(database, name)
        except sqlite3.DatabaseError as error:
            if "no such" not in str(error):  # such table or column: another MLflow's database, which its client can read
                raise TrackingError(_unreadable(database, error)) from error
        else:
            if not is_known:
                note_hand_edit(name)
            return champion
    return _ask_client(name)


def fetch_champion(champion: dict[str, Any]) -> Path:
    """A folder of links to the stored files where they lie on this machine, otherwise a download that is kept."""
    name, version = str(champion["name"]), str(champion["version"])
    who = f"The champion, version {version} of {name},"
    target = FETCHED / plain_name(champion["model_fingerprint"] or f"{name}-{version}", f"the registry's tag of {who}")
    initialise_store()
    with tracking_errors(f"Fetching version {version} of {name}"):
        client = open_client()
        location, source = _locate(client, name, version)
        if location is not None:
            return _link(location, target, who)
        if _is_whole(target):
            return target
        from mlflow.artifacts import download_artifacts

        with publish_folder(target) as staging:
            stored = Path(download_artifacts(artifact_uri=source, dst_path=str(staging / "stored")))
            for file, where in _hugging_face_files(stored, who).items():
                os.replace(where, staging / file)
        return target


def _unreadable(database: Path, error: sqlite3.DatabaseError) -> str:
    return (
        f"{database}: the champion cannot be read ({error}). Close what holds the database, or name another: MLFLOW_TRACKING_URI"
    )


@contextmanager
def _read_only(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_SECONDS / 2)) as connection:
        yield connection


def _read_database(database: Path, name: str) -> tuple[dict[str, Any] | None, bool]:
    """The champion, and whether the history ends with it. One transaction: a promotion of now is seen whole or not at all."""
    with _read_only(database) as connection:
        connection.execute("BEGIN")
        aliased = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
        [version] = connection.execute(aliased, (name, CHAMPION)).fetchone() or [None]
        tagged = "SELECT value FROM registered_model_tags WHERE name = ? AND key = ?"
        [history] = connection.execute(tagged, (name, HISTORY_TAG)).fetchone() or [None]
        tags = dict(
            connection.execute("SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", (name, version))
        )
    number = None if version is None else int(version)
    return _describe(name, number, tags), is_noted(parse_history(history), number)


def _ask_client(name: str) -> dict[str, Any] | None:
    note_hand_edit(name)
    with tracking_errors(f"Reading the champion of {name}"):
        client = open_client()
        models = client.search_registered_models(f"name = '{name}'")
        number = models[0].aliases.get(CHAMPION) if models else None
        return None if number is None else _describe(name, int(number), client.get_model_version(name, str(number)).tags)


def _describe(name: str, version: int | None, tags: dict[str, str]) -> dict[str, Any] | None:
    """None for a fingerprint that the version has not: it was registered by somebody else's tool."""
    if version is None:
        return None
    fingerprints = {key: tags.get(f"ballast.{key}") for key in FINGERPRINT_TAGS}
    return {"name": name, "version": version, **fingerprints, "uri": f"models:/{name}/{version}"}


def model_id_of(version: "ModelVersion") -> str | None:
    """The LoggedModel behind a version; MLflow's databases keep it in the source only."""
    found = re.fullmatch(r"models:/(m-\w+)", version.source or "")
    return found[1] if found else None


def _locate(client: "MlflowClient", name: str, version: str) -> tuple[Path | None, str]:
    """The folder of the stored files if this machine has it, and the address MLflow downloads them from."""
    stored = client.get_model_version(name, version)
    model_id = model_id_of(stored)
    if model_id is None:
        address = client.get_model_version_download_uri(name, version)
    else:
        address = client.get_logged_model(model_id).artifact_location
    path = Path(address.removeprefix("file://"))
    return (path if path.is_dir() else None), address


def _hugging_face_files(stored: Path, who: str) -> dict[str, Path]:
    """Name → file, from MLflow's layout (model/, components/tokenizer/) or a plain folder."""
    pickles = [path for path in sorted(stored.rglob("*")) if path.suffix in PICKLES]
    if pickles:
        raise ModelError(f"{who} holds {pickles[0]}: loading it would run what it says. Register it again from safetensors")
    inside = stored.resolve()
    if outside := [path for path in sorted(stored.rglob("*")) if not path.resolve().is_relative_to(inside)]:
        raise ModelError(f"{who} holds {outside[0]}, a link that leads out of the stored model. Register it again")
    configured = next((folder for folder in (stored / "model", stored) if (folder / "config.json").is_file()), stored)
    tokenizer = stored / "components" / "tokenizer"
    folders = [folder for folder in (tokenizer, configured) if folder.is_dir()]
    files = {path.name: path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()}
    for needed in ("config.json", "*.safetensors", "tokenizer*"):
        if not any(Path(name).match(needed) for name in files):
            raise ModelError(f"{who} has no {needed} under {stored}. Promote a version that register_model made")
    return files


def _link(stored: Path, target: Path, who: str) -> Path:
    """Made anew each time: the links of yesterday may point to what was deleted since."""
    files = _hugging_face_files(stored.resolve(), who)
    with publish_folder(target) as staging:
        for name, file in files.items():
            (staging / name).symlink_to(file)
    return target


def _is_whole(target: Path) -> bool:
    return (target / "config.json").is_file() and any(file.exists() for file in target.glob("*.safetensors"))
