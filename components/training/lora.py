"""Low-rank adapters by peft (Hu et al. 2022): only the adapter is trained, the result is merged back into full weights."""

from typing import TYPE_CHECKING, Any

from components.errors import ParamsError
from components.params import LoraParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_adapter(model: "PreTrainedModel", params: LoraParams) -> Any:
    """Wrap `model` so that only low-rank updates of the target modules are trained."""
    from peft import LoraConfig, get_peft_model

    targets = params.target_modules if isinstance(params.target_modules, str) else list(params.target_modules)
    alpha: Any = params.alpha  # annotated int by peft, used as a factor
    config = LoraConfig(
        task_type="CAUSAL_LM", r=params.rank, lora_alpha=alpha, lora_dropout=params.dropout, target_modules=targets
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ParamsError(f"params.yaml: training.lora.target_modules {params.target_modules!r}: {error}") from None


def merge_adapter(model: Any) -> "PreTrainedModel":
    """Full weights with the adapter added in."""
    merged: PreTrainedModel = model.merge_and_unload()
    return merged
