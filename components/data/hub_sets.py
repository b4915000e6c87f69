"""Data sets of the hub at a pinned revision: which of its files a config and split are made of, and those files on this disk.

The files are read by our own readers: `datasets.load_dataset` fills what a malformed row lacks and says nothing. `datasets`
decides which files belong to a config and split: it is shown a folder with the card and empty files of the same names. So its
rules hold, nothing of the repository is run, and the hub is asked for the list of names and the files only.

A revision never changes, so what was resolved is kept under `hub_cache` and a second run asks nobody.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from components.artifacts import fingerprint_file, fingerprint_json, write_json
from components.data.file_kinds import SUFFIXES, is_data, is_foreign_data, is_passed_over, repair_of
from components.data_params import HubDataParams
from components.errors import DataError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
CARDS = ("README.md", ".huggingface.yaml")
"""Where a repository says what its configs are; the second outdoes the first."""


@dataclass(frozen=True)
class HubSet:
    """The files of one config and split. `paths` is by name: hub id and path in the repository."""

    hub_id: str
    revision: str
    config: str
    split: str
    licence: str | None
    """As the card gives it."""
    paths: dict[str, Path]

    def describe(self) -> dict[str, Any]:
        """What an artifact records: names and content, no path of this machine."""
        files = {name: fingerprint_file(path) for name, path in sorted(self.paths.items())}
        known = {"hub_id": self.hub_id, "revision": self.revision, "config": self.config, "split": self.split}
        return {**known, "licence": self.licence, "files": files, "fingerprint": fingerprint_json(files)}


def fetch_hub_set(params: HubDataParams, hub_cache: Path) -> HubSet:
    """The files of `params`, fetched if they are not under `hub_cache` yet. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE hold."""
    key = fingerprint_json([params.hub_id, params.revision, params.config, params.split])
    record = hub_cache / "resolved" / f"{params.hub_id.replace('/', '--')}-{key}.json"
    with _explained(params, hub_cache):
        known = _read_record(record)
        resolved = known or _resolve(params, hub_cache)
        paths = {f"{params.hub_id}/{file}": _download(params, file, hub_cache) for file in resolved["files"]}
        if known is None:  # a whole cache is only read: it may be shared, or lie on a disk that cannot be written
            write_json(record, resolved)
    return HubSet(params.hub_id, params.revision, resolved["config"], params.split, resolved["licence"], paths)


def _read_record(record: Path) -> dict[str, Any] | None:
    """A record that is not whole is made again."""
    try:
        resolved = json.loads(record.read_text(encoding="utf-8"))
        return resolved if set(resolved) == {"config", "files", "licence"} else None
    except (OSError, ValueError, TypeError):
        return None


def _download(params: HubDataParams, file: str, hub_cache: Path) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(params.hub_id, file, repo_type="dataset", revision=params.revision, cache_dir=hub_cache))


def _resolve(params: HubDataParams, hub_cache: Path) -> dict[str, Any]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    hub = HfApi()
    hub.dataset_info(params.hub_id, revision=params.revision)  # says at once what is wrong; the list tries for half a minute
    tree = hub.list_repo_tree(params.hub_id, repo_type="dataset", revision=params.revision, recursive=True)
    names = sorted(entry.path for entry in tree if isinstance(entry, RepoFile))
    if not any(map(is_data, names)):
        raise _unreadable(params, names)
    cards = {name: _download(params, name, hub_cache) for name in CARDS if name in names}
    front = _front_matter(params, cards)
    hub_cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=hub_cache, prefix=".names-") as scratch:
        folder = Path(scratch).resolve() / "repository"
        # Archives come later: `datasets` would look into them.
        _lay_out(params, folder, [name for name in names if not name.lower().endswith(_ARCHIVES)], cards)
        config, files = _files_of(params, folder)
        _lay_out(params, folder, [name for name in names if name.lower().endswith(_ARCHIVES)], {})
        matched = _matched(folder, front, config, params.split)
    files = [file for file in files if is_data(file)]
    _require_all_read(params, files, sorted({*matched} - {*files}))
    return {"config": config, "files": files, "licence": _licence(front)}


def _front_matter(params: HubDataParams, cards: dict[str, Path]) -> dict[str, Any]:
    """The card's YAML. Its patterns are the author's: one that leads out of the repository is refused before it is followed."""
    import yaml
    from huggingface_hub import DatasetCard

    front: dict[str, Any] = {}
    try:
        if CARDS[0] in cards:
            front.update(DatasetCard.load(cards[CARDS[0]]).data.to_dict())
        if CARDS[1] in cards:
            front.update(yaml.safe_load(cards[CARDS[1]].read_text(encoding="utf-8")) or {})
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{_place(params)}: its card cannot be read ({str(error)[:200]}). {_BY_HAND}") from None
    for pattern in _texts(front.get("configs")):
        if "://" in pattern or pattern.startswith(("/", "~")) or ".." in PurePosixPath(pattern).parts:
            raise DataError(f"{_place(params)}: its card names files outside the repository ({pattern:.100}). {_BY_HAND}")
    return front


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _licence(front: dict[str, Any]) -> str | None:
    licence = front.get("license")
    told = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence or "")
    named = front.get("license_name")
    return (f"{told}: {named}" if told == "other" and isinstance(named, str) else told) or None


def _lay_out(params: HubDataParams, folder: Path, names: Sequence[str], cards: dict[str, Path]) -> None:
    """Empty files of the repository's names, and its card."""
    for name in names:
        path = folder / name
        if ".." in PurePosixPath(name).parts or not path.is_relative_to(folder):
            raise DataError(f"{_place(params)}: the hub lists {name!r:.100}, which leads out of the repository. {_BY_HAND}")
        if path.name != "dataset_infos.json":  # of old versions; empty it would not be read
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cards[name].read_bytes() if name in cards else b"")


