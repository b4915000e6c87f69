"""The gate: a candidate must be better in-domain, and must not lose more than a margin outside, than the base and the champion.

A question is met when the whole paired bootstrap interval lies on the good side of its margin, missed when none of it does,
and undecided otherwise. The gate passes when every question is met: an intersection-union test, whose chance of a wrong pass is
at most that of a single wrong answer, so that nothing is corrected for the number of questions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.artifacts import write_json, write_text
from components.errors import ArtifactError
from components.evaluation.gate_text import render_gate
from components.evaluation.headline import set_names
from components.evaluation.paired_items import Figure, item_scores
from components.evaluation.statistics import Difference, paired_difference
from components.params import ComparisonParams, GateMargins, RegistrationParams

EXIT_CODES = {"pass": 0, "reject": 4, "undecided": 5}
IN_DOMAIN, OOD, OOD_SET = "in_domain_superiority", "ood_non_inferiority", "ood_set_non_inferiority"
Evaluation = Mapping[str, Any]


def judge(
    candidate: Evaluation,
    base: Evaluation,
    champion: Evaluation | None,
    registration: RegistrationParams,
    comparison: ComparisonParams,
    champion_version: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluations in, verdict out: pass, reject or undecided, with every answer and the exit code.

    `champion` is its evaluation, {"absent": why} where it cannot be evaluated, or None where there is none.
    """
    answers = _answers(candidate, base, "base", registration.against_base, registration, comparison)
    if champion is not None:
        answers += _against_champion(candidate, champion, registration, comparison)
    outcomes = {answer["outcome"] for answer in answers}
    verdict = "reject" if "missed" in outcomes else "undecided" if "undecided" in outcomes else "pass"
    version = {key: champion_version[key] for key in ("name", "version")} if champion_version else None
    return {
        "verdict": verdict,
        "candidate": candidate["model"],
        "answers": answers,
        "champion": version,
        "confidence": comparison.confidence,
        "exit_code": EXIT_CODES[verdict],
    }


def judge_candidate(
    compared: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    champion: Evaluation | None,
    version: Mapping[str, Any] | None,
    registration: RegistrationParams,
    comparison: ComparisonParams,
) -> dict[str, Any]:
    """`gate` and `champion` of the comparison: the verdict on its candidate, and who the champion is, with its figures."""
    by_name = {one["model"]: one for one in evaluations}
    candidate = by_name[compared["candidate"]["model"]]
    gate = judge(candidate, by_name["base"], champion, registration, comparison, version)
    shown = compared["methods"].get("champion")
    found = (
        {"name": version["name"], "version": version["version"], "metrics": shown["metrics"] if shown else {}}
        if version
        else None
    )
    return {"gate": gate, "champion": found}


def write_gate(folder: Path, gate: Mapping[str, Any]) -> None:
    write_json(folder / "gate.json", gate)
    write_text(folder / "gate.md", render_gate(gate))


def _against_champion(
    candidate: Evaluation, champion: Evaluation, registration: RegistrationParams, comparison: ComparisonParams
) -> list[dict[str, Any]]:
    metric = f"in_domain_{registration.in_domain_metric}"
    if "absent" in champion:
        return _unmeasured(metric, "undecided", f"it cannot be compared: {champion['absent']}")
    if champion["model_fingerprint"] == candidate["model_fingerprint"]:
        return _unmeasured(metric, "met", "the candidate is the champion")
    try:
        return _answers(candidate, champion, "champion", registration.against_champion, registration, comparison)
    except (ArtifactError, KeyError) as error:
        why = str(error) if isinstance(error, ArtifactError) else f"it was not asked the set {error.args[0]}"
        return _unmeasured(metric, "undecided", why)


def _answers(
    candidate: Evaluation,
    reference: Evaluation,
    against: str,
    margins: GateMargins,
    registration: RegistrationParams,
    params: ComparisonParams,
) -> list[dict[str, Any]]:
    figure: Figure = registration.in_domain_metric
    in_domain = _measure(candidate, reference, ["in_domain"], figure, params)
    outside = set_names(candidate, "ood_accuracy")
    ood = _measure(candidate, reference, outside, "accuracy", params)
    answers = [
        _answer(IN_DOMAIN, against, f"in_domain_{figure}", None, in_domain, margins.min_in_domain_gain),
        _answer(OOD, against, "ood_accuracy", None, ood, -margins.max_ood_loss),
    ]
    if margins.max_ood_set_loss is not None:
        for name in outside:
            if item_scores([candidate], [name]):
                found = _measure(candidate, reference, [name], "accuracy", params)
                answers.append(_answer(OOD_SET, against, "accuracy", name, found, -margins.max_ood_set_loss))
    return answers


def _measure(
    candidate: Evaluation, reference: Evaluation, names: list[str], figure: Figure, params: ComparisonParams
) -> Difference:
    """Gain of the candidate: of an nll the fall."""
    first, second = (candidate, reference) if figure != "nll" else (reference, candidate)
    return paired_difference(
        item_scores([first], names, figure),
        item_scores([second], names, figure),
        num_resamples=params.num_resamples,
        confidence=params.confidence,
        seed=params.seed,
        power=params.power,
    )


def _answer(question: str, against: str, metric: str, set_name: str | None, found: Difference, margin: float) -> dict[str, Any]:
    outcome = "met" if found.low > margin else "missed" if found.high <= margin else "undecided"
    where = f"{metric} of {set_name}" if set_name else metric
    return {
        "question": question,
        "against": against,
        "set": set_name,
        "metric": metric,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "margin": margin,
        "minimum_detectable": found.minimum_detectable,
        "outcome": outcome,
        "sentence": (
            f"{where} against {against}: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}], "
            f"must be above {margin:+.3f}: {outcome}"
        ),
    }


def _unmeasured(metric: str, outcome: str, why: str) -> list[dict[str, Any]]:
    """Answers to both questions about a champion that no numbers are needed or to be had for."""
    numbers = dict.fromkeys(("value", "low", "high", "margin", "minimum_detectable"))
    return [
        {"question": question, "against": "champion", "set": None, "metric": figure, **numbers}
        | {"outcome": outcome, "sentence": f"{figure} against champion: {why}: {outcome}"}
        for question, figure in ((IN_DOMAIN, metric), (OOD, "ood_accuracy"))
    ]
