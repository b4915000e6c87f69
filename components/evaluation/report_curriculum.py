"""What the masks did during training: which uncertainty they followed, which tokens came and went, which classes they cover.

Curves are means over the seeds of a method; a figure that no seed recorded is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluation.probes import Probe, Probes, class_counts, probes_of, score_of, select_of, step_lines
from components.evaluation.report_figures import Curve, PanelLine, mean_curve, method_index, panel_svg

FOLLOWED = ("epistemic", "aleatoric")
TURNOVER = ("jaccard", "jaccard_epoch", "entered", "left")
HOLDINGS = {"epistemic_share": "still to learn", "known_share": "known already", "noise_share": "noise"}
"""Shares of the selected tokens, together 1."""
Runs = Sequence[Sequence[Mapping[str, float]]]
"""Per seed a line per step."""


def curriculum(comparison: Mapping[str, Any], probes: Probes) -> dict[str, Any]:
    """Everything the section shows. `without_mask`: methods that were probed and select every token."""
    found = {name: probes_of(comparison, probes, name) for name in comparison["methods"] if name != "base"}
    found = {name: own for name, own in found.items() if own}
    masked = {name: own for name, own in found.items() if select_of(own[0]) != "all"}
    limits = _limits(masked.values())
    return {
        "is_probed": bool(found),
        "without_mask": [name for name in found if name not in masked],
        "masks": [mask_story(name, own, method_index(comparison, name), limits) for name, own in masked.items()],
        "warnings": [line for name, own in found.items() for line in warning_lines(name, own)],
    }


def mask_story(name: str, own: Sequence[Probe], index: int, limits: tuple[float, float]) -> dict[str, Any]:
    """One method's panels, its sentence and its coverage."""
    runs = [step_lines(probe) for probe in own]
    epistemic, aleatoric = (mean_curve(runs, column) for column in FOLLOWED)
    crossing = crossing_step(epistemic, aleatoric)
    turnover = [mean_curve(runs, column) for column in TURNOVER]
    return {
        "name": name,
        "score": score_of(own[0]),
        "truth": own[0].get("truth") or "none",
        "crossing": crossing,
        "sentence": sentence(epistemic, aleatoric, own[0]),
        "follows_svg": _follows_svg(name, epistemic, aleatoric, crossing, limits) if epistemic and aleatoric else None,
        "turnover_svg": _turnover_svg(name, turnover, index) if any(turnover) else None,
        "coverage": coverage_rows(own, runs),
        "holdings": holding_rows(runs),
        "shown_steps": shown_steps(runs),
    }


def crossing_step(epistemic: Curve, aleatoric: Curve) -> float | None:
    """The step from which, to the end, the score ranks tokens more like noise than like what is left to learn; None: never."""
    crossing = None
    for step, follows_noise in _comparable(epistemic, aleatoric):
        if not follows_noise:
            crossing = None
        elif crossing is None:
            crossing = step
    return crossing


def _comparable(epistemic: Curve, aleatoric: Curve) -> list[tuple[float, bool]]:
    noise = dict(aleatoric)
    return [(step, noise[step] > value) for step, value in epistemic if step in noise]


def sentence(epistemic: Curve, aleatoric: Curve, probe: Probe) -> str:
    """The crossing in words, with both rank correlations at the last probe."""
    steps = _comparable(epistemic, aleatoric)
    if select_of(probe) == "random":
        return "the mask is drawn by chance: it follows nothing"
    if not steps and (probe.get("truth"), score_of(probe)) == ("reference", "excess"):
        return "what the mask follows is not known: the only reference is the one that its score is made of"
    if not steps:
        return "what the mask follows is not known: it takes the true law of every token, or a reference model"
    verb = "avoids" if select_of(probe) == "low" else "follows"
    noise = f"the mask {verb} noise more than what is left to learn"
    num_noisy = sum(follows_noise for _, follows_noise in steps)
    crossing = crossing_step(epistemic, aleatoric)
    if crossing is not None:
        first = "at every probe" if num_noisy == len(steps) else f"from step {crossing:g}"
        said = f"{first} {noise}"
    elif num_noisy:
        said = f"at {num_noisy} of {len(steps)} probes, but not at the last, {noise}"
    else:
        said = f"at every probe the mask {verb} what is left to learn more than noise"
    last = f"{_signed(dict(aleatoric)[steps[-1][0]])} with noise, {_signed(dict(epistemic)[steps[-1][0]])} with what is left"
    return f"{said} (at step {steps[-1][0]:g}: {last})"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def shown_steps(runs: Runs) -> list[float]:
    """The first, the middle and the last probe."""
    steps = sorted({line["step"] for run in runs for line in run})
    return list(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]])) if steps else []


