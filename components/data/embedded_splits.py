"""The embedded world on disk: raw/<split>/ in the published schemas, and ood/ with one set per broad task."""

from pathlib import Path

from components.data.embedded_files import write_examples
from components.data.embedded_world import EmbeddedWorld, draw_ood_sets, draw_splits
from components.params import WorldParams


def write_world(folder: Path, params: WorldParams) -> None:
    world = EmbeddedWorld(params)
    for split, examples in draw_splits(world).items():
        write_examples(folder / "raw" / split, examples)
    for task, examples in draw_ood_sets(world).items():
        write_examples(folder / "ood", examples, {"messages": f"{task}.jsonl"})
