"""The gate's answers as a table in Markdown: for the registry, the pipeline's artifacts and the terminal."""

from collections.abc import Mapping
from typing import Any

WORDS = {
    "pass": "pass: every question is met",
    "reject": "reject: a question is missed",
    "undecided": "undecided: these items and seeds cannot tell; more of either would",
}
QUESTIONS = {
    "in_domain_superiority": "better in-domain",
    "ood_non_inferiority": "not worse outside",
    "ood_set_non_inferiority": "not worse on {set}",
}


def render_gate(gate: Mapping[str, Any]) -> str:
    """First line the verdict, then a row per question."""
    champion = gate["champion"]
    beside = f"the champion is version {champion['version']} of {champion['name']}" if champion else "there is no champion"
    head = [
        f"**{WORDS[gate['verdict']]}**",
        "",
        f"Candidate `{gate['candidate']}`; {beside}. Intervals of {gate['confidence']:.0%}, paired by item.",
        "",
        "| question | against | metric | difference | interval | must be above | detectable from | outcome |",
        "|---|---|---|---:|---|---:|---:|---|",
    ]
    return "\n".join([*head, *(_row(answer) for answer in gate["answers"])]) + "\n"


def _row(answer: Mapping[str, Any]) -> str:
    question = QUESTIONS[answer["question"]].format(set=answer["set"])
    if answer["value"] is None:
        cells = ["", answer["sentence"].partition(": ")[2].rpartition(": ")[0], "", ""]
    else:
        cells = [
            f"{answer['value']:+.3f}",
            f"[{answer['low']:+.3f}, {answer['high']:+.3f}]",
            f"{answer['margin']:+.3f}",
            f"{answer['minimum_detectable']:.3f}",
        ]
    return "| " + " | ".join([question, answer["against"], answer["metric"], *cells, answer["outcome"]]) + " |"
