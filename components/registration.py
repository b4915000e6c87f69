"""What is said of a candidate in the registry: tags, metrics, description, example prompts."""

import json
from dataclasses import dataclass
from typing import Any

from components.artifacts import BASE_MODEL, DATA, TEACHER_CACHE, read_json
from components.data.tokenized import read_split
from components.evaluation.comparison import model_metrics
from components.evaluation.gate import GateVerdict
from components.models import DESCRIPTION, load_prepared_tokenizer
from components.teacher_cache.format import read_manifest
from components.tracking import lineage_tags

NUM_PROMPTS = 2


@dataclass(frozen=True)
class CandidateCard:
    tags: dict[str, str]
    metrics: dict[str, float]
    description: str
    prompts: list[str]


def describe_candidate(candidate: dict[str, Any], evaluation: dict[str, Any], verdict: GateVerdict) -> CandidateCard:
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
        "ballast.cache_fingerprint": read_manifest(TEACHER_CACHE).identity.fingerprint,
        "gate.verdict": verdict.word,
        "gate.reasons": json.dumps(verdict.reasons),
    }
    return CandidateCard(tags, metrics, _describe(candidate, metrics, verdict), _example_prompts())


def _describe(candidate: dict[str, Any], metrics: dict[str, float], verdict: GateVerdict) -> str:
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    reasons = "\n".join(f"* {reason}" for reason in verdict.reasons)
    return (
        f"`{candidate['model']}` (preset {candidate['preset']}, seed {candidate['seed']}), chosen by validation nll.\n\n"
        f"| metric | value |\n|---|---|\n{rows}\n\nGate: **{verdict.word}**\n\n{reasons}\n"
    )


def _example_prompts() -> list[str]:
    """The first user turns of test rows, as a user would type them."""
    tokenizer = load_prepared_tokenizer()
    rows = read_split(DATA, "test")
    prompts = []
    for index in range(min(NUM_PROMPTS, len(rows))):
        row = rows[index]
        first_target = row.is_target.index(True)
        prompts.append(str(tokenizer.decode(row.input_ids[:first_target], skip_special_tokens=True)).strip())
    return prompts