def coverage_rows(own: Sequence[Probe], runs: Runs) -> list[dict[str, Any]]:
    """Per class: how many tokens, and the share of them that is selected at the shown steps, mean over seeds, in per cent."""
    rows: list[dict[str, Any]] = [
        {"name": name.replace("_", " "), "num_tokens": count, "shares": _shares(runs, f"class:{name}")}
        for name, count in class_counts(own[0]).items()
    ]
    return [row for row in rows if row["num_tokens"] or _is_known(row["shares"])]


def holding_rows(runs: Runs) -> list[dict[str, Any]]:
    """What the selected tokens are at the shown steps, mean over seeds, in per cent; empty where the truth is not known."""
    rows: list[dict[str, Any]] = [{"name": words, "shares": _shares(runs, f"mask:{name}")} for name, words in HOLDINGS.items()]
    return [row for row in rows if _is_known(row["shares"])]


def _shares(runs: Runs, column: str) -> list[int | None]:
    curve = dict(mean_curve(runs, column))
    return [None if step not in curve else round(100 * curve[step]) for step in shown_steps(runs)]


def _is_known(shares: Sequence[int | None]) -> bool:
    return any(share is not None for share in shares)


def warning_lines(name: str, own: Sequence[Probe]) -> list[dict[str, Any]]:
    """The warnings of a method's runs, each once with the number of its seeds, at the earliest step that gave it."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for seed, probe in enumerate(own):
        for warning in probe.get("warnings") or []:
            kind, of_class = str(warning.get("kind") or "warning"), str(warning.get("class") or "")
            line = found.setdefault((kind, of_class), {"method": name, "kind": kind, "seeds": set(), "step": None, "message": ""})
            line["seeds"].add(seed)
            step = warning.get("step")
            if line["step"] is None or (step is not None and step < line["step"]):
                line.update(step=step, message=str(warning.get("message", "")).removeprefix(f"objective.{name}: "))
    return [{**line, "num_seeds": len(line["seeds"]), "of_seeds": len(own)} for line in found.values()]


def _limits(masked: Any) -> tuple[float, float]:
    """One scale of rank correlation for all methods."""
    values = [line[side] for own in masked for probe in own for line in step_lines(probe) for side in FOLLOWED if side in line]
    return min([-0.1, *values]) - 0.06, max([0.5, *values]) + 0.2


def _follows_svg(name: str, epistemic: Curve, aleatoric: Curve, crossing: float | None, limits: tuple[float, float]) -> str:
    lines = [PanelLine(epistemic, 0), PanelLine(aleatoric, 1, dashes=(4, 2))]
    label = f"Rank correlation of the mask's score of {name} with epistemic and aleatoric uncertainty over steps"
    return panel_svg(lines, limits, label, mark=crossing)


def _turnover_svg(name: str, curves: Sequence[Curve], index: int) -> str:
    styles = ((index, None), (index, (6, 2)), (2, (3, 1.5)), (1, (1, 1.6)))
    lines = [PanelLine(curve, colour, dashes) for curve, (colour, dashes) in zip(curves, styles, strict=True) if curve]
    return panel_svg(lines, (-0.04, 1.06), f"Turnover of the mask of {name} over steps")
