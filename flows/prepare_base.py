"""Stage `prepare_base`: the frozen base model that everything is measured against.

    python -m flows.prepare_base

Takes `base_model` (and, embedded, `world`). Leaves artifacts/base_model/: the embedded model pre-trained here, or a description
that points to a local folder or a pinned hub snapshot, whose weights are verified and never copied.
"""

from typing import Any

from components.artifacts import BASE_MODEL, WORK, publish_folder, write_json
from components.params import BaseModelParams, ComputeParams, WorldParams
from flows.stage_runner import main


def prepare_base(*, base_model: BaseModelParams, world: WorldParams, compute: ComputeParams) -> dict[str, Any]:
    from components.model_sources import describe_folder, locate
    from components.models import DESCRIPTION, load_model, load_tokenizer, select_device
    from components.training.pretrain import pretrain_embedded

    device = select_device(compute)
    with publish_folder(BASE_MODEL) as staging:
        if base_model.source == "embedded":
            pretrain_embedded(base_model, world, target=staging, work=WORK / "pretrain", device=device)
            description = describe_folder(staging, base_model)
        else:
            folder = locate(base_model)
            load_model(folder)
            load_tokenizer(folder)
            description = describe_folder(folder, base_model)
        write_json(staging / DESCRIPTION, description)
    return {"source": base_model.source, "fingerprint": description["fingerprint"], "parameters": description["num_parameters"]}


if __name__ == "__main__":
    main(prepare_base)
