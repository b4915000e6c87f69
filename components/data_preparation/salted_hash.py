"""A second hash of a content hash: one number of a row's content, independent of every other use of the content.

What decides by content (the sample, the split) takes its own salt. With one salt for both, a sample would hold one split only.
"""

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


def salted_hash(content_hash: Hashes, salt: bytes) -> Hashes:
    """uint64 per row, uniform; equal for equal contents. The finaliser of splitmix64, before and after the salt."""
    assert content_hash.dtype == np.uint64 and len(salt) == 8
    return _mix(_mix(content_hash) ^ np.uint64(int.from_bytes(salt, "little")))


def _mix(value: Hashes) -> Hashes:
    """One step of splitmix64 (Steele, Lea and Flood 2014): a bijection in which every input bit moves every output bit."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
