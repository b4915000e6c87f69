"""What is said of a candidate in the registry: tags, metrics, description, example prompts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.artifacts import BASE_MODEL, DATA, REPORT, TEACHER_CACHE, read_json
from components.data.rendering import render_prompt
from components.data.tokenized import TokenizedRow, read_split
from components.errors import ArtifactError
from components.evaluation.headline import model_metrics
from components.models import DESCRIPTION, load_prepared_tokenizer
from components.teacher_cache.format import read_manifest
from components.tracking import lineage_tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_PROMPTS = 2
MAX_DESCRIPTION_CHARACTERS = 4900
"""A model version's description is a column of 5,000 in MLflow's databases."""


@dataclass(frozen=True)
class CandidateCard:
    tags: dict[str, str]
    metrics: dict[str, float]
    description: str
    prompts: list[str]
    model_card: str
    """Markdown in the Hugging Face form, the README.md of the stored weights."""


def describe_candidate(candidate: dict[str, Any], evaluation: dict[str, Any], gate: dict[str, Any]) -> CandidateCard:
    """Lineage (commit, dvc.lock, fingerprints), headline figures and the gate's verdict with its reasons."""
    metrics = {name: value for name, value in model_metrics(evaluation).items() if value is not None}
    identity = read_json(DATA / "identity.json", made_by="prepare_data")
    tags = {
        **lineage_tags(),
        "ballast.model": candidate["model"],
        "ballast.preset": candidate["preset"],
        "ballast.model_fingerprint": candidate["model_fingerprint"],
        "ballast.base_fingerprint": read_json(BASE_MODEL / DESCRIPTION, made_by="prepare_base")["fingerprint"],
        "ballast.data_fingerprint": identity["train_fingerprint"],
        "ballast.tokenizer_fingerprint": identity["tokenizer_fingerprint"],
        "ballast.template_fingerprint": identity["template_fingerprint"],
        "ballast.cache_fingerprint": read_manifest(TEACHER_CACHE).identity.fingerprint,
        "gate.verdict": gate["verdict"],
        "gate.reasons": json.dumps(gate_reasons(gate)),
    }
    description = _describe(candidate, metrics, _read_text("gate.md"))
    return CandidateCard(tags, metrics, description, _example_prompts(), _read_text("model_card.md"))


def read_gate(candidate: dict[str, Any]) -> dict[str, Any]:
    """What `compare` has judged, of this candidate and no other."""
    gate: dict[str, Any] = read_json(REPORT / "gate.json", made_by="compare")
    if gate.get("candidate") != candidate["model"] or gate.get("verdict") not in ("pass", "reject", "undecided"):
        raise ArtifactError(
            f"{REPORT / 'gate.json'} judges {gate.get('candidate')}, not {candidate['model']}. dvc repro -f -s compare"
        )
    return gate


def gate_reasons(gate: dict[str, Any]) -> list[str]:
    """One sentence per question, with its numbers."""
    return [str(answer["sentence"]) for answer in gate["answers"]]


def _describe(candidate: dict[str, Any], metrics: dict[str, float], gate_markdown: str) -> str:
    """Kept below what MLflow's databases take; the figures come first and are never cut."""
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    text = (
        f"`{candidate['model']}` (preset {candidate['preset']}, seed {candidate['seed']}), chosen by validation nll.\n\n"
        f"| metric | value |\n|---|---|\n{rows}\n\n{gate_markdown.strip()}\n"
    )
    cut = "\n\n… (the whole gate: artifacts/report/gate.md)\n"
    return text if len(text) <= MAX_DESCRIPTION_CHARACTERS else text[: MAX_DESCRIPTION_CHARACTERS - len(cut)] + cut


def _read_text(name: str) -> str:
    file = REPORT / name
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{file} is missing. Make it with: dvc repro compare") from None


def _example_prompts() -> list[str]:
    tokenizer = load_prepared_tokenizer()
    rows = read_split(DATA, "test")
    return [first_question(rows[index], tokenizer) for index in range(min(NUM_PROMPTS, len(rows)))]


def first_question(row: TokenizedRow, tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the user asks first, as typed: without the tokens that the chat template puts around every question."""
    nothing = tokenizer(render_prompt(({"role": "user", "content": ""},), tokenizer), add_special_tokens=False)["input_ids"]
    asked = row.input_ids[: row.is_target.index(True)]
    first = _num_equal(asked, nothing)
    last = _num_equal(asked[first:][::-1], nothing[first:][::-1])
    return str(tokenizer.decode(asked[first : len(asked) - last], skip_special_tokens=True)).strip()


def _num_equal(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    return next((index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