def _files_of(params: HubDataParams, folder: Path) -> tuple[str, list[str]]:
    """Name of the config and the files of the split, as `datasets` resolves them."""
    from datasets import get_dataset_config_names, load_dataset_builder

    try:
        configs = get_dataset_config_names(str(folder))
        if params.config is not None and params.config not in configs:
            raise DataError(f"{_place(params)} has no config {params.config!r}. It has: {', '.join(configs)}")
        if params.config is None and len(configs) > 1 and "default" not in configs:
            config = _default_config(params, folder, configs)
        else:
            config = params.config or ("default" if "default" in configs else configs[0])
        builder = load_dataset_builder(str(folder), name=config, cache_dir=str(folder.parent / "cache"))
    except DataError:
        raise
    except Exception as error:  # whatever datasets raises for a card or layout that it cannot follow
        told = " ".join(str(error).replace(str(folder), params.hub_id).split())[:300]
        raise DataError(
            f"{_place(params)}: `datasets` cannot tell its files ({type(error).__name__}: {told}). {_BY_HAND}"
        ) from None
    assert type(builder).__module__.startswith("datasets."), "no code of a repository is run"
    splits = builder.config.data_files or {}
    if params.split not in splits:
        raise DataError(
            f"{_place(params)} has no split {params.split!r} in config {config!r}. It has: {', '.join(map(str, splits))}"
        )
    return config, [Path(file).resolve().relative_to(folder).as_posix() for file in splits[params.split]]


def _matched(folder: Path, front: dict[str, Any], config: str, split: str) -> list[str]:
    """Every file that the patterns of config and split name; of several kinds `datasets` keeps the commonest."""
    from datasets.data_files import DataFilesList, get_data_patterns, sanitize_patterns

    entry: dict[str, Any] = next((entry for entry in front.get("configs") or [] if entry.get("config_name") == config), {})
    base = str(folder / (entry.get("data_dir") or ""))
    found = sanitize_patterns(entry["data_files"]) if entry.get("data_files") else get_data_patterns(base)
    patterns = {str(name): value for name, value in found.items()}.get(split, [])
    return [Path(file).resolve().relative_to(folder).as_posix() for file in DataFilesList.from_patterns(patterns, base_path=base)]


def _require_all_read(params: HubDataParams, files: Sequence[str], left_out: Sequence[str]) -> None:
    """Data of other kinds beside the files that are read would be left out without a word; notes and code may be."""
    if not files:
        raise _unreadable(params, left_out)
    also = [name for name in left_out if is_data(name)]
    if also:
        raise DataError(
            f"{_place(params)}: split {params.split!r} is both {files[0]} and {also[0]}, of another kind: "
            f"which of them is meant cannot be told. {_BY_HAND}"
        )
    if foreign := [name for name in left_out if is_foreign_data(name)]:
        raise _unreadable(params, foreign)


def _default_config(params: HubDataParams, folder: Path, configs: Sequence[str]) -> str:
    from datasets import get_dataset_default_config_name

    default = get_dataset_default_config_name(str(folder))
    if default is None:
        raise DataError(f"{_place(params)} has several configs: set config to one of {', '.join(configs)}")
    return str(default)


_BY_HAND = "Fetch the files you want by hand, look at them, and put them below data.path"


def _place(params: HubDataParams) -> str:
    return f"data.hub: {params.hub_id}@{params.revision[:12]}"


def _unreadable(params: HubDataParams, names: Sequence[str]) -> DataError:
    """Files of a kind that is not read; the first one that is no note tells how it is repaired."""
    names = [name for name in names if not is_passed_over(PurePosixPath(name).name)]
    if not names:
        return DataError(f"{_place(params)} holds no data file. Check hub_id and revision")
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return DataError(
        f"{_place(params)}: {', '.join(names[:5])}{more}: of no kind that is read ({', '.join(SUFFIXES)}). "
        f"Fetch it by hand into the folder data.path. {repair_of(names[0])}"
    )


@contextmanager
def _explained(params: HubDataParams, hub_cache: Path) -> Iterator[None]:
    """What the hub or the network say, for people. Of the answer only its kind is told: its text may hold what was sent."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP client that this release uses

    try:
        yield
    except errors.GatedRepoError:
        told = "is gated. Accept the conditions on its page, and put a token of the same account into HF_TOKEN"
    except errors.RepositoryNotFoundError:
        told = "is not known to the hub, or is private. Check hub_id, or put a token that may read it into HF_TOKEN"
    except errors.RevisionNotFoundError:
        told = f"has no revision {params.revision}. Take the 40 digits of a commit from the history on its page"
    except errors.HfHubHTTPError as error:
        answer = error.response.status_code
        told = f"cannot be fetched: the hub answered {answer}. Try again later, or check HF_TOKEN and HF_ENDPOINT"
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, HTTPError) as error:
        told = (
            f"cannot be fetched ({type(error).__name__}) and is not whole in {hub_cache}. "
            "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or fetch it once where there is a network and copy that folder"
        )
    except errors.HFValidationError:
        told = "is no name of a data set. Correct hub_id"
    except OSError as error:
        told = f"cannot be kept in {hub_cache} ({error.strerror or type(error).__name__}). Check that folder and its disk"
    else:
        return
    raise DataError(f"{_place(params)} {told}")
