"""Which data files there are: what lies at data.path, the hub sets of data.hub, and what data.sources says of each.

A source is named by its path below data.path, or by hub id and path in the repository. Nothing is passed over in silence:
a file that is neither data nor harmless is an error, and so is an entry of data.sources that speaks of nothing.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.data.file_kinds import (
    LICENCE_NAMES,
    SUFFIXES,
    is_data,
    is_passed_over,
    require_readable_kind,
    require_writable_name,
)
from components.data.hub_sets import HubSet, fetch_hub_set
from components.data_params import DataParams, SourceParams
from components.errors import DataError

LONGEST_LICENCE = 80
"""Characters of a licence file's first line that stand in the data card."""


@dataclass(frozen=True)
class SourceFile:
    """One data file. Weight and limit are those of `group`: all files that the same entry of data.sources speaks of."""

    name: str
    path: Path
    weight: float | None
    licence: str | None
    max_examples: int | None
    group: str
    origin: str | None = None
    """`hub id@revision` of a hub set."""


def list_source_files(params: DataParams, root: Path, hub_cache: Path) -> list[SourceFile]:
    """Every file that is read, yours in name order first, then the hub sets in the order of data.hub.

    The most specific entry of data.sources speaks for a file: its own, then the innermost folder's, then the hub id's. Without
    an entry a file of yours is a group of its own, and the files of a hub set are one.
    """
    local = _list_local(params, root)
    sets = [fetch_hub_set(hub, hub_cache) for hub in params.hub]
    files = [*local.items(), *(item for hub_set in sets for item in hub_set.paths.items())]
    names = [name for name, _ in files]
    _require_distinct(names)
    entries = _entries(params.sources, names)
    set_of = {name: hub_set for hub_set in sets for name in hub_set.paths}
    licences = {folder: _licence_in(folder) for folder in {path.parent for path in local.values()}}
    described = []
    for name, path in files:
        hub_set = set_of.get(name)
        licence = licences[path.parent] if hub_set is None else hub_set.licence
        described.append(_describe(name, path, _key_of(name, entries), entries, licence, hub_set, params.max_examples))
    return described


def _describe(
    name: str,
    path: Path,
    key: str | None,
    entries: Mapping[str, SourceParams],
    licence: str | None,
    hub_set: HubSet | None,
    max_examples: int | None,
) -> SourceFile:
    entry = SourceParams() if key is None else entries[key]
    alone = name if hub_set is None else hub_set.hub_id
    return SourceFile(
        name=name,
        path=path,
        weight=entry.weight,
        licence=entry.licence or licence,
        max_examples=max_examples if entry.max_examples is None else entry.max_examples,
        group=alone if key is None else key,
        origin=None if hub_set is None else f"{hub_set.hub_id}@{hub_set.revision}",
    )


def _list_local(params: DataParams, root: Path) -> dict[str, Path]:
    """Data files at data.path by their names. With hub sets and the path left at its default, nothing needs to lie there."""
    path = root / params.path
    may_be_empty = bool(params.hub) and params.path == DataParams.model_fields["path"].default
    if path.is_file():
        require_readable_kind(path)
        return {require_writable_name(path.name, path): path}
    if not path.is_dir():
        if may_be_empty and not path.is_symlink():
            return {}
        raise DataError(
            f"data.path: {path} does not exist. Set data.path in params.yaml to a file or folder of {_suffixes()} data"
        )
    files = {require_writable_name(name, file): file for name, file in sorted(_walk(path, (), os.path.realpath(path)))}
    if not files and not may_be_empty:
        found = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise DataError(f"data.path: {path} holds no {_suffixes()} file (found: {found}). Put your data there or set data.path")
    return files


def _walk(folder: Path, above: Sequence[str], real: str, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Names and paths of the data files below a folder. A link back to a folder that we are in is not followed."""
    try:
        entries = [(entry, entry.is_dir()) for entry in sorted(folder.iterdir())]
    except OSError as error:
        raise DataError(
            f"data.path: {folder} cannot be listed: {error.strerror}. Give the right to read it, or move it out"
        ) from None
    for entry, is_folder in entries:
        if is_folder and not entry.name.startswith("."):
            target = os.path.realpath(entry)
            if target not in (*above, real):
                yield from _walk(entry, (*above, real), target, f"{prefix}{entry.name}/")
        elif not is_passed_over(entry.name):
            require_readable_kind(entry)
            yield f"{prefix}{entry.name}", entry


def _require_distinct(names: Sequence[str]) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(
            f"data.hub: {twice} is read twice: two entries of data.hub (or one and a folder below data.path) hold it. "
            "Its rows would count double: take one of the two away"
        )


def _entries(sources: Mapping[str, SourceParams], names: Sequence[str]) -> dict[str, SourceParams]:
    """The entries of data.sources by file, folder or hub id, without `./` before and `/` behind."""
    entries = {key.removeprefix("./").rstrip("/"): entry for key, entry in sources.items()}
    if len(entries) < len(sources):
        raise DataError(f"data.sources: two entries speak of the same source: {', '.join(sorted(sources))}. Leave one")
    for key in entries:
        if not any(_speaks_of(key, name) for name in names):
            folders = {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}
            known = [*sorted(folders), *names]
            more = f" and {len(known) - 20} more" if len(known) > 20 else ""
            raise DataError(
                f"data.sources: no file, folder or hub id is called {key!r}. There are: {', '.join(known[:20])}{more}. "
                "Correct the name in params.yaml, or take the entry away"
            )
    return entries


def _key_of(name: str, entries: Mapping[str, SourceParams]) -> str | None:
    return max((key for key in entries if _speaks_of(key, name)), key=len, default=None)


def _speaks_of(key: str, name: str) -> bool:
    return name == key or name.startswith(f"{key}/")


def _licence_in(folder: Path) -> str | None:
    """First line with something in it of the folder's LICENSE or LICENCE file, and the file's name."""
    for file in sorted(folder.iterdir()):
        is_licence = file.name.upper().startswith(LICENCE_NAMES) and not is_data(file.name) and file.is_file()
        if is_licence and (line := _first_line(file)):
            told = f"{line[:LONGEST_LICENCE]} ({file.name})"
            return "".join(character for character in told if character.isprintable())
    return None


def _first_line(file: Path) -> str:
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            # A line of a megabyte is no licence, but it must not be read whole to find that out.
            return next((text for _ in range(1000) if (text := lines.readline(4096).strip("# \t\n\r"))), "")
    except OSError as error:
        raise DataError(
            f"data.path: {file} cannot be read: {error.strerror}. Give the right to read it, or move it out"
        ) from None


def _suffixes() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
