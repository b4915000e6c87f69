"""Which rows are held out: decided by the content of a row alone.

So a row keeps its split when rows are added, removed, reordered or sampled, and copies of a row are never in two splits.
"""

import numpy as np
import numpy.typing as npt

from components.data_preparation.salted_hash import Hashes, salted_hash

TRAIN, VALIDATION, TEST = range(3)
"""Their names, in this order: components.data.tokenized.SPLITS."""
_SALT = b"split/v1"


def split_by_hash(content_hash: Hashes, test_fraction: float, validation_fraction: float) -> npt.NDArray[np.int8]:
    """0 train, 1 validation, 2 test per row. The fractions are expectations over contents, not exact counts.

    Test rows are those with the smallest numbers and validation rows those with the largest: neither fraction moves the rows
    of the other split, and raising one only takes rows from train.
    """
    assert 0.0 <= test_fraction < 0.5 and 0.0 <= validation_fraction < 0.5
    number = (salted_hash(content_hash, _SALT) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    split = np.full(len(content_hash), TRAIN, dtype=np.int8)
    split[number < test_fraction] = TEST
    split[number >= 1.0 - validation_fraction] = VALIDATION
    return split
