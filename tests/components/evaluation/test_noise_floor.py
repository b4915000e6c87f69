"""Laws of the noise floor: pooled over methods, nothing from one seed, and reruns land within it as often as it says."""

import numpy as np
import pytest
from scipy import stats

from components.evaluation.noise_floor import noise_floor


def method(*values: float) -> dict[str, object]:
    return {"metrics": {"ood_accuracy": {"values": list(values)}, "in_domain_ece": None}}


def test_spreads_are_pooled_by_degrees_of_freedom() -> None:
    found = noise_floor({"base": method(1.0), "a": method(0.1, 0.3), "b": method(0.5, 0.6, 0.7)}, 0.95)["ood_accuracy"]
    spread = np.sqrt((0.02 + 0.02) / 3)
    assert found["between_seed_sd"] == pytest.approx(spread)
    assert found["rerun_difference"] == pytest.approx(stats.t.ppf(0.975, 3) * np.sqrt(2) * spread)
    assert (found["num_seeds"], found["num_methods"]) == (3, 2)


def test_one_seed_tells_nothing() -> None:
    found = noise_floor({"base": method(1.0), "a": method(0.1)}, 0.95)["ood_accuracy"]
    assert found["between_seed_sd"] is None and found["rerun_difference"] is None


def test_two_runs_of_one_method_differ_by_less_as_often_as_the_confidence_says() -> None:
    generator = np.random.default_rng(0)
    within = []
    for _ in range(400):
        runs = generator.normal(0.5, 0.1, (5, 4))
        reach = noise_floor({str(i): method(*row[:3]) for i, row in enumerate(runs)}, 0.95)["ood_accuracy"]["rerun_difference"]
        fresh = generator.normal(0.5, 0.1, 2)
        within.append(abs(fresh[0] - fresh[1]) <= reach)
    assert np.mean(within) == pytest.approx(0.95, abs=0.025)
