"""What reading the teacher cache costs: opening it, one record in random order, a training step's share, memory.

    python -m benchmarks.cache_reading [--records 4000] [--tokens 280] [--entries 32] [--vocabulary 128256] [--rounds 7]

The cache is real files with random laws (how a law looks does not matter for reading it). Records are read in random order with
an empty memory of recent ones; beside them the same numbers as rows of Hugging Face `datasets`. A step's share is the collator
with the cache minus the collator without, over forward and backward of `sft_kl` on a random LLaMA, process CPU seconds of one
thread, interleaved. Memory is what the process owns (RssAnon); pages of the file are the kernel's to drop. It judges nothing.
"""

import argparse
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.training_step import build_cache, build_model, draw_rows, make_step
from components.artifacts import write_json
from components.teacher_cache.encoding import COLUMNS, EncodedTokens
from components.teacher_cache.format import CacheIdentity
from components.teacher_cache.integer_packing import EntryLayout
from components.teacher_cache.publication import publish
from components.teacher_cache.reader import RecordRequest, TeacherCacheReader
from components.teacher_cache.recent_records import RecentRecords
from components.teacher_cache.shard_capture import marker_of
from components.teacher_cache.shard_file import describe_shard, save_shard, split_records
from components.teacher_cache.shard_plan import CapturePlan, PlannedRow, PlannedShard
from components.training.collator import TeacherCollator

IDENTITY = CacheIdentity("m", "t", "c", "d")
RECORDS_PER_SHARD = 1000


@dataclass(frozen=True)
class Size:
    num_records: int
    num_tokens: int
    num_entries: int
    vocabulary_size: int


def make_cache(folder: Path, size: Size) -> TeacherCacheReader:
    draw, layout = np.random.default_rng(0), EntryLayout.of(size.vocabulary_size, IDENTITY.probability_bits)
    identity = replace(IDENTITY, data_fingerprint=str(size.num_records))
    work = folder / "work" / "law" / "own"
    work.mkdir(parents=True)
    shards = []
    for first in range(0, size.num_records, RECORDS_PER_SHARD):
        rows = [
            PlannedRow(number, f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}", size.num_tokens + 1, size.num_tokens)
            for number in range(first, min(first + RECORDS_PER_SHARD, size.num_records))
        ]
        shard = PlannedShard(f"shard-{first:016d}.safetensors", tuple(rows))
        tokens = random_tokens(draw, size, len(rows))
        save_shard(work / shard.name, list(split_records(tokens, [size.num_tokens] * len(rows), layout)))
        write_json(marker_of(work, shard.name), asdict(describe_shard(work / shard.name)))
        shards.append(shard)
    publish(CapturePlan([], shards), identity, size.vocabulary_size, target=folder / "cache", work=work)
    return TeacherCacheReader(folder / "cache", identity)


def random_tokens(draw: np.random.Generator, size: Size, num_records: int) -> EncodedTokens:
    count = num_records * size.num_tokens
    columns: dict[str, Any] = {name: draw.random(count).astype(dtype) for name, dtype in COLUMNS.items()}
    columns["num_entries"] = np.full(count, size.num_entries, dtype="<u1")
    ids_M = draw.integers(0, size.vocabulary_size, count * size.num_entries, dtype=np.int32)
    return EncodedTokens(columns, ids_M, draw.integers(1, 4096, len(ids_M), dtype=np.int32))


