"""Where a base model's files are, and what they are: local folders, pinned hub snapshots, fingerprints of their files."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from components.artifacts import ROOT, fingerprint_files, fingerprint_json
from components.errors import ModelError
from components.params import BaseModelParams

PATTERNS = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
"""What is fetched from a hub and fingerprinted: weights, configuration, tokenizer; never pickles or code."""
NOT_OURS = ("base_model.json",)


def locate(params: BaseModelParams) -> Path:
    """The folder with the model's files: the user's own, or the hub snapshot of exactly the pinned revision."""
    if params.source == "hub":
        return _hub_snapshot(params)
    folder = (ROOT / params.path).resolve()
    if not (folder / "config.json").is_file():
        found = "no such folder" if not folder.is_dir() else "no config.json in it"
        raise ModelError(f"base_model.path: {params.path}: {found}. Set base_model.path to a Hugging Face model folder")
    return folder


def _hub_snapshot(params: BaseModelParams) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(params.hub_id), revision=params.revision, allow_patterns=list(PATTERNS)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:  # ValueError: not a repository's name
        raise ModelError(
            f"base_model.hub_id: {params.hub_id}@{params.revision} cannot be had ({type(error).__name__}: {error}). "
            "Check the name, the revision and the network (HF_HUB_OFFLINE, HF_TOKEN), or set base_model.source: local"
        ) from None


def describe_folder(folder: Path, params: BaseModelParams) -> dict[str, Any]:
    """Fingerprints of every file, the architecture and the number of parameters; refuses folders that want their own code run."""
    config = _read_config(folder)
    if "auto_map" in config:
        raise ModelError(f"{folder}/config.json asks for code of its own (auto_map); Ballast runs no code from a model folder")
    names = sorted({file.name for pattern in PATTERNS for file in folder.glob(pattern)} - set(NOT_OURS))
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise ModelError(f"{folder} holds no *.safetensors file; pickled weights are not read")
    files = fingerprint_files(folder, names)
    return {
        "source": params.source,
        "folder": os.path.relpath(folder, ROOT) if params.source == "local" else None,
        "hub_id": params.hub_id,
        "revision": params.revision,
        "model_type": config.get("model_type"),
        "num_parameters": sum(_count_parameters(folder / name) for name in weights),
        "files": files,
        "fingerprint": fingerprint_json({name: files[name] for name in [*weights, "config.json"]}),
    }


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{folder}/config.json must be a JSON object")
    return config


def _count_parameters(file: Path) -> int:
    try:
        with safe_open(file, framework="pt") as tensors:
            sizes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({error}). Fetch it again") from None
    total = 0
    for shape in sizes:
        product = 1
        for dimension in shape:
            product *= dimension
        total += product
    return total
