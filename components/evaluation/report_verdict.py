"""What the report says in words: paired differences read as verdicts. What beats is said to beat, a tie is called a tie."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components.evaluation.report_figures import AXES

OPPOSITE = {"better": "worse", "worse": "better", "tie": "tie"}
FACTORS = (
    ("Did masking help?", "without distillation", "masked_mle", "sft"),
    ("Did masking help?", "with distillation", "uncertainty_aware", "sft_kl"),
    ("Did distillation help?", "without masking", "sft_kl", "sft"),
    ("Did distillation help?", "with masking", "uncertainty_aware", "masked_mle"),
)
FEW_SEEDS = 5


def decimals(values: Iterable[float], figures: int = 3) -> int:
    """Digits after the point (3 to 6) that show the largest of the values to so many figures: tiny accuracies stay visible."""
    scale = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(6, max(3, figures - 1 - math.floor(math.log10(scale)))) if scale else 3


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def figure_words(metric: str) -> str:
    """A headline figure's name for people."""
    return metric.replace("in_domain", "in-domain").replace("base_text", "base-text").replace("ood", "OOD").replace("_", " ")


def find_difference(comparison: Mapping[str, Any], metric: str, method: str, reference: str) -> dict[str, Any] | None:
    """`method` minus `reference` in this metric, turned round where it is listed the other way; None where it is not listed."""
    for found in comparison["differences"]:
        if (found["metric"], found["method"], found["reference"]) == (metric, method, reference):
            return dict(found)
        if (found["metric"], found["method"], found["reference"]) == (metric, reference, method):
            turned = {
                "value": -found["value"],
                "low": -found["high"],
                "high": -found["low"],
                "verdict": OPPOSITE[found["verdict"]],
            }
            if found.get("adjusted_low") is not None:
                turned |= {"adjusted_low": -found["adjusted_high"], "adjusted_high": -found["adjusted_low"]}
            return {**found, "method": method, "reference": reference, **turned}
    return None


def headline(comparison: Mapping[str, Any]) -> list[str]:
    """The verdict in at most two sentences: the candidate's method against the other methods, then against the base."""
    candidate = comparison["candidate"]["preset"]
    standing = {metric: _standing(comparison, metric) for metric in AXES}
    first, second = (standing[metric] for metric in AXES)
    sentences = []
    if first and second:
        same = first == second
        sentences.append(
            f"{candidate} {first}, in-domain and OOD." if same else f"In-domain, {candidate} {first}; OOD, it {second}."
        )
    elif first or second:
        sentences.append(f"{'In-domain' if first else 'OOD'}, {candidate} {first or second}.")
    words = {"better": "better than", "worse": "worse than", "tie": "level with"}
    against_base = {metric: find_difference(comparison, metric, candidate, "base") for metric in AXES}
    parts = [
        f"{words[found['verdict']]} the base {name} ({signed(found['value'], decimals([_reach(comparison, found)], figures=2))})"
        for name, found in zip(("in-domain", "OOD"), against_base.values(), strict=True)
        if found
    ]
    return [*sentences, f"It is {' and '.join(parts)}."] if parts else sentences


def against_sft_kl(comparison: Mapping[str, Any]) -> str | None:
    """The comparison that is easiest to lose: distillation on every token is the simple remedy against forgetting."""
    row = difference_row(comparison, comparison["candidate"]["preset"], "sft_kl")
    words = {"better": "it wins", "worse": "it loses", "tie": "it is a tie", "trade-off": "it is a trade-off"}
    return f"Against sft_kl, the simple remedy (distillation on every token), {words[row['overall']]}." if row else None


def rival_names(comparison: Mapping[str, Any]) -> list[str]:
    return [name for name in comparison["methods"] if name not in ("base", comparison["candidate"]["preset"])]


def _standing(comparison: Mapping[str, Any], metric: str) -> str:
    """For example "beats sft and masked_mle, but loses to sft_kl"."""
    names: dict[str, list[str]] = {"better": [], "tie": [], "worse": []}
    for rival in rival_names(comparison):
        if found := find_difference(comparison, metric, comparison["candidate"]["preset"], rival):
            names[found["verdict"]].append(rival)
    verbs = {"better": "beats", "tie": "ties with", "worse": "loses to"}
    phrases = [f"{verbs[verdict]} {listing(rivals)}" for verdict, rivals in names.items() if rivals]
    return ", but ".join([", ".join(phrases[:-1]), phrases[-1]]) if names["worse"] and len(phrases) > 1 else ", ".join(phrases)


