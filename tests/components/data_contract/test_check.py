"""Laws of a check: its limit may be reached and not passed, exactly; counts of blocks add up."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.artifacts import ROOT
from components.data_contract.check import Check, Empty, add_counts, at_most
from components.data_contract.raw_checks import raw_rows
from components.data_contract.tokenised_checks import prepared_rows
from components.data_params import DataContractParams, DataParams


def check(allowed: float) -> Check:
    return Check("few", "critical", "column", Empty(), "rule", "fault", "repair", allowed)


@pytest.mark.parametrize("tenths", range(11))  # 1 - 0.7 is more than 3 / 10 in floating point
def test_a_fraction_may_be_reached_but_not_passed(tenths: int) -> None:
    assert check(tenths / 10).allows(tenths * 1000, 10_000)
    assert not check(tenths / 10).allows(tenths * 1000 + 1, 10_000)


def test_nothing_of_nothing_is_allowed() -> None:
    assert check(0.0).allows(0, 0)
    assert not check(0.0).allows(1, 1_000_000)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)), min_size=1))
def test_counts_add_up_in_any_order(parts: list[dict[str, int]]) -> None:
    total: dict[str, Any] = {}
    for part in parts:
        total = add_counts(total, {"rows": sum(part.values()), "by": part})
    assert total["rows"] == sum(total["by"].values())
    assert total["by"] == {key: sum(part.get(key, 0) for part in parts) for key in total["by"]}


def test_adding_counts_leaves_its_arguments_alone() -> None:
    one, other = {"by": {"a": 1}}, {"by": {"a": 2, "b": 3}}
    assert add_counts(one, other) == {"by": {"a": 3, "b": 3}}
    assert (one, other) == ({"by": {"a": 1}}, {"by": {"a": 2, "b": 3}})


def test_a_limit_is_told_as_a_share_of_rows() -> None:
    assert at_most(0.0) == "No row"
    assert at_most(0.07) == "At most 7 % of the rows"


def test_every_check_has_a_name_of_its_own() -> None:
    limits = DataContractParams(languages=("en",))
    names = [one.name for suite in (raw_rows(limits), prepared_rows(limits, DataParams())) for one in suite.checks]
    assert len(names) == len(set(names)) > 40


def test_importing_the_contract_imports_neither_great_expectations_nor_pandas() -> None:
    modules = "check raw_checks tokenised_checks expectations contract_report data_docs quarantine".split()
    imports = ", ".join(f"components.data_contract.{name}" for name in modules)
    code = f"import sys, {imports}; sys.exit('great_expectations' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