def seconds_each(reads: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """CPU seconds per read, one number a round, in a new random order each."""
    found = []
    for number in range(rounds):
        shuffled = list(reads)
        random.Random(number).shuffle(shuffled)
        started = time.process_time()
        for read in shuffled:
            read()
        found.append((time.process_time() - started) / len(shuffled))
    return found


def report_records(cache: TeacherCacheReader, size: Size, rounds: int) -> None:
    requests = [RecordRequest(cache._index.name(place), size.num_tokens) for place in range(min(500, len(cache)))]
    cache._recent = RecentRecords(budget_bytes=0)
    decode = seconds_each([lambda request=request: cache.read_batch([request]) for request in requests], rounds)
    remember = RecentRecords()
    cache._recent = remember
    for request in requests[:40]:
        cache.read_batch([request])
    recent = seconds_each([lambda request=request: cache.read_batch([request]) for request in requests[:40]], rounds)
    print(f"| read and decode one record, random order | {1e6 * min(decode):.0f} us | {1e6 * statistics.median(decode):.0f} us |")
    print(f"| the same, read lately | {1e6 * min(recent):.0f} us | {1e6 * statistics.median(recent):.0f} us |")
    print(f"| row of Hugging Face datasets, torch format | {_datasets_row(cache, requests[:100], rounds)} |")


def _datasets_row(cache: TeacherCacheReader, requests: Sequence[RecordRequest], rounds: int) -> str:
    from datasets import Dataset

    rows = [{name: values.numpy() for name, values in cache.read_batch([request]).items()} for request in requests]
    table = Dataset.from_list([{name: values.tolist() for name, values in row.items()} for row in rows]).with_format("torch")
    found = seconds_each([lambda place=place: table[place] for place in range(len(rows))], rounds)
    return f"{1e6 * min(found):.0f} us | {1e6 * statistics.median(found):.0f} us"


def owned_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def report_opening(size: Size, rounds: int) -> None:
    """Opening time and owned memory after reading every record, for caches of three sizes."""
    for factor in (1, 4, 16):
        larger = replace(size, num_records=size.num_records * factor // 16)
        with tempfile.TemporaryDirectory() as folder:
            cache = make_cache(Path(folder), larger)
            opening = []
            for _ in range(rounds):
                started = time.perf_counter()
                TeacherCacheReader(Path(folder) / "cache", cache.manifest.identity)
                opening.append(time.perf_counter() - started)
            before = owned_bytes()
            for place in range(len(cache)):
                cache.read(cache._index.name(place), size.num_tokens)
            print(
                f"| {cache.manifest.num_bytes / 1e6:.0f} MB, {len(cache)} records: opened; owned memory after reading all | "
                f"{1e3 * min(opening):.1f} ms | + {(owned_bytes() - before) / 1e6:.0f} MB |"
            )


def report_step(title: str, options: argparse.Namespace, rounds: int) -> None:
    rows = draw_rows(options.rows, options.length, options.vocabulary)
    model = build_model(options)
    with tempfile.TemporaryDirectory() as folder:
        cache = build_cache(Path(folder), model, rows)
        step = make_step("sft_kl", model, rows, cache, Path(folder))
        with_cache, bare = TeacherCollator(0, cache), TeacherCollator(0, None)
        taken: dict[str, list[float]] = {"decoding": [], "recent": [], "bare": [], "step": []}
        for number in range(rounds + 1):
            for name, work in (("decoding", with_cache), ("recent", with_cache), ("bare", bare), ("step", None)):
                if name == "decoding":
                    cache._recent = RecentRecords(budget_bytes=0)
                if name == "recent":
                    cache._recent = RecentRecords()
                    with_cache(rows)
                started = time.process_time()
                step() if work is None else work(rows)
                if number:
                    taken[name].append(time.process_time() - started)
    step_seconds = min(taken["step"])
    decoding, recent = (100 * (min(taken[name]) - min(taken["bare"])) / step_seconds for name in ("decoding", "recent"))
    print(f"| step of {title} ({1e3 * step_seconds:.0f} ms): reading | {decoding:.2f} % decoding | {recent:.2f} % read lately |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("records", 4000), ("tokens", 280), ("entries", 32), ("vocabulary", 128256), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(options.records, options.tokens, options.entries, options.vocabulary)
    print(f"{date.today()}, {platform.machine()}, 1 thread, torch {torch.__version__}, {size}, {options.rounds} rounds\n")
    print("| | minimum | median |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        report_records(make_cache(Path(folder), replace(size, num_records=1000)), size, options.rounds)
    report_opening(size, options.rounds)
    shapes = {
        "the embedded world's model": {"vocabulary": 96, "hidden": 64, "layers": 2, "rows": 16, "length": 24},
        "a LLaMA of V 32,000, H 256, 4 layers": {"vocabulary": 32000, "hidden": 256, "layers": 4, "rows": 8, "length": 128},
    }
    for title, shape in shapes.items():
        report_step(title, argparse.Namespace(**shape), options.rounds)


if __name__ == "__main__":
    main()
