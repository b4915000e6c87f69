"""Stage `sample_base`: what the base writes by itself, drawn once, for every model to be scored on.

    python -m flows.sample_base

Takes the base model. Leaves artifacts/base_text.json.
"""

from typing import Any

from components.artifacts import BASE_TEXT, write_json
from components.params import BaseTextParams, ComputeParams
from flows.stage_runner import main


def sample_base(*, base_text: BaseTextParams, compute: ComputeParams) -> dict[str, Any]:
    from components.evaluation.base_text import write_base_text
    from components.models import load_base_model, load_base_tokenizer, select_device, weights_fingerprint

    base = load_base_model(device=select_device(compute))
    kept = write_base_text(base, load_base_tokenizer(), base_text, weights_fingerprint(None))
    write_json(BASE_TEXT, kept)
    return {"num_texts": len(kept["texts"]), "num_tokens": sum(map(len, kept["texts"]))}


if __name__ == "__main__":
    main(sample_base)
