"""Base models and tokenizers: the tiny embedded ones, local folders and pinned hub snapshots; dtype and device policy.

Weights are read from safetensors only and no code from a model folder is ever run.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from components.artifacts import (
    BASE_MODEL,
    DATA,
    ROOT,
    fingerprint_file,
    fingerprint_files,
    fingerprint_json,
    publish_folder,
    read_json,
    write_json,
)
from components.errors import ModelError, ParamsError
from components.params import BaseModelParams, ComputeParams
from components.plain_names import plain_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DESCRIPTION = "base_model.json"
TRAINING = "training.json"
SPECIAL_WORDS = ("<pad>", "<unk>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
EMBEDDED_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def select_device(compute: ComputeParams, local_rank: int | None = None) -> torch.device:
    """The device to run on, after setting the number of CPU threads. `cuda` where there is none is an error, not a fallback.

    `local_rank`: this process among those on this machine, each of which takes a GPU; None takes the current one.
    """
    if compute.num_threads:
        torch.set_num_threads(compute.num_threads)
    if compute.device == "cpu" or (compute.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelError("compute.device is 'cuda', but torch sees no GPU here. Set compute.device: cpu (or auto) in params.yaml")
    return torch.device("cuda", torch.cuda.current_device() if local_rank is None else local_rank % torch.cuda.device_count())


def select_dtype(precision: str) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def build_word_tokenizer(words: list[str], max_length: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template, for the embedded world."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate((*SPECIAL_WORDS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=max_length,
    )
    fast.chat_template = EMBEDDED_CHAT_TEMPLATE
    return fast


def build_tiny_model(params: BaseModelParams, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "PreTrainedModel":
    """A randomly initialised Hugging Face model of the named architecture (fp32, tied embeddings)."""
    heads = params.num_heads
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": params.hidden_size,
        "intermediate_size": 4 * params.hidden_size,
        "num_hidden_layers": params.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
    }
    gemma = {
        "head_dim": params.hidden_size // heads,
        "query_pre_attn_scalar": params.hidden_size // heads,
        "sliding_window": max_length,
    }
    by_architecture: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("llama", {}),
        "gemma2": ("gemma2", gemma),
        "gemma3": ("gemma3_text", gemma),
        "phi3": ("phi3", {}),
    }
    model_type, special = by_architecture[params.architecture]
    config = AutoConfig.for_model(model_type, **common, **special)
    torch.manual_seed(params.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def base_folder() -> Path:
    """Where the base model's files lie: inside the artifact of `prepare_base`, or the user's folder that it points to."""
    description: dict[str, Any] = read_json(BASE_MODEL / DESCRIPTION, made_by="prepare_base")
    if description["source"] == "hub":
        return _hub_snapshot(description["hub_id"], description["revision"])
    return BASE_MODEL if description["source"] == "embedded" else ROOT / str(description["folder"])


def _hub_snapshot(hub_id: str, revision: str) -> Path:
    """The snapshot that `prepare_base` saw, wherever this machine keeps its hub cache; never fetched here."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{hub_id}@{revision} is not in this machine's hub cache. Fetch it with: dvc repro -f -s prepare_base"
        ) from None


def require_positions(max_length: int) -> None:
    """Refuse rows longer than the base can read: positions beyond its own are never trained and may crash."""
    positions = base_positions()
    if positions is not None and max_length > positions:
        raise ParamsError(
            f"params.yaml: data.max_length {max_length} is more than the base model's {positions} positions; "
            f"set data.max_length: {positions}"
        )


def refuse_long_rows(longest: int) -> None:
    """The same for the longest of rows that are prepared already, perhaps for another base than this one."""
    positions = base_positions()
    if positions is not None and longest > positions:
        raise ParamsError(
            f"the longest training row has {longest} tokens, the base model reads {positions}. In params.yaml set "
            f"data.max_length: {positions}, and run: dvc repro prepare_data"
        )


def base_positions() -> int | None:
    """Positions that the base can read, where its configuration says so."""
    config = AutoConfig.from_pretrained(base_folder(), trust_remote_code=False)
    return getattr(config, "max_position_embeddings", None)


