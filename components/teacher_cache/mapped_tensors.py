"""safetensors files by memory map: opening costs the header, reading a slice costs its bytes.

The library's own slices cost 5-20 microseconds each and hide where the bytes are; the layout is public (8 bytes of length, a JSON
header, the tensors) and read here with numpy. https://huggingface.co/docs/safetensors
"""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import ArtifactError

DTYPES = {
    "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4",
}  # fmt: skip
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MappedTensors:
    """Read-only views into the file. `header` is what precedes the tensors, its length included."""

    tensors: dict[str, Array]
    header: bytes


def map_tensors(file: Path, repair: str) -> MappedTensors:
    """Open one file; a header that does not fit the file's size is refused, damaged tensors are not noticed here."""
    try:
        with file.open("rb") as opened:
            whole = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(whole[:8], "little")
        described = json.loads(whole[8:start])
        described.pop("__metadata__", None)
        tensors = {name: _view(whole, start, entry) for name, entry in described.items()}
    except FileNotFoundError:
        raise ArtifactError(f"{file} is missing. Run: {repair}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}). Run: {repair}") from None
    return MappedTensors(tensors, whole[:start])


def _view(whole: mmap.mmap, start: int, entry: dict[str, Any]) -> Array:
    first, last = entry["data_offsets"]
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    count = int(np.prod(shape))
    if count * dtype.itemsize != last - first:
        raise ValueError(f"{count} numbers of {dtype} do not take {last - first} bytes")
    return np.frombuffer(whole, dtype=dtype, count=count, offset=start + first).reshape(shape)
