"""model_card.md in the form of the Hugging Face Hub: front matter that its parser takes, then what a user must know.

The licence is left out: which one the weights have follows from the base's and the data's, and that is for a person to say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.evaluation.report_data_card import source_lines
from components.evaluation.report_facts import ReportContext
from components.evaluation.report_gate import gate_section
from components.evaluation.report_sets import left_out_lines, noise_lines
from components.evaluation.report_tables import metric_columns
from components.evaluation.report_verdict import caveats, headline

NAMES = {
    "in_domain_accuracy": ("accuracy", "in-domain accuracy"),
    "in_domain_exact_match": ("exact_match", "in-domain exact match"),
    "in_domain_nll": ("nll", "in-domain nll (nats/token)"),
    "in_domain_ece": ("ece", "in-domain expected calibration error"),
    "ood_accuracy": ("accuracy", "OOD accuracy (mean of the sets)"),
    "ood_exact_match": ("exact_match", "OOD exact match (mean of the sets)"),
    "ood_nll": ("nll", "OOD nll (nats/token)"),
    "base_text_nll": ("nll", "nll of the base's own texts (nats/token)"),
}
"""Headline metric -> its type and name in the model index."""
FORGETTING = ("base_text_nll", "in_domain_drift_kl", "in_domain_prompt_drift_kl", "ood_drift_kl", "ood_prompt_drift_kl")


def render_model_card(comparison: Mapping[str, Any], context: ReportContext, data_card: Mapping[str, Any] | None) -> str:
    """The card of the candidate."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    columns = {column["metric"]: column for column in metric_columns(comparison)}
    candidate = comparison["candidate"]
    text = environment.get_template("model_card.md.jinja").render(
        front_matter=yaml.safe_dump(front_matter(comparison, context, data_card), sort_keys=False, allow_unicode=True, width=120),
        candidate=candidate,
        context=context,
        objective=context.objectives.get(candidate["preset"]),
        percent=f"{comparison['confidence'] * 100:g} %",
        headline=headline(comparison),
        methods=list(comparison["methods"]),
        num_seeds=comparison["methods"][candidate["preset"]]["num_seeds"],
        evaluation=[(NAMES[name][1], columns[name]) for name in NAMES if name in columns],
        forgetting=[(name.replace("_", " "), columns[name]) for name in FORGETTING if name in columns],
        gate=gate_section(comparison),
        sources=_sources(data_card),
        rows_used=data_card["counts"]["rows_used"] if data_card else None,
        sets=list(comparison["sets"]),
        limits=[*caveats(comparison), *noise_lines(comparison)],
        left_out=left_out_lines(comparison),
    )
    return text.rstrip("\n") + "\n"


def front_matter(comparison: Mapping[str, Any], context: ReportContext, data_card: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata that the Hub reads; what is not known is not there."""
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if context.base_hub_id:
        metadata |= {"base_model": context.base_hub_id, "base_model_relation": "finetune"}
    metadata["tags"] = ["ballast", "post-training", comparison["candidate"]["preset"]]
    if datasets := _hub_sets(data_card):
        metadata["datasets"] = datasets
    return {**metadata, "model-index": [{"name": comparison["candidate"]["model"], "results": _results(comparison)}]}


def _results(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidate's own figures, not the mean of its seeds: this card is about one model."""
    method = comparison["methods"][comparison["candidate"]["preset"]]
    place = method["models"].index(comparison["candidate"]["model"])
    grouped: dict[str, list[dict[str, Any]]] = {}
    for metric, (kind, name) in NAMES.items():
        found = method["metrics"].get(metric)
        if found and len(found["values"]) == len(method["models"]):
            group = next(scope for scope in ("in_domain", "ood", "base_text") if metric.startswith(scope))
            grouped.setdefault(group, []).append({"type": kind, "name": name, "value": round(found["values"][place], 6)})
    words = {"in_domain": "In-domain test split", "ood": "OOD sets", "base_text": "Texts sampled from the base"}
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": f"ballast/{group}", "name": words[group], "split": "test"},
            "metrics": metrics,
        }
        for group, metrics in grouped.items()
    ]


def _hub_sets(data_card: Mapping[str, Any] | None) -> list[str]:
    """Names on the Hub of the sources that came from there: `owner/name@revision` without the revision."""
    origins = [source["origin"] for source in (data_card or {}).get("sources", []) if source["origin"]]
    return list(dict.fromkeys(origin.partition("@")[0] for origin in origins))


def _sources(data_card: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A line per source; `|` and line breaks would end a cell of the table."""
    if data_card is None:
        return []
    return [
        {
            "name": _cell(line["name"]),
            "origin": _cell(line["origin"]) if line["origin"] else "–",
            "licence": _cell(line["licence"]),
            "train": line["used"]["train"],
            "target_tokens": line["target_tokens"],
        }
        for line in source_lines(data_card["sources"])
    ]


def _cell(pieces: list[Any]) -> str:
    return "".join(piece.text for piece in pieces).replace("|", "\\|").replace("\n", " ")
