"""Stage `prepare_data`: instruction data, rendered with the chat template, masked, held to the contract, tokenised.

    python -m flows.prepare_data

Takes `data`, `data_contract` (and, embedded, `world`) and the base's tokenizer. Leaves artifacts/data/: train, validation and
test as Arrow, the tokenizer with its template, quarantine.jsonl, validation.json, Data Docs and the data card. A broken contract
leaves its findings under .work. What the passes over the rows have made is kept there too, so the next run goes on from it.
"""

from typing import Any

from components.artifacts import DATA, ROOT, WORK, publish_folder, write_json
from components.data_params import DataContractParams, DataParams
from components.params import WorldParams
from flows.stage_runner import main


def prepare_data(*, data: DataParams, data_contract: DataContractParams, world: WorldParams) -> dict[str, Any]:
    from components.data.chat_templates import apply_template
    from components.data.embedded_splits import write_world
    from components.data_preparation.data_card import write_data_card
    from components.data_preparation.gate import check
    from components.data_preparation.inputs import embedded_sources, held_out_index, sources_of_files
    from components.data_preparation.prepare import prepare
    from components.data_preparation.publish import count_rows, write_splits
    from components.data_preparation.workplace import alone_in
    from components.models import load_base_tokenizer, require_positions

    require_positions(data.max_length)
    tokenizer = load_base_tokenizer()
    template = apply_template(tokenizer, data.chat_template)
    work = WORK / "prepared_rows"
    with alone_in(work), publish_folder(DATA) as staging:
        if data.source == "embedded":
            write_world(staging, world)
            sources, held_out = embedded_sources(staging / "raw"), staging / "ood"
        else:
            sources, held_out = sources_of_files(data, ROOT, WORK / "hub"), ROOT / data.ood_path
        index = held_out_index(held_out, data_contract.overlap_words)
        prepared = prepare(sources, tokenizer, data, data_contract, index, work)
        check(prepared, tokenizer, data, data_contract, staging, failures=WORK / "prepare_data_failed")
        write_splits(prepared, tokenizer, staging, with_laws=data.source == "embedded")
        counts = count_rows(prepared)
        write_json(staging / "counts.json", counts)
        write_data_card(prepared, tokenizer, template, counts, staging, max_length=data.max_length)
    return {"rows_in": counts["rows_in"], "used": counts["rows_used"], "quarantined": counts["rows_quarantined"]}


if __name__ == "__main__":
    main(prepare_data)
