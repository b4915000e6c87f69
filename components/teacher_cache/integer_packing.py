"""Unsigned integers in as few bits as their range needs, in a form that numpy unpacks in microseconds.

M integers of b bits are stored as their low bytes (1 byte from b = 8 on, 2 bytes little-endian from b = 16 on, none below 8)
followed by one bit plane for each bit that is left, lowest first. A plane has ceil(M / 8) bytes, the first integer in the lowest
bit of the first byte. So 17 bits are 16 whole bits and one plane: nothing is shifted across a byte's border.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_BITS = 23


def low_bytes(bits: int) -> int:
    """Whole bytes of each integer that are stored as they are: 0, 1 or 2."""
    assert 1 <= bits <= MAX_BITS, bits
    return min(2, bits // 8)


def num_planes(bits: int) -> int:
    return bits - 8 * low_bytes(bits)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take."""
    return count * low_bytes(bits) + num_planes(bits) * -(-count // 8)


def pack_integers(values_M: npt.NDArray[Any], bits: int) -> bytes:
    """The packed form; every value must be in [0, 2**bits)."""
    values_M = values_M.astype(np.uint32)
    assert not len(values_M) or int(values_M.max()) < 1 << bits, "a value needs more bits"
    width = low_bytes(bits)
    parts = [values_M.astype(f"<u{width}").tobytes()] if width else []
    for plane in range(8 * width, bits):
        parts.append(np.packbits((values_M >> plane & 1).astype(np.uint8), bitorder="little").tobytes())
    return b"".join(parts)


def unpack_integers(packed: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.int32]:
    """`count` integers from the beginning of `packed`, [M] int32."""
    width, planes = low_bytes(bits), num_planes(bits)
    whole = packed[: count * width]
    values_M = whole.view(f"<u{width}").astype(np.int32) if width else np.zeros(count, dtype=np.int32)
    if planes and count:
        size = -(-count // 8)
        stored = packed[count * width : count * width + planes * size].reshape(planes, size)
        bits_PM = np.unpackbits(stored, axis=1, count=count, bitorder="little")
        high_M = bits_PM[0]  # at most 7 planes, so a byte holds them; packbits along this axis is ten times slower
        for plane in range(1, planes):
            high_M |= bits_PM[plane] << plane
        values_M |= high_M.astype(np.int32) << 8 * width
    return values_M


@dataclass(frozen=True)
class EntryLayout:
    """What must be known to pack and unpack entries: bits of a token id and of a probability."""

    id_bits: int
    probability_bits: int

    @classmethod
    def of(cls, vocabulary_size: int, probability_bits: int) -> "EntryLayout":
        return cls(max(1, (vocabulary_size - 1).bit_length()), probability_bits)

    def num_bytes(self, num_entries: int) -> int:
        """Bytes of one record with so many entries in all its tokens."""
        return packed_bytes(num_entries, self.id_bits) + packed_bytes(num_entries, self.probability_bits)
