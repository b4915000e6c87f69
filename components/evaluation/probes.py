"""Reading artifacts/probes/<model>.json: what training looked like at a few steps, as `post_train` leaves it.

    {"score", "select", "classes": [...], "truth": "law" | "reference" | "none", "num_rows", "num_tokens",
     "steps": [{"step", "epoch", "threshold", "selected_fraction", "entered", "left", "jaccard", "jaccard_epoch",
                "classes": {name: {...}}, "scores": {score: {"epistemic": rho, "aleatoric": rho}}, "mask": {...}, ...}],
     "examples": [{"row_id", "tokens": [{"text", "is_target"}], "classes", "teacher_nll", "steps": [{"step", "score", ...}]}],
     "warnings": [{"step", "kind", "message", "class"}]}

An objective without a mask or a teacher leaves fields out or null; here that is an empty list or a missing key, never a fault.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Probe = Mapping[str, Any]
Probes = Mapping[str, Probe]
"""Model name -> its probe."""
NO_PROBES: Probes = MappingProxyType({})


@dataclass(frozen=True)
class ExampleStep:
    """One example at one step: a number per target token, None where it was not recorded."""

    step: int
    score: list[float | None]
    student_nll: list[float | None]
    mle_weight: list[float]
    distil_weight: list[float]


@dataclass(frozen=True)
class Example:
    row_id: str
    texts: list[str]
    is_target: list[bool]
    classes: list[str]
    teacher_nll: list[float | None]
    steps: list[ExampleStep]


def probes_of(comparison: Mapping[str, Any], probes: Probes, method: str) -> list[Probe]:
    """The probes of a method's models, in the order of their seeds."""
    return [probes[model] for model in comparison["methods"][method]["models"] if model in probes]


def first_model(comparison: Mapping[str, Any], probes: Probes, method: str) -> str | None:
    return next((model for model in comparison["methods"][method]["models"] if model in probes), None)


def select_of(probe: Probe) -> str:
    """`all`, `high`, `low` or `random`; a record without it has a mask where it names a score."""
    return str(probe.get("select") or ("high" if probe.get("score") else "all"))


def score_of(probe: Probe) -> str | None:
    """The score that chooses tokens; None where none does (objectives carry one even then)."""
    return str(probe["score"]) if probe.get("score") and select_of(probe) in ("high", "low") else None


def step_lines(probe: Probe) -> list[dict[str, float]]:
    """A flat line of numbers per step: what the mask's score follows, its turnover, `class:<name>` (share of
    the class that is selected), `mask:<name>` (what the mask holds); absent where not known.

    `entered` and `left` become shares of the probed target tokens (whole numbers in the file are counts).
    """
    return [_step_line(probe, step) for step in probe.get("steps") or []]


def _step_line(probe: Probe, step: Mapping[str, Any]) -> dict[str, float]:
    followed = (step.get("scores") or {}).get(score_of(probe)) or {}
    line = {
        "step": step["step"],
        "epistemic": followed.get("epistemic"),
        "aleatoric": followed.get("aleatoric"),
        "jaccard": step.get("jaccard"),
        "jaccard_epoch": step.get("jaccard_epoch"),
        "selected_fraction": step.get("selected_fraction"),
        "entered": _share(step.get("entered"), probe.get("num_tokens")),
        "left": _share(step.get("left"), probe.get("num_tokens")),
        **{f"class:{name}": (found or {}).get("selected_fraction") for name, found in (step.get("classes") or {}).items()},
        **{f"mask:{name}": value for name, value in (step.get("mask") or {}).items()},
    }
    return {name: float(value) for name, value in line.items() if value is not None and math.isfinite(value)}


def _share(value: Any, num_tokens: int | None) -> float | None:
    if isinstance(value, int):
        return value / num_tokens if num_tokens else None
    return None if value is None else float(value)


def class_counts(probe: Probe) -> dict[str, int]:
    """Target tokens of each class among the probed rows, in the probe's order of classes."""
    counts: dict[str, int] = dict.fromkeys(probe.get("classes") or [], 0)
    for step in probe.get("steps") or []:
        for name, found in (step.get("classes") or {}).items():
            counts[name] = max(counts.get(name, 0), int((found or {}).get("num_tokens") or 0))
    return counts


def examples_of(probe: Probe) -> list[Example]:
    """The chosen examples; those without a step that was recorded are left out."""
    examples = [_example(raw) for raw in probe.get("examples") or []]
    return [example for example in examples if example.steps]


def _example(raw: Mapping[str, Any]) -> Example:
    is_target = [bool(token.get("is_target")) for token in raw.get("tokens") or []]
    size = sum(is_target)
    return Example(
        row_id=str(raw.get("row_id", "")),
        texts=[str(token.get("text", "")) for token in raw.get("tokens") or []],
        is_target=is_target,
        classes=[str(name) for name in raw.get("classes") or [""] * size],
        teacher_nll=_numbers(raw.get("teacher_nll"), size),
        steps=[_example_step(step, size) for step in raw.get("steps") or []],
    )


def _example_step(raw: Mapping[str, Any], size: int) -> ExampleStep:
    selected = raw.get("selected")
    learned = raw.get("mle_weight") or ([float(bool(one)) for one in selected] if selected else [1.0] * size)
    return ExampleStep(
        step=int(raw["step"]),
        score=_numbers(raw.get("score"), size),
        student_nll=_numbers(raw.get("student_nll"), size),
        mle_weight=[value or 0.0 for value in _numbers(learned, size)],
        distil_weight=[value or 0.0 for value in _numbers(raw.get("distil_weight"), size)],
    )


def _numbers(values: Sequence[float | None] | None, size: int) -> list[float | None]:
    """One number per target token; what is missing or not finite is None."""
    found = [*(values or [])][:size]
    padded = [*found, *[None] * (size - len(found))]
    return [float(value) if value is not None and math.isfinite(value) else None for value in padded]
