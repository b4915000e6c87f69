"""Which kinds of files are data, which are harmless beside it, and how every other kind becomes data."""

import stat
import unicodedata
from pathlib import Path

from components.errors import DataError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst", ".parquet")
LAWS_SUFFIX = ".laws.jsonl"
"""Files that hold the true laws of the embedded world beside its data; not data themselves."""
LICENCE_NAMES = ("LICENSE", "LICENCE")
_HARMLESS_SUFFIXES = (".md", ".txt", ".dvc")
_HARMLESS_NAMES = ("README", "NOTICE", "COPYING", "SHA256SUMS")
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar")
_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")
_FROM_TABLE = (
    "import pandas; pandas.read_csv('IN', sep=None, engine='python', dtype=str)"
    ".rename(columns={'Q': 'prompt', 'A': 'completion'})"
    ".to_json('OUT.jsonl', orient='records', lines=True, force_ascii=False)"
)
_FROM_ARROW = "import datasets; datasets.Dataset.from_file('IN').to_parquet('OUT.parquet')"
_REPAIRS = {
    _ARCHIVES: "Unpack it there and take the archive away",
    _TABLES: f'Convert it, and say which columns are prompt and completion: python -c "{_FROM_TABLE}"',
    (".arrow", ".feather"): f'Convert it: python -c "{_FROM_ARROW}"',
    (".xls", ".xlsx", ".ods"): "Save it as .csv and convert that to .jsonl",
    (".json.bz2", ".jsonl.bz2", ".json.xz", ".jsonl.xz"): "Unpack it, or compress it with gzip or zstd",
    (".parquet.gz", ".parquet.zst"): "Unpack it: Parquet is compressed inside",
    (".ndjson", ".jsonlines"): "Name it .jsonl",
}


def is_data(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.endswith(LAWS_SUFFIX)


def is_foreign_data(name: str) -> bool:
    """Data of a kind that is not read: there is a known way to make it one that is."""
    return not is_data(name) and _known_repair(name) is not None


def is_passed_over(name: str) -> bool:
    """Harmless beside data: hidden files, licences, notes, and the laws of the embedded world."""
    if name.startswith(".") or name.endswith(LAWS_SUFFIX):
        return True
    if is_data(name) or is_foreign_data(name):
        return False
    return name.lower().endswith(_HARMLESS_SUFFIXES) or name.upper().startswith(LICENCE_NAMES) or name in _HARMLESS_NAMES


def repair_of(name: str) -> str:
    """How a file of a kind that is not read becomes one that is."""
    return _known_repair(name) or f"Convert it to {SUFFIXES[1]}, or move it out of the folder"


def _known_repair(name: str) -> str | None:
    for suffixes, repair in _REPAIRS.items():
        if name.lower().endswith(suffixes):
            return repair
    if not name.endswith(SUFFIXES) and name.lower().endswith(SUFFIXES):
        return "Write the end of its name in small letters"
    return None


def require_readable_kind(path: Path) -> None:
    """A data file that is there and is a regular file; anything else is refused with its repair."""
    if not is_data(path.name):
        raise DataError(f"data.path: {path} is of no kind that is read ({', '.join(SUFFIXES)}). {repair_of(path.name)}")
    try:
        kind = path.stat().st_mode
    except OSError as error:
        target = f"a link to {path.readlink()}, and that" if path.is_symlink() else "a file that"
        raise DataError(f"data.path: {path} is {target} cannot be reached ({error.strerror}). Mend it or take it away") from None
    if not stat.S_ISREG(kind):
        raise DataError(f"data.path: {path} is no regular file (a pipe, socket or device). Save what it gives as a file")


def require_writable_name(name: str, path: Path) -> str:
    """The name itself, where row ids and reports can hold it."""
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise DataError(
            f"data.path: {str(path)!r}: a line break, control character or byte that is no UTF-8 in its name. Rename it"
        )
    return name
