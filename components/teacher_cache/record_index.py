"""Where every record is: arrays sorted by the record's name, memory-mapped and searched by bisection.

index.safetensors, R records
  name_high, name_low  [R] uint64   the fingerprint's first and last 8 bytes, big-endian; sorted by both
  shard                [R] uint32   place in the manifest's list of shards
  first_token          [R] int64    its tokens in the shard's columns are first_token : first_token + num_tokens
  num_tokens           [R] uint32
  first_byte           [R] int64    its entries in the shard's `entries` are first_byte : first_byte + num_bytes
  num_bytes            [R] uint32
  checksum             [R] uint64   xxh3-64 of its slice of each column and of its entries
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from components.teacher_cache.mapped_tensors import map_tensors

DTYPES = {
    "name_high": "<u8",
    "name_low": "<u8",
    "shard": "<u4",
    "first_token": "<i8",
    "num_tokens": "<u4",
    "first_byte": "<i8",
    "num_bytes": "<u4",
    "checksum": "<u8",
}
MISSING = -1


@dataclass(frozen=True)
class RecordIndex:
    name_high: npt.NDArray[np.uint64]
    name_low: npt.NDArray[np.uint64]
    shard: npt.NDArray[np.uint32]
    first_token: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.uint32]
    first_byte: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.uint32]
    checksum: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.name_high)

    def find(self, name: str) -> int:
        """Place of one record, or MISSING."""
        high, low = split_name(name)
        place = int(np.searchsorted(self.name_high, np.uint64(high)))
        while place < len(self) and int(self.name_high[place]) == high:
            if int(self.name_low[place]) == low:
                return place
            place += 1
        return MISSING

    def find_all(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Places of many records at once, MISSING where there is none, [R']."""
        keys = np.array([split_name(name) for name in names], dtype=np.uint64).reshape(-1, 2)
        places = np.searchsorted(self.name_high, keys[:, 0])
        inside = np.minimum(places, max(0, len(self) - 1))
        is_found = np.zeros(len(names), dtype=bool) if not len(self) else self.name_low[inside] == keys[:, 1]
        is_found &= (places < len(self)) & (self.name_high[inside] == keys[:, 0] if len(self) else False)
        found = np.where(is_found, places, MISSING)
        for other in np.flatnonzero(~is_found):  # absent, or two names that share their first 8 bytes
            found[other] = self.find(names[int(other)])
        return found

    def name(self, place: int) -> str:
        return f"{int(self.name_high[place]):016x}{int(self.name_low[place]):016x}"

    def take(self, places: npt.NDArray[np.int64]) -> "RecordIndex":
        return RecordIndex(**{field.name: getattr(self, field.name)[places] for field in fields(self)})

    def write(self, file: Path) -> None:
        save_file({field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}, file)
        file.chmod(0o644)


def split_name(name: str) -> tuple[int, int]:
    return int(name[:16], 16), int(name[16:], 16)


def build_index(columns: dict[str, npt.NDArray[np.generic]]) -> RecordIndex:
    """Sorted by name, each record once (the first that is given)."""
    order = np.lexsort((columns["name_low"], columns["name_high"]))
    high, low = columns["name_high"][order], columns["name_low"][order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return RecordIndex(**{name: columns[name][order][is_first].astype(dtype) for name, dtype in DTYPES.items()})


def concatenate(parts: Sequence[RecordIndex]) -> RecordIndex:
    """One index of several, shards numbered as the parts are."""
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts] or [np.zeros(0, dtype=dtype)])
        for name, dtype in DTYPES.items()
    }
    columns["shard"] = np.repeat(np.arange(len(parts), dtype=np.uint32), [len(part) for part in parts])
    return build_index(columns)


def open_index(file: Path, repair: str) -> RecordIndex:
    """The index of a cache by memory map; its checksum is the caller's to compare."""
    tensors = map_tensors(file, repair).tensors
    return RecordIndex(**{name: tensors[name] for name in DTYPES})
