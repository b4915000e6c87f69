"""Stage `explore_mask`: what masks would keep, from the teacher cache alone, before any training.

    python -m flows.explore_mask

Takes artifacts/data/train.arrow, its tokenizer and the cache. Leaves artifacts/mask_explorer/: explorer.html (turn a threshold
and look) and table.csv. Seconds on a CPU; see docs/explanations.md.
"""

from typing import Any

from components.artifacts import DATA, MASK_EXPLORER, TEACHER_CACHE, publish_folder
from flows.stage_runner import main


def explore_mask() -> dict[str, Any]:
    from components.data.tokenized import read_split
    from components.evaluation.mask_explorer import write_explorer
    from components.evaluation.mask_tokens import read_tokens
    from components.models import load_prepared_tokenizer

    table = read_tokens(read_split(DATA, "train").flat(), TEACHER_CACHE, load_prepared_tokenizer())
    with publish_folder(MASK_EXPLORER) as staging:
        return {**write_explorer(staging, table), "page": "artifacts/mask_explorer/explorer.html"}


if __name__ == "__main__":
    main(explore_mask)
