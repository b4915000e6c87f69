"""Compressed data files are unpacked once, into scratch keyed by their content, and read from there like plain ones."""

import errno
import os
import tempfile
from pathlib import Path
from typing import IO

from components.artifacts import fingerprint_file
from components.errors import DataError

MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
SUFFIXES = (".gz", ".zst")
CHUNK = 1 << 20
MAX_RATIO = 200
FREE_BYTES = 1 << 30
"""Text packs 3 to 30 times. What unpacks to more than both limits was made to fill a disk."""


def compression_of(head: bytes) -> str | None:
    """By the first bytes, whatever the name says: downloads are often packed or unpacked without being renamed."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def unpack(file: Path, compression: str, work: Path) -> Path:
    """The unpacked content as a file of `work`; made only if it is not there yet, and whole or not at all."""
    target = work / fingerprint_file(file)
    if target.exists():
        return target
    work.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=work, prefix=".unpacking.")
    try:
        with os.fdopen(descriptor, "wb") as unpacked:
            _unpack_into(unpacked, file, compression)
        os.replace(temporary, target)
    except OSError as error:
        raise _error(file, compression, work, error) from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _unpack_into(unpacked: IO[bytes], file: Path, compression: str) -> None:
    import pyarrow

    most = max(FREE_BYTES, MAX_RATIO * file.stat().st_size)
    with pyarrow.CompressedInputStream(pyarrow.OSFile(str(file)), compression) as stream:
        while chunk := stream.read(CHUNK):
            if unpacked.tell() + len(chunk) > most:
                raise DataError(
                    f"{file} unpacks to more than {most:,} bytes ({MAX_RATIO} times its size, and {FREE_BYTES:,} at least): "
                    "no text packs that well. If it is meant to, unpack it yourself"
                )
            unpacked.write(chunk)


def _error(file: Path, compression: str, work: Path, error: OSError) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"{file}: no room to unpack it in {work}. Make room there")
    check = {"gzip": "gzip -t", "zstd": "zstd -t"}[compression]
    return DataError(
        f"{file} is cut off or damaged: its {compression} stream cannot be unpacked. Get it again; {check} checks it"
    )
