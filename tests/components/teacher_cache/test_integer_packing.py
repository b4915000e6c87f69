"""Laws of the packing: every width comes back, takes the bytes it says, and its bits are where the format says."""

import numpy as np
import pytest

from components.teacher_cache.integer_packing import MAX_BITS, EntryLayout, pack_integers, packed_bytes, unpack_integers


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 250])
def test_every_width_and_length_comes_back_and_takes_the_bytes_it_says(bits: int, count: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, count)
    if count:
        values[0], values[-1] = 0, (1 << bits) - 1
    packed = pack_integers(values, bits)
    assert len(packed) == packed_bytes(count, bits)
    followed = np.frombuffer(packed + b"\xff\x00\xff", dtype=np.uint8)
    assert (unpack_integers(followed, count, bits) == values).all()


def test_seventeen_bits_are_two_whole_bytes_and_one_plane() -> None:
    assert pack_integers(np.array([0x1_0203, 0x0_0405, 0x1_FFFF]), 17) == bytes.fromhex("03020504ffff") + bytes([0b101])


def test_a_value_that_needs_more_bits_is_never_cut() -> None:
    with pytest.raises(AssertionError):
        pack_integers(np.array([8]), 3)


@pytest.mark.parametrize(
    ("vocabulary_size", "id_bits"), [(1, 1), (2, 1), (512, 9), (513, 10), (32_000, 15), (128_256, 17), (262_144, 18)]
)
def test_an_id_takes_the_bits_that_the_vocabulary_needs(vocabulary_size: int, id_bits: int) -> None:
    assert EntryLayout.of(vocabulary_size, 12).id_bits == id_bits
