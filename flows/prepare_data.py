"""Stage `prepare_data`: instruction data, rendered with the chat template, masked, validated, tokenised.

    python -m flows.prepare_data

Takes `data` (and, embedded, `world`) and the base's tokenizer. Leaves artifacts/data/: train, validation and test as Arrow, the
tokenizer with its template, quarantine.jsonl, validation.json and Data Docs. A failed gate keeps its findings under .work.
"""

from typing import Any

from components.artifacts import DATA, ROOT, WORK, publish_folder, write_json
from components.params import DataParams, WorldParams
from flows.stage_runner import main


def prepare_data(*, data: DataParams, world: WorldParams) -> dict[str, Any]:
    from components.data.embedded_splits import EMBEDDED_SPLITS, write_world
    from components.data.rendering import apply_template
    from components.data_preparation.prepare import PreparedData, always, prepare_files, require_rows, split_by_content
    from components.data_preparation.publish import check, ood_index, write_prepared
    from components.models import load_base_tokenizer, require_positions

    require_positions(data.max_length)
    tokenizer = load_base_tokenizer()
    apply_template(tokenizer, data.chat_template)
    prepared = PreparedData()
    with publish_folder(DATA) as staging:
        if data.source == "embedded":
            write_world(staging, world)
            overlaps = ood_index(staging / "ood")
            for split in EMBEDDED_SPLITS:
                prepare_files(staging / "raw" / split, tokenizer, data, always(split), overlaps, prepared)
        else:
            overlaps = ood_index(ROOT / data.ood_path)
            prepare_files(ROOT / data.path, tokenizer, data, split_by_content(data), overlaps, prepared)
        require_rows(prepared)
        check(prepared, data, staging, failures=WORK / "prepare_data_failed")
        counts = write_prepared(prepared, tokenizer, staging)
        write_json(staging / "counts.json", counts)
    return {"rows_in": counts["rows_in"], "used": counts["rows_used"], "quarantined": counts["rows_quarantined"]}


if __name__ == "__main__":
    main(prepare_data)
