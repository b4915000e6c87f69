"""DVC's settings of a clone, for another folder that shares its cache: paths made absolute, and what is downloaded is verified.

They may hold passwords (`dvc remote modify --local`): the file is .dvc/config.local, which git ignores, and only we may read it.
"""

import os
from pathlib import Path
from typing import Any

from components.errors import BallastError

PATHS = (
    "credentialpath",
    "configpath",
    "keyfile",
    "cert_path",
    "key_path",
    "gdrive_service_account_json_file_path",
    "gss_auth_file",
)


def write_settings(root: Path, folder: Path) -> None:
    """`folder/.dvc/config.local` from the settings of the clone `root` and the tracked ones of `folder`."""
    settings = merge_settings(root, folder)
    file = folder / ".dvc" / "config.local"
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".config.local.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        settings.write(stream)
    os.replace(temporary, file)


def merge_settings(root: Path, folder: Path) -> Any:
    """The clone's own settings over the tracked ones; relative paths are relative to the clone, where they were written."""
    from configobj import ConfigObj  # DVC's own reader of these files

    merged = ConfigObj(list_values=False)
    for file in (root / ".dvc/config", folder / ".dvc/config", root / ".dvc/config.local"):
        if file.exists():
            merged.merge(make_absolute(ConfigObj(str(file), list_values=False), root / ".dvc"))
    for section in merged:
        if section.strip("'\"").startswith("remote "):
            merged[section]["verify"] = "true"
    merged.setdefault("cache", {})["dir"] = find_cache(root)
    return merged


def make_absolute(settings: Any, base: Path) -> Any:
    for section in settings.values():
        for name, value in section.items():
            if (name in PATHS or (name == "url" and "://" not in value)) and not os.path.isabs(value):
                section[name] = os.path.normpath(base / os.path.expanduser(value))
    return settings


def find_cache(root: Path) -> str:
    """The folder of the clone's cache."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return str(repo.cache.local_cache_dir)


def read_remote(root: Path) -> str:
    """The name of the default remote."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
    if not name:
        raise BallastError(
            f"no DVC remote is configured in {root}, and a worker without a shared disk gets its data from there. "
            "Add one: dvc remote add -d storage <folder or s3://bucket/path>, then commit .dvc/config and push"
        )
    return str(name)


def read_secrets(root: Path) -> dict[str, str]:
    """Settings of remotes in .dvc/config.local and in DVC's other private files, by name: what is to be kept out of logs."""
    from dvc.config import Config

    secrets: dict[str, str] = {}
    for level in ("system", "global", "local"):
        config = Config(str(root / ".dvc")).load_one(level)
        for remote, settings in config.get("remote", {}).items():
            secrets |= {f"{level}_{remote}_{name}": str(value) for name, value in settings.items()}
    return secrets
