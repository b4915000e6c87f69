"""How far gradients and losses part when the same steps are cut up, packed, spread over two ranks or sharded: one table.

    python -m benchmarks.split_equality

Every preset, three steps of eight rows on the real Trainer with the tiny Llama of the tests, fp32, gloo. Against one process,
padded rows and one micro-batch. Gradient: the largest difference of any entry, as a share of the step's largest entry. Loss: the
largest difference of a logged loss, in nats per target token. Each row shows the worst of its splits.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from components.teacher_cache.reader import TeacherCacheReader
from tests.components.training import test_fsdp2, test_two_ranks
from tests.components.training.conftest import (
    LIVE_PRESETS,
    ROWS,
    Recorded,
    largest_differences,
    launch_ranks,
    masks_of_steps,
    read_recorded,
    record,
)
from tests.conftest import build_cache, build_model

NUM_STEPS = test_two_ranks.NUM_STEPS
Ranks = list[Recorded]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.redirect_stdout(io.StringIO()):
            cache = build_cache(folder / "cache", build_model(), ROWS, positions="all")
            backends = {"DDP": test_two_ranks, "FSDP2": test_fsdp2}
            for backend, program in backends.items():
                (folder / backend).mkdir()
                launch_ranks(str(program.__file__), cache._folder, folder / backend)
            rows = [row for kind in LIVE_PRESETS for row in rows_of(kind, folder, cache)]
    print("| preset | run | splits | gradient, first step | gradient, any step | loss | tokens with another mask |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def rows_of(kind: str, folder: Path, cache: TeacherCacheReader) -> Iterator[str]:
    one = record(folder / "one", LIVE_PRESETS[kind], cache, num_steps=NUM_STEPS)
    for packing in (False, True):
        found = [
            [record(folder / "split", LIVE_PRESETS[kind], cache, num_steps=NUM_STEPS, micro_batch_size=size, packing=packing)]
            for size in ((8, 2, 1) if packing else (2, 1))
        ]
        yield line(kind, f"1 process, {'packed' if packing else 'padded'}", one, found)
    for backend, program in (("DDP", test_two_ranks), ("FSDP2", test_fsdp2)):
        names = [name for name, way in program.WAYS.items() if way[0] == kind]
        yield line(kind, f"2 ranks {backend}", one, [read_recorded(folder / backend, name) for name in names])


def line(kind: str, run: str, one: Recorded, found: list[Ranks]) -> str:
    first, later, loss = (max(gaps) for gaps in zip(*(largest_differences(one, ranks[0]) for ranks in found), strict=True))
    masks = masks_of_steps([one], NUM_STEPS)
    flips = sum(
        own != expected
        for ranks in found
        for own_step, step in zip(masks_of_steps(ranks, NUM_STEPS), masks, strict=True)
        for own, expected in zip(own_step, step, strict=True)
    )
    return f"| {kind} | {run} | {len(found)} | {first:.1e} | {later:.1e} | {loss:.1e} | {flips} |"


if __name__ == "__main__":
    main()
