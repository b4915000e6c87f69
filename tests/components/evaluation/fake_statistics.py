"""The keys of a comparison that corrected statistics, a champion and a gate add, for tests of what shows them."""

from copy import deepcopy
from typing import Any

VERDICTS = ("better", "worse", "tie")
GATE_ANSWERS: list[dict[str, Any]] = [
    {
        "question": "in_domain_superiority",
        "against": "base",
        "set": None,
        "metric": "in_domain_accuracy",
        "value": 0.3,
        "low": 0.25,
        "high": 0.35,
        "margin": 0.0,
        "minimum_detectable": 0.04,
        "outcome": "met",
        "sentence": "in-domain against base: +0.300",
    },
    {
        "question": "ood_non_inferiority",
        "against": "champion",
        "set": None,
        "metric": "ood_accuracy",
        "value": -0.1,
        "low": -0.12,
        "high": -0.08,
        "margin": -0.02,
        "minimum_detectable": 0.03,
        "outcome": "missed",
        "sentence": "OOD against champion: −0.100",
    },
    {
        "question": "ood_set_non_inferiority",
        "against": "base",
        "set": "ood/copy",
        "metric": "accuracy",
        "value": None,
        "low": None,
        "high": None,
        "margin": -0.02,
        "minimum_detectable": None,
        "outcome": "undecided",
        "sentence": "ood/copy was not measured",
    },
]


def with_statistics(comparison: dict[str, Any], verdict: str = "reject") -> dict[str, Any]:
    """A copy with all of them."""
    made = deepcopy(comparison)
    methods = [name for name in made["methods"] if name != "base"]
    for found in made["differences"]:
        found |= {"p_value": 0.01, "adjusted_p_value": 0.03, "minimum_detectable": 0.04}
        found |= {"adjusted_low": found["low"] - 0.01, "adjusted_high": found["high"] + 0.01}
    made["set_differences"] = [
        {"set": name, "metric": metric, "method": method, "reference": "base", "verdict": VERDICTS[place % 3]}
        | {"value": value, "low": value - 0.05, "high": value + 0.05, "p_value": 0.2, "adjusted_p_value": 0.4}
        | {"minimum_detectable": 0.06}
        for name, value in (("ood/copy", -0.1), ("in_domain", 0.8), ("base_text", 0.02))
        for metric in ("accuracy", "nll")
        for place, method in enumerate(methods)
    ]
    made["noise_floor"] = {
        "ood_accuracy": {"between_seed_sd": 0.006, "rerun_difference": 0.017, "num_seeds": 3, "num_methods": 4},
        "in_domain_nll": {"between_seed_sd": None, "rerun_difference": None, "num_seeds": 1, "num_methods": 4},
    }
    made["reliability"] = {
        name: {"in_domain": _bins(0.9), "ood": [] if name == methods[0] else _bins(0.5)} for name in made["methods"]
    }
    made["left_out"] = {"ood/copy": {"too_long": 3}, "ood/sort": {}}
    _add_champion(made)
    made["gate"] = {
        "verdict": verdict,
        "candidate": made["candidate"]["model"],
        "answers": deepcopy(GATE_ANSWERS),
        "champion": {"name": "ballast", "version": 3},
        "exit_code": {"pass": 0, "reject": 4, "undecided": 5}[verdict],
    }
    return made


def _bins(accuracy: float) -> list[dict[str, Any]]:
    empty = {"low": 0.0, "high": 0.5, "confidence": None, "accuracy": None, "num": 0}
    return [empty, {"low": 0.5, "high": 1.0, "confidence": 0.75, "accuracy": accuracy, "num": 1234}]


def _add_champion(made: dict[str, Any]) -> None:
    champion = {"num_seeds": 1, "models": ["champion"], "metrics": deepcopy(made["methods"]["base"]["metrics"])}
    made["methods"]["champion"] = champion
    made["champion"] = {"version": "3", "name": "ballast", "metrics": champion["metrics"]}
    for row in made["sets"].values():
        row["champion"] = dict(row["base"])
    forgetting = {"mean": 1.5, "low": None, "high": None, "values": [1.5]}
    made["metric_descriptions"]["base_text_nll"] = {"unit": "nats/token", "higher_is_better": False}
    for method in made["methods"].values():
        method["metrics"]["base_text_nll"] = {**forgetting, "values": [1.5] * len(method["models"])}
