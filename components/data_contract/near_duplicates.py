"""Rows that say nearly the same: MinHash finds candidates, the real Jaccard similarity of their shingles decides.

A shingle is a run of 3 units (components.data_contract.overlap) over all turns, so case, punctuation and Unicode form do not
count. A row's signature has 64 permutations in 16 bands of 4 (Broder 1997; Leskovec, Rajaraman, Ullman, chapter 3): two rows
of similarity s share a band with the chance 1 - (1 - s^4)^16, which is 0.9998 at 0.8, 0.99 at 0.71 and 0.64 at 0.5.

One changed word inside a row changes three shingles: from 29 units on such rows stay at 0.8. In a shorter row a single word
is what the row says ("add three and four"), so rows of fewer than MIN_UNITS units repeat each other only where all units
are equal. A row without units (signs alone) nearly repeats nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from components.data_contract.overlap import Hashes, run_hashes, unit_hashes

NUM_BANDS, ROWS_PER_BAND = 16, 4
SHINGLE = 3
MIN_UNITS = 30
_NUM_PERMUTATIONS = NUM_BANDS * ROWS_PER_BAND
_CHUNK = 1024
"""Shingles hashed at once: 64 permutations of them are half a MB, however long the text is."""
_GENERATOR = np.random.Generator(np.random.PCG64(20260101))
_FACTORS, _SHIFTS = _GENERATOR.integers(0, 2**64, size=(2, _NUM_PERMUTATIONS, 1), dtype=np.uint64)
_FACTORS |= np.uint64(1)
_BAND_FACTORS = _GENERATOR.integers(0, 2**64, size=(NUM_BANDS, ROWS_PER_BAND), dtype=np.uint64) | np.uint64(1)
_BAND_SALTS = _GENERATOR.integers(0, 2**64, size=NUM_BANDS, dtype=np.uint64)
"""The bit stream of PCG64 is fixed by numpy (NEP 19); a test pins the bands of a text."""
_KEPT_PER_BUCKET = 8
_COMPARED = 8
"""Candidates whose similarity is worked out: those that share the most bands. A pair at 0.8 shares 6.6 of 16 on average."""
_CACHED_SHINGLES = 2_000_000
Rows = npt.NDArray[np.int64]


def shingles(hashes_of_turns: Iterable[Hashes]) -> Hashes:
    """The distinct shingles of a row, sorted; a row of fewer than MIN_UNITS units has one: all its units."""
    parts = list(hashes_of_turns)
    hashes = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)
    if len(hashes) < MIN_UNITS:
        return run_hashes(hashes, len(hashes)) if len(hashes) else hashes
    return np.unique(run_hashes(hashes, SHINGLE))


def band_hashes(row_shingles: Hashes) -> Hashes:
    """16 numbers; rows that share one are candidates. All 0 for a row without units."""
    if not len(row_shingles):
        return np.zeros(NUM_BANDS, dtype=np.uint64)
    lowest = np.full(_NUM_PERMUTATIONS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(row_shingles), _CHUNK):  # the products wrap modulo 2^64 on purpose
        np.minimum(lowest, (row_shingles[start : start + _CHUNK] * _FACTORS + _SHIFTS).min(axis=1), out=lowest)
    banded = lowest.reshape(NUM_BANDS, ROWS_PER_BAND) * _BAND_FACTORS
    return np.asarray(banded.sum(axis=1, dtype=np.uint64) ^ _BAND_SALTS, dtype=np.uint64)


def similarity_of(first: Hashes, second: Hashes) -> float:
    """Jaccard: shared shingles over all shingles of both."""
    few, many = sorted((first, second), key=len)
    if not len(few):
        return 0.0
    place = np.minimum(np.searchsorted(many, few), len(many) - 1)
    num_shared = int(np.count_nonzero(many[place] == few))
    return num_shared / (len(few) + len(many) - num_shared)


def near_duplicate_groups(bands: Hashes, content_of: Callable[[int], Sequence[Sequence[str]]], similarity: float = 0.8) -> Rows:
    """For every row the earlier row that it nearly repeats, or -1. Exact repeats are near ones, too.

    bands       [R, 16]; may be a memory map, it is read one column at a time
    content_of  number of a row -> its [role, content] pairs; asked only for rows that share a band with another

    Every row is compared with at most 8 earlier rows, so the time is linear however many rows share a band (templates): a
    bucket keeps its first 8 rows, then those that repeat nobody take the place of the oldest. Memory: under 200 bytes a row.
    """
    buckets = _Buckets(bands)
    content = _ShingleCache(content_of)
    repeats = np.full(len(bands), -1, dtype=np.int64)
    for row in buckets.rows_with_company():
        candidates = buckets.candidates(row)
        mine = content.of(row) if len(candidates) else None
        for candidate in candidates:
            if mine is not None and similarity_of(mine, content.of(candidate)) >= similarity:
                repeats[row] = candidate
                break
        buckets.add(row, is_leader=repeats[row] < 0)
    return repeats


class _Buckets:
    """Which rows share a band: the number of the bucket of every row and band (-1: alone), and the rows that a bucket keeps."""

    def __init__(self, bands: Hashes) -> None:
        self._of_row = np.full((len(bands), NUM_BANDS), -1, dtype=np.int32)
        sizes: list[npt.NDArray[np.int64]] = []
        num_buckets = 0
        has_units = np.asarray(bands[:, 0]) != 0 if len(bands) else np.empty(0, dtype=bool)
        for band in range(NUM_BANDS):
            column = np.asarray(bands[:, band])
            order = np.argsort(column, kind="stable")
            starts = np.flatnonzero(np.diff(column[order], prepend=~column[order[:1]]))
            lengths = np.diff(starts, append=len(column))
            is_shared = (lengths > 1) & has_units[order[starts]]
            numbers = np.full(len(starts), -1, dtype=np.int32)
            numbers[is_shared] = num_buckets + np.arange(np.count_nonzero(is_shared), dtype=np.int32)
            self._of_row[order, band] = np.repeat(numbers, lengths)
            sizes.append(lengths[is_shared])
            num_buckets += len(sizes[-1])
        room = np.minimum(np.concatenate(sizes), _KEPT_PER_BUCKET) if sizes else np.empty(0, dtype=np.int64)
        self._room = room.astype(np.int32)
        self._first = np.cumsum(room) - room
        self._kept = np.full(int(room.sum()), -1, dtype=np.int32)
        self._num_added = np.zeros(len(room), dtype=np.int32)

    def rows_with_company(self) -> list[int]:
        return [int(row) for row in np.flatnonzero((self._of_row >= 0).any(axis=1))]

    def candidates(self, row: int) -> list[int]:
        """Earlier rows that share a band, those that share the most first, then the earliest."""
        buckets = self._mine(row)
        rooms = [self._kept[first : first + room] for first, room in zip(self._first[buckets], self._room[buckets], strict=True)]
        kept = np.concatenate(rooms)
        rows, num_shared = np.unique(kept[kept >= 0], return_counts=True)
        return [int(candidate) for candidate in rows[np.argsort(-num_shared, kind="stable")][:_COMPARED]]

    def add(self, row: int, *, is_leader: bool) -> None:
        buckets = self._mine(row)
        buckets = buckets if is_leader else buckets[self._num_added[buckets] < self._room[buckets]]
        self._kept[self._first[buckets] + self._num_added[buckets] % self._room[buckets]] = row
        self._num_added[buckets] += 1

    def _mine(self, row: int) -> npt.NDArray[np.int32]:
        mine: npt.NDArray[np.int32] = self._of_row[row]
        return mine[mine >= 0]


class _ShingleCache:
    """Shingles of the rows asked for last: at most 16 MB of them."""

    def __init__(self, content_of: Callable[[int], Sequence[Sequence[str]]]) -> None:
        self._content_of = content_of
        self._kept: OrderedDict[int, Hashes] = OrderedDict()
        self._num_shingles = 0

    def of(self, row: int) -> Hashes:
        if row in self._kept:
            self._kept.move_to_end(row)
            return self._kept[row]
        found = shingles([unit_hashes(content) for _, content in self._content_of(row)])
        self._kept[row] = found
        self._num_shingles += len(found)
        while self._num_shingles > _CACHED_SHINGLES and len(self._kept) > 2:
            self._num_shingles -= len(self._kept.popitem(last=False)[1])
        return found
