"""Which model is evaluated: the base, a trained cell of the grid, or the champion if there is one to be held against them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.artifacts import CHAMPION, DATA, MODELS, read_json
from components.errors import ArtifactError

BASE, CHAMPION_NAME = "base", "champion"


@dataclass(frozen=True)
class EvaluatedModel:
    """`folder` is None for the base; `seed` is None for all but the cells of the grid."""

    model: str
    preset: str
    seed: int | None
    model_fingerprint: str
    folder: Path | None

    def described(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "folder"}

    def run_fingerprint(self) -> str | None:
        """Of the training whose run the figures belong to; None for what was not trained here."""
        if self.folder is None or self.seed is None:
            return None
        return str(read_json(self.folder / "training.json", made_by="post_train")["fingerprint"])


def find_model(preset: str, seed: int, max_length: int, fetch: Callable[[dict[str, Any]], Path]) -> EvaluatedModel | str:
    """The model, the champion's weights fetched; or why there is no champion to evaluate."""
    if preset == CHAMPION_NAME:
        return _find_champion(max_length, fetch)

    from components.models import weights_fingerprint

    if preset == BASE:
        return EvaluatedModel(BASE, BASE, None, weights_fingerprint(None), None)
    name = f"{preset}-{seed}"
    if not (MODELS / name / "config.json").exists():
        raise ArtifactError(f"{MODELS / name} holds no model. Make it with: dvc repro post_train@{name}")
    return EvaluatedModel(name, preset, seed, weights_fingerprint(MODELS / name), MODELS / name)


def _find_champion(max_length: int, fetch: Callable[[dict[str, Any]], Path]) -> EvaluatedModel | str:
    """As `follow_champion` has seen it. Other tokens than the data's, or a vocabulary of another width, cannot be compared."""
    champion: dict[str, Any] | None = read_json(CHAMPION, made_by="follow_champion")["champion"]
    if champion is None:
        return "no version has the alias champion yet"
    ours = read_json(DATA / "identity.json", made_by="prepare_data")["tokenizer_fingerprint"]
    who = f"the champion, version {champion['version']} of {champion['name']}"
    if champion["tokenizer_fingerprint"] != ours:
        return f"{who}, reads another tokenizer's tokens: fingerprint {champion['tokenizer_fingerprint']}, the data have {ours}"
    folder = fetch(champion)
    why = _why_not_comparable(folder, max_length)
    if why:
        return f"{who}, {why}"
    return EvaluatedModel(CHAMPION_NAME, CHAMPION_NAME, None, champion["model_fingerprint"], folder)


def _why_not_comparable(folder: Path, max_length: int) -> str:
    """Told from its configuration: its laws must be over the base's tokens (drift), and it must read the longest row."""
    from transformers import AutoConfig

    from components.models import base_vocabulary_size

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    theirs, ours = config.get_text_config().vocab_size, base_vocabulary_size()
    if theirs != ours:
        return f"has laws over {theirs} tokens, the base over {ours}"
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < max_length:
        return f"reads {positions} positions, data.max_length is {max_length}"
    return ""