def base_vocabulary_size() -> int:
    """Width of the base's logits, from its configuration alone; it may be more than the tokenizer's tokens (padding)."""
    config = AutoConfig.from_pretrained(base_folder(), trust_remote_code=False)
    return int(config.get_text_config().vocab_size)


def refuse_changed_base() -> None:
    """Refuse weights that are not those that `prepare_base` fingerprinted: what is made from them would be mislabelled."""
    description: dict[str, Any] = read_json(BASE_MODEL / DESCRIPTION, made_by="prepare_base")
    folder = base_folder()
    for name, before in description["files"].items():
        plain_name(name, str(BASE_MODEL / DESCRIPTION))
        if name != "config.json" and not name.endswith(".safetensors"):
            continue
        now = fingerprint_file(folder / name) if (folder / name).exists() else "missing"
        if now != before:
            raise ModelError(
                f"{folder / name} is not what prepare_base found there: fingerprint {before} then, {now} now. "
                "Run: dvc repro -f -s prepare_base, then dvc repro"
            )


def load_base_model(dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> "PreTrainedModel":
    return load_model(base_folder(), dtype, device)


def load_base_tokenizer() -> "PreTrainedTokenizerBase":
    """The tokenizer as it came with the base, without the template that `prepare_data` gives it."""
    return load_tokenizer(base_folder())


def load_prepared_tokenizer() -> "PreTrainedTokenizerBase":
    """The tokenizer with the chat template that the data were rendered with."""
    return load_tokenizer(DATA / "tokenizer")


def save_model(target: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", run_fingerprint: str) -> None:
    """Weights (safetensors), configuration, tokenizer and the training's fingerprint in one folder, whole or not at all."""
    with publish_folder(target) as staging:
        write_json(staging / TRAINING, {"fingerprint": run_fingerprint})
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)


def weights_fingerprint(folder: Path | None) -> str:
    """Fingerprint of a model's weights and configuration; of the base where no folder is given."""
    if folder is None:
        return str(read_json(BASE_MODEL / DESCRIPTION, made_by="prepare_base")["fingerprint"])
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    return fingerprint_json(fingerprint_files(folder, [*names, "config.json"]))


def pad_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The padding token, or the end of sequence where there is none (padded positions are masked, so any id will do)."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def load_model(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> "PreTrainedModel":
    """Load safetensors weights from a local folder; no remote code, no pickle."""
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no *.safetensors file; pickled weights are not read. "
            "Convert them with model.save_pretrained(folder, safe_serialization=True)"
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded as a causal language model: {error}") from error
    model: PreTrainedModel = loaded[0]
    missing = loaded[1]["missing_keys"]
    if missing:
        raise ModelError(
            f"{folder}: its safetensors files lack {len(missing)} of the model's weights (for example {min(missing)}), "
            "which would be left random. Fetch or export the model again"
        )
    return model if device is None else model.to(device)  # type: ignore[arg-type]  # the wrapped method loses its signature


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder} holds no tokenizer that can be loaded ({error}). Copy tokenizer.json next to config.json"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: a fast tokenizer (tokenizer.json) is needed, to know which characters a token covers")
    return tokenizer


USE_ANOTHER = "it cannot score these rows. Set token_scores.reference_path to a model that was tuned from the same base"


def load_reference_model(
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    longest: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> "PreTrainedModel":
    """A reference of the user's, which must read the same tokens as the data and rows of `longest` tokens."""
    _refuse_other_tokens(folder, tokenizer)
    model = load_model(folder, dtype, device)
    config: Any = model.config
    if config.vocab_size < len(tokenizer):
        raise ModelError(f"{folder} has a vocabulary of {config.vocab_size}, the data one of {len(tokenizer)}: {USE_ANOTHER}")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise ModelError(f"{folder} reads {positions} positions, the longest row has {longest}: {USE_ANOTHER}")
    return model


def _refuse_other_tokens(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """The same id must be the same token for both. The model may have more rows than tokens (padded embeddings)."""
    theirs, ours = load_tokenizer(folder).get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        other = min((token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token)), key=str)
        raise ModelError(
            f"{folder} has another tokenizer than the data: {other!r} is token {theirs.get(other)} there and {ours.get(other)} "
            f"here; {USE_ANOTHER}"
        )
