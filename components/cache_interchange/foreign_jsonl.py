"""vLLM's prompt logprobs as JSON lines: one line per sequence, read one at a time.

A line is a JSON object with

    "prompt_token_ids" or "input_ids"   the token ids of the sequence (the first is vLLM's name, `return_token_ids` of a request)
    "prompt_logprobs"                   null for the first token, then for each token an object of its law's entries:
                                        {token id: {"logprob": number, "rank": number from 1}} or {token id: logprob}

both at the top or in the one element of "choices", so that a server's answer is such a line. vLLM lists the top K of a law and
adds the label where it is not among them; its ranks count ties upwards. What it cannot write as JSON (-inf) it writes as -9999.

Source: vllm-project/vllm, vllm/logprobs.py and `prompt_logprobs` in the responses of its OpenAI-compatible server.

Shapes: T predicted tokens of one record, K entries.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.cache_interchange.foreign_laws import ForeignRecord, build_laws, check_input_ids
from components.errors import DataError

LARGEST = 1e300
"""No float holds more; JSON's integers may be of any size."""
ID_KEYS = ("prompt_token_ids", "input_ids")


def read_prompt_logprobs(file: Path, vocabulary_size: int) -> Iterator[ForeignRecord]:
    """The records of a JSON lines file; empty lines are skipped, and anything else that is no record is refused."""
    num_records = 0
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    num_records += 1
                    yield _record_of_line(line, vocabulary_size, f"{file}:{number}")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if not num_records:
        raise DataError(f"{file} is empty. Remove the file or put records into it")


def _record_of_line(line: bytes, vocabulary_size: int, place: str) -> ForeignRecord:
    row = _decode_line(line, place)
    choices = row.get("choices", [{}])
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise DataError(f"{place}: choices must be a list of one object. Write one sequence per line")
    found = {key: value for part in (choices[0], row) for key, value in part.items() if value is not None}
    input_ids = next((found[key] for key in ID_KEYS if key in found), None)
    if not isinstance(input_ids, list) or not all(type(token) is int and abs(token) < 1 << 62 for token in input_ids):
        raise DataError(f"{place}: neither {' nor '.join(ID_KEYS)} is a list of token ids. Ask the server to return_token_ids")
    laws = found.get("prompt_logprobs")
    if not isinstance(laws, list):
        raise DataError(f"{place}: prompt_logprobs is no list. Ask the server for prompt_logprobs, the number of entries")
    if len(laws) != len(input_ids):
        raise DataError(
            f"{place}: {len(input_ids)} input ids but {len(laws)} prompt_logprobs. "
            "There must be one for each token, null for the first"
        )
    ids_T = np.array(input_ids, dtype=np.int64)
    check_input_ids(ids_T, vocabulary_size, place)
    if laws[0]:
        raise DataError(f"{place}: the first of prompt_logprobs must be null: nothing predicts the first token")
    ids_TK, logprobs_TK, rank_T = _entries_of(laws[1:], input_ids[1:], place)
    built = build_laws(ids_TK, logprobs_TK, ids_T[1:], vocabulary_size, place, told_rank_T=rank_T)
    return ForeignRecord(place, input_ids, built)


def _entries_of(
    laws: Sequence[Any], labels: Sequence[int], place: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Ids and logprobs [T, K] as they stand, padded with -inf, and the labels' ranks from 0 or -1 [T]."""
    width = max((len(law) for law in laws if isinstance(law, dict)), default=0)
    ids_TK = np.zeros((len(laws), width), dtype=np.int64)
    logprobs_TK = np.full((len(laws), width), -np.inf)
    rank_T = np.full(len(laws), -1, dtype=np.int64)
    for token, (law, label) in enumerate(zip(laws, labels, strict=True)):
        where = f"{place}: token {token + 1}"
        if not isinstance(law, dict):
            raise DataError(f"{where}: prompt_logprobs must be an object there, found {json.dumps(law)[:40]}")
        for entry, (key, value) in enumerate(law.items()):
            ids_TK[token, entry] = identity = _id_of(key, where)
            logprobs_TK[token, entry], rank = _logprob_and_rank(value, where, key)
            if identity == label and rank is not None:
                rank_T[token] = rank - 1
    return ids_TK, logprobs_TK, rank_T


def _id_of(key: str, where: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 19):
        raise DataError(f"{where}: {key[:40]!r} is no token id. The keys must be ids, not texts")
    return int(key)


def _is_huge(number: float) -> bool:
    return type(number) is int and abs(number) > LARGEST


def _logprob_and_rank(value: Any, where: str, key: str) -> tuple[float, int | None]:
    rank = value.get("rank") if isinstance(value, dict) else None
    logprob = value.get("logprob") if isinstance(value, dict) else value
    if not isinstance(logprob, int | float) or isinstance(logprob, bool) or _is_huge(logprob):
        raise DataError(f"{where}: the logprob of id {key} is {json.dumps(logprob)[:40]}, not a number. Capture the record again")
    if rank is not None and not (type(rank) is int and 1 <= rank < 1 << 31):
        raise DataError(f"{where}: the rank of id {key} is {json.dumps(rank)[:40]}, not a number from 1")
    return float(logprob), rank


def _decode_line(line: bytes, place: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not valid JSON")

    def refuse_repeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key occurs twice in one object")
        return found

    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=refuse, object_pairs_hook=refuse_repeated)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not usable JSON ({error}). Mend or remove the line") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: the line is no JSON object. Write one object per sequence and line")
    return row
