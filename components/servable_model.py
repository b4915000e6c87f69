"""The form in which MLflow keeps a language model: its own transformers flavour, task llm/v1/chat, weights in safetensors.

`mlflow.pyfunc.load_model` and `mlflow models serve` load it without this repository, and prompts go through the chat template.
Four defaults of the flavour are wrong for us and are set otherwise: it samples; it puts a second begin-of-text token before what
the template has begun; it asks the Hugging Face hub about local models; it ends at end of text alone, not at the end of turn.
"""

import shutil
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.data.end_of_turn import end_of_turn
from components.errors import ModelError

if TYPE_CHECKING:
    from mlflow.models import Model
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REQUIREMENTS = ("mlflow", "torch", "transformers", "accelerate", "safetensors", "tokenizers")


def save_servable(
    folder: Path, target: Path, mlmodel: "Model", *, title: str, prompt: str, max_new_tokens: int, model_card: str
) -> None:
    """Save the model of a folder in MLflow's form. The title must not be a valid hub id: MLflow would look that up.

    The model card is MLflow's model_card.md and, beside the weights, the README.md that Hugging Face's tools look for.
    """
    import mlflow.transformers
    from huggingface_hub import ModelCard

    model, tokenizer = _load(folder)
    model.name_or_path = title
    model_config: dict[str, Any] = {"do_sample": False, "add_special_tokens": False}
    model_config["max_new_tokens"] = min(
        max_new_tokens, getattr(model.config, "max_position_embeddings", 2 * max_new_tokens) // 2
    )
    end_ids, end_text = end_of_turn(tokenizer)
    ends = model.generation_config.eos_token_id
    known = ends if isinstance(ends, list) else [ends]
    model.generation_config.eos_token_id = sorted({*known, *end_ids, tokenizer.eos_token_id} - {None})
    if end_text:
        model_config["stop_sequence"] = end_text
    mlflow.transformers.save_model(
        {"model": model, "tokenizer": tokenizer},
        path=str(target),
        task="llm/v1/chat",
        mlflow_model=mlmodel,
        input_example={"messages": [{"role": "user", "content": prompt}]},
        pip_requirements=[f"{package}=={installed_version(package).partition('+')[0]}" for package in REQUIREMENTS],
        model_config=model_config,
        model_card=ModelCard(model_card),
    )
    (target / "model" / "README.md").write_text(model_card, encoding="utf-8")
    (target / "LICENSE.txt").unlink(missing_ok=True)  # says "visit huggingface.co" for every local model
    for licence in folder.glob("LICENSE*"):
        shutil.copy(licence, target)


def generate_answers(folder: Path, prompts: Sequence[str]) -> list[dict[str, str]]:
    """Load what was saved as its users will, and ask it every prompt."""
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(folder))
    answers = [loaded.predict({"messages": [{"role": "user", "content": prompt}]})[0]["choices"][0] for prompt in prompts]
    return [
        {"prompt": prompt, "answer": choice["message"]["content"], "ended": choice["finish_reason"]}
        for prompt, choice in zip(prompts, answers, strict=True)
    ]


def _load(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Model and tokenizer in the precision they are stored in."""
    import torch
    from transformers import AutoConfig

    from components.models import load_model, load_tokenizer

    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} is a LoRA adapter without its base. Merge it: model.merge_and_unload().save_pretrained(folder)"
        )
    try:
        dtype = AutoConfig.from_pretrained(folder, trust_remote_code=False).dtype or torch.float32
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} has no config.json that can be read ({error}). Train it again: dvc repro post_train"
        ) from error
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise ModelError(f"{folder}: the tokenizer has no chat template, the registered model could not be asked anything")
    return load_model(folder, dtype), tokenizer
