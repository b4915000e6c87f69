"""What is prepared: the embedded world's files or the user's, and the held-out texts that no training row may repeat."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from components.data.file_kinds import is_passed_over
from components.data.held_out import list_ood_files, ood_texts, read_ood_items
from components.data.source_files import SourceFile, list_source_files
from components.data.tokenized import SPLITS
from components.data_contract.overlap import OverlapIndex
from components.data_params import DataParams
from components.data_preparation.prepare import Source
from components.errors import DataError


def embedded_sources(folder: Path) -> list[Source]:
    """The embedded world comes already split: a folder for each split."""
    files = list_source_files(DataParams(source="files", path=str(folder)), folder, folder)
    return [Source(file, split) for split in SPLITS for file in files if file.name.startswith(f"{split}/")]


def sources_of_files(params: DataParams, root: Path, hub_cache: Path) -> list[Source]:
    """The user's files and hub sets; and, where there are any, the files of their own test set."""
    sources = [Source(file) for file in list_source_files(params, root, hub_cache)]
    sources += [Source(file, "test") for file in _list_test_files(params, root)]
    counts = Counter(source.file.name for source in sources)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise DataError(f"two sources are named {repeated[0]!r} (data.path, data.hub, data.test_path): rename one of them")
    return sources


def _list_test_files(params: DataParams, root: Path) -> list[SourceFile]:
    """Files of an own in-domain test set; none while nothing lies there."""
    folder = root / params.test_path
    if not folder.exists() and not folder.is_symlink() and params.test_path == DataParams.model_fields["test_path"].default:
        return []
    if folder.is_dir() and all(is_passed_over(name) for _, _, names in os.walk(folder, followlinks=True) for name in names):
        return []
    alone = params.model_copy(update={"path": params.test_path, "hub": (), "sources": {}, "max_examples": None})
    try:
        files = list_source_files(alone, root, folder)
    except DataError as error:
        raise DataError(str(error).replace("data.path", "data.test_path")) from None
    return [replace(file, name=f"test/{file.name}", group=f"test/{file.group}") for file in files]


def held_out_index(path: Path, n: int) -> OverlapIndex:
    """Index of all held-out texts; a set that could not be scored later is refused here."""
    files = list_ood_files(path)
    for file in files:
        if file.suffix != ".txt":
            read_ood_items(file)
    pairs = [(f"{file.name}:{index}", text) for file in files for index, text in enumerate(ood_texts(file), start=1)]
    return OverlapIndex([name for name, _ in pairs], [text for _, text in pairs], n)