def difference_row(comparison: Mapping[str, Any], method: str, reference: str) -> dict[str, Any] | None:
    """One pair in both metrics, and the two verdicts taken together: better, worse, tie or trade-off."""
    found = {metric: find_difference(comparison, metric, method, reference) for metric in AXES}
    verdicts = {difference["verdict"] for difference in found.values() if difference}
    if not verdicts:
        return None
    overall = "trade-off" if {"better", "worse"} <= verdicts else next(iter(verdicts - {"tie"}), "tie")
    cells = [difference_cell(comparison, difference) for difference in found.values()]
    return {"method": method, "reference": reference, "overall": overall, "cells": cells}


def difference_cell(comparison: Mapping[str, Any], difference: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Text of one difference, and where its bar lies: per cent of the scale, zero in the middle."""
    if difference is None:
        return None
    reach = _reach(comparison, difference)
    digits = decimals([reach], figures=2)
    low, mark, high = (round(50 + 48 * difference[side] / reach, 2) for side in ("low", "value", "high"))
    return {
        "value": signed(difference["value"], digits),
        "interval": f"[{signed(difference['low'], digits)}, {signed(difference['high'], digits)}]",
        "verdict": difference["verdict"],
        "low": low,
        "mark": mark,
        "width": round(high - low, 2),
    }


def _reach(comparison: Mapping[str, Any], difference: Mapping[str, Any]) -> float:
    """Half the scale of a bar: shared by a metric, apart for differences to the base, which dwarf those between methods."""
    return (
        max(
            abs(other[side])
            for other in comparison["differences"]
            for side in ("value", "low", "high")
            if other["metric"] == difference["metric"] and _is_to_base(other) == _is_to_base(difference)
        )
        or 1.0
    )


def _is_to_base(difference: Mapping[str, Any]) -> bool:
    return "base" in (difference["method"], difference["reference"])


def factor_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The 2 x 2 read as questions: what masking and distillation each did, with and without the other."""
    words = {"better": "it helped", "worse": "it hurt", "tie": "no difference to be told from chance"}
    rows = []
    for question, setting, method, reference in FACTORS:
        if {method, reference} <= set(comparison["methods"]) and (row := difference_row(comparison, method, reference)):
            gained = [
                name
                for name, cell in zip(("in-domain", "OOD"), row["cells"], strict=True)
                if cell and cell["verdict"] == "better"
            ]
            trade = (
                f"a trade-off: gained {listing(gained)}, lost {'OOD' if gained == ['in-domain'] else 'in-domain'}"
                if gained
                else ""
            )
            rows.append({"question": question, "setting": setting, "reading": words.get(row["overall"], trade), **row})
    return rows


def all_differences(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every pair once, those with the base first."""
    pairs = dict.fromkeys((found["method"], found["reference"]) for found in comparison["differences"])
    rows = [row for pair in pairs if (row := difference_row(comparison, *pair))]
    return sorted(rows, key=lambda row: not _is_to_base(row))


def is_corrected(comparison: Mapping[str, Any]) -> bool:
    return any(
        found.get("adjusted_p_value") is not None and found["adjusted_p_value"] != found.get("p_value")
        for found in comparison["differences"]
    )


def more_differences(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidate's method in every figure that is on neither axis, against each other method."""
    candidate = comparison["candidate"]["preset"]
    others = [metric for metric in dict.fromkeys(found["metric"] for found in comparison["differences"]) if metric not in AXES]
    references = [name for name in comparison["methods"] if name != candidate]
    return [
        {
            "metric": figure_words(metric),
            "reference": reference,
            "cell": difference_cell(comparison, found),
        }
        for metric in others
        for reference in references
        if (found := find_difference(comparison, metric, candidate, reference))
    ]


def caveats(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader must know before trusting the verdicts."""
    seeds = min(
        (method["num_seeds"] for name, method in comparison["methods"].items() if name not in ("base", "champion")), default=0
    )
    said = []
    if seeds == 1:
        said.append(
            "One seed: means have no interval, and those of differences cover the choice of items, not the luck of training."
        )
    elif 1 < seeds < FEW_SEEDS:
        said.append(f"{seeds} seeds say little about the luck of training: a narrow win may not survive other seeds.")
    if comparison["differences"]:
        chance = f"{(1 - comparison['confidence']) * 100:.3g} %"
        number = len(comparison["differences"])
        if is_corrected(comparison):
            said.append(
                f"{number} differences are tested at once, and verdicts allow for it (Holm): the chance that even one of a "
                f"family looks like a true effect without being one is about {chance} at most. Intervals are those of each "
                "difference alone."
            )
        else:
            said.append(
                f"{number} differences are tested one by one: of those without a true effect about {chance} still look like one."
            )
    return said
