"""Published sets and a published tiny model under lm-evaluation-harness and our scorer, where they lie beside the project."""

from pathlib import Path
from typing import Any

import pytest

from components.evaluation.evaluate import evaluate_sets
from components.evaluation.held_out_sets import name_ood_files
from components.evaluation.lm_eval_export import export_sets
from components.evaluation.lm_eval_run import open_harness, run_tasks
from components.evaluation.lm_eval_sets import item_result
from components.evaluation.tasks import read_ood_set
from components.models import load_model, load_tokenizer
from components.params import EvaluationParams

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MAX_LENGTH = 512
NUM_ITEMS = 12

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no real data beside the project (../shared/data is absent)")


def test_every_published_set_has_the_same_nll_and_the_same_verdicts_under_both(tmp_path: Path) -> None:
    folder = SHARED / "models" / "stories260K"
    model: Any = load_model(folder).eval()
    tokenizer = load_tokenizer(folder)
    files = name_ood_files(SHARED / "ood")
    exported = export_sets(files, tmp_path, tokenizer, MAX_LENGTH, NUM_ITEMS)
    assert all(len(one.item_ids) == NUM_ITEMS for one in exported.values()), "every set can be asked"
    harness = open_harness(model, tokenizer)
    theirs = run_tasks(harness, [one.task for one in exported.values()], tmp_path)
    for name, one in exported.items():
        wanted = set(one.item_ids)
        items = [item for item in read_ood_set(files[name], tokenizer, MAX_LENGTH, 10**9) if item.item_id in wanted]
        ours = evaluate_sets(model, model, {name: items}, EvaluationParams(batch_tokens=2048))[name]["items"]
        for mine, sample in zip(ours, theirs[one.task], strict=True):
            row = item_result(one.task, sample, harness)
            assert (row.num_tokens, row.nll_sum) == (
                mine["num_tokens"],
                pytest.approx(mine["nll_sum"], abs=1e-4 * row.num_tokens),
            )
            assert one.kind == "text" or row.num_correct == mine["num_correct"], f"{name}: {mine['item_id']}"
