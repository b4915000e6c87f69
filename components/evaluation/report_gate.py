"""The gate's answers as the report and the model card show them: one line per question, with its margin and what it could see."""

from collections.abc import Mapping
from typing import Any

from components.evaluation.report_verdict import decimals, figure_words, signed

VERDICTS = {
    "pass": "The gate passes",
    "reject": "The gate rejects",
    "undecided": "The gate cannot decide on",
}
QUESTIONS = {
    "in_domain_superiority": "Learned enough in-domain?",
    "ood_non_inferiority": "Kept enough outside? (mean of the OOD sets)",
    "ood_set_non_inferiority": "Kept enough of this OOD set?",
}
MEANING = {
    "pass": "Every question is met: the whole interval lies on the good side of its margin.",
    "reject": "At least one question is missed: the whole interval lies on the bad side of its margin.",
    "undecided": "An interval holds its margin: these items and seeds cannot tell. More of either would.",
}


def gate_section(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """Everything that the section shows; None where no gate was asked."""
    gate = comparison.get("gate")
    if not gate:
        return None
    champion = gate.get("champion")
    return {
        "verdict": gate["verdict"],
        "lead": f"{VERDICTS[gate['verdict']]} {gate['candidate']}",
        "meaning": MEANING[gate["verdict"]],
        "against": f"champion: version {champion['version']} of {champion['name']}" if champion else "no champion yet",
        "rows": [_row(answer) for answer in gate["answers"]],
    }


def gate_figures(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """The gate for DVC's metrics: its verdict, and of each question the difference and how far it is from missing its margin."""
    gate = comparison.get("gate")
    if not gate:
        return None
    figures: dict[str, Any] = {"verdict": gate["verdict"]}
    for answer in gate["answers"]:
        name = "/".join(filter(None, (answer["question"], answer["against"], answer.get("set"))))
        if answer.get("low") is not None and answer.get("margin") is not None:
            figures[name] = {"difference": round(answer["value"], 6), "room": round(answer["low"] - answer["margin"], 6)}
    return figures


def _row(answer: Mapping[str, Any]) -> dict[str, Any]:
    edges = [answer.get(name) for name in ("value", "low", "high", "margin")]
    known = [abs(edge) for edge in edges if edge is not None]
    reach = max(known, default=0.0) or 1.0
    digits = decimals([reach], figures=2)
    value, low, high, margin = (None if edge is None else signed(edge, digits) for edge in edges)
    return {
        "question": QUESTIONS.get(answer["question"], answer["question"].replace("_", " ")),
        "metric": figure_words(answer["metric"]),
        "set": answer.get("set"),
        "against": answer["against"],
        "value": value,
        "interval": None if low is None or high is None else f"[{low}, {high}]",
        "margin": margin,
        "minimum": None if answer.get("minimum_detectable") is None else f"{answer['minimum_detectable']:.{digits}f}",
        "outcome": answer["outcome"],
        "sentence": answer.get("sentence", ""),
        "bar": None if None in edges else _bar(answer, reach),
    }


def _bar(answer: Mapping[str, Any], reach: float) -> dict[str, float]:
    """Where the interval, its dot and the margin lie: per cent of the scale, zero in the middle."""
    low, mark, high, margin = (round(50 + 48 * answer[name] / reach, 2) for name in ("low", "value", "high", "margin"))
    return {"low": low, "mark": mark, "width": round(high - low, 2), "margin": margin}
