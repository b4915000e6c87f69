"""Command `export_lm_eval`: the held-out sets as tasks of lm-evaluation-harness, YAML and JSONL (docs/lm-eval.md).

    python -m flows.export_lm_eval

Takes the OOD sets and the prepared tokenizer. Leaves .work/lm_eval_tasks/. No stage: `dvc repro` never runs it.
"""

import shutil
from typing import Any

from components.artifacts import WORK
from components.data_params import DataParams
from components.params import EvaluationParams
from flows.stage_runner import main


def export_lm_eval(*, data: DataParams, evaluation: EvaluationParams) -> dict[str, Any]:
    from components.evaluation.held_out_sets import name_ood_files, ood_path
    from components.evaluation.lm_eval_export import export_sets
    from components.models import load_prepared_tokenizer

    folder = WORK / "lm_eval_tasks"
    shutil.rmtree(folder, ignore_errors=True)
    files = name_ood_files(ood_path(data))
    exported = export_sets(files, folder, load_prepared_tokenizer(), data.max_length, evaluation.max_items_per_set)
    for name, one in exported.items():
        left = ", ".join(f"{count} {kind}" for kind, count in one.left_out.items())
        print(f"{one.task}: {len(one.item_ids)} items of {name}" + (f"; left out: {left}" if left else ""))
    return {"tasks": sum(bool(one.item_ids) for one in exported.values()), "folder": folder}


if __name__ == "__main__":
    main(export_lm_eval)
