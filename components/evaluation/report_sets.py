"""Set by set against the base: each difference with its interval and its verdict after correction; what could not be asked."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluation.report_verdict import decimals, figure_words, plain, signed

METRICS = {"accuracy": "accuracy", "exact_match": "exact match", "nll": "nll"}
UNITS = {"accuracy": "share", "exact_match": "share", "nll": "nats/token"}
ORDER = ("in_domain", "validation", "base_text")


def set_panels(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per metric a card per set with a line per method; all OOD sets on one scale."""
    panels = []
    for metric, words in METRICS.items():
        found = [one for one in comparison.get("set_differences") or [] if one["metric"] == metric]
        if found:
            cards = [_card(name, found) for name in sorted({one["set"] for one in found}, key=_place)]
            panels.append({"metric": words, "unit": UNITS[metric], "cards": cards, "counted": counted(found)})
    return panels


def _card(name: str, differences: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """OOD sets share one scale; any other set has its own, because what was trained moves far more than what was kept."""
    scale = [one for one in differences if one["set"] == name or (_is_ood(one["set"]) and _is_ood(name))]
    reach = max(abs(one[side]) for one in scale for side in ("value", "low", "high")) or 1.0
    lines = [_line(one, reach) for one in differences if one["set"] == name]
    return {"name": name, "reach": plain(reach, decimals([reach], figures=2)), "lines": lines}


def _is_ood(name: str) -> bool:
    return name.startswith("ood/")


def counted(differences: Sequence[Mapping[str, Any]]) -> str:
    """For example "Of 12 differences to the base, 7 are better, 2 worse and 3 ties"."""
    number = {verdict: sum(one["verdict"] == verdict for one in differences) for verdict in ("better", "worse", "tie")}
    ties = "1 is a tie" if number["tie"] == 1 else f"{number['tie']} are ties"
    return f"Of {len(differences)} differences to the base {number['better']} are better, {number['worse']} worse, {ties}."


def left_out_lines(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the files that could not be asked, by kind: one line per set that has any."""
    left_out = comparison.get("left_out") or {}
    return [
        {"set": name, "kinds": ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in kinds.items())}
        for name, kinds in sorted(left_out.items(), key=lambda pair: _place(pair[0]))
        if any(kinds.values())
    ]


def set_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table for DVC's plot."""
    columns = ("set", "metric", "method", "value", "low", "high", "adjusted_p_value", "minimum_detectable", "verdict")
    return [{name: one.get(name) for name in columns} for one in comparison.get("set_differences") or []]


def noise_lines(comparison: Mapping[str, Any]) -> list[str]:
    """The noise floor and the smallest difference to be seen, in words."""
    floors = [
        _floor_line(metric, floor)
        for metric, floor in (comparison.get("noise_floor") or {}).items()
        if None not in (floor.get("between_seed_sd"), floor.get("rerun_difference"))
    ]
    seen: dict[str, list[float]] = {}
    for one in comparison["differences"]:
        if one.get("minimum_detectable") is not None:
            seen.setdefault(one["metric"], []).append(one["minimum_detectable"])
    return [*floors, *(_reach_line(metric, values) for metric, values in seen.items())]


def _floor_line(metric: str, floor: Mapping[str, Any]) -> str:
    digits = decimals([floor["between_seed_sd"], floor["rerun_difference"]], figures=2)
    spread, rerun = (plain(floor[name], digits) for name in ("between_seed_sd", "rerun_difference"))
    return (
        f"{_start(metric)}: seeds alone spread a method's runs by {spread} (standard deviation); two single runs that differ in "
        f"their seed only may lie ± {rerun} apart ({floor['num_seeds']} seeds of {floor['num_methods']} methods)."
    )


def _reach_line(metric: str, seen: Sequence[float]) -> str:
    digits = decimals(seen, figures=2)
    least, most = plain(min(seen), digits), plain(max(seen), digits)
    reach = least if least == most else f"{least} to {most}, from pair to pair"
    return f"{_start(metric)}: the smallest true difference that these items and seeds would most likely show is {reach}."


def _start(metric: str) -> str:
    words = figure_words(metric)
    return words[0].upper() + words[1:]


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _line(one: Mapping[str, Any], reach: float) -> dict[str, Any]:
    digits = decimals([reach], figures=2)
    low, mark, high = (round(50 + 48 * one[side] / reach, 2) for side in ("low", "value", "high"))
    said = [f"{one['method']} minus base {signed(one['value'], digits)}"]
    if one.get("adjusted_p_value") is not None:
        said.append(f"p after correction {one['adjusted_p_value']:.3g}")
    if one.get("minimum_detectable") is not None:
        said.append(f"smallest difference to be seen {plain(one['minimum_detectable'], digits)}")
    return {
        "method": one["method"],
        "value": signed(one["value"], digits),
        "interval": f"[{signed(one['low'], digits)}, {signed(one['high'], digits)}]",
        "verdict": one["verdict"],
        "title": "; ".join(said),
        "low": low,
        "mark": mark,
        "width": round(high - low, 2),
    }
