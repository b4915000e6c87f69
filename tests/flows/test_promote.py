"""Laws of the commands `promote` and `rollback`: a person's act has a name and a reason, and one exit code per way to fail."""

import re
import subprocess
from pathlib import Path

import pytest

from components import promotion
from components.artifacts import ROOT
from components.errors import ParamsError
from components.promotion import read_history
from components.tracking_store import initialise_store, open_client
from flows import by_hand
from flows.by_hand import name_user, run_by_hand
from flows.promote import promote
from flows.rollback import rollback


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(promotion, "LOCK", tmp_path / "registry.lock")
    initialise_store()
    client = open_client()
    client.create_registered_model("ballast")
    for verdict in ("pass", "undecided"):
        client.create_model_version("ballast", str(tmp_path), tags={"gate.verdict": verdict})


def test_a_promotion_and_its_rollback_are_signed_by_who_is_named(model: None) -> None:
    assert promote("1", "the first", "anna")["version"] == "1 (before: version none)"
    assert promote("1", "again", "anna")["version"] == "1 (it was champion already)"
    promote("2", "better", "ben", force=True)
    assert rollback("it forgets", "carl")["version"] == "1 (before: version 2)"
    assert [entry["who"] for entry in read_history("ballast")] == ["anna", "ben", "carl"]


def test_who_is_git_s_user_if_nobody_is_named(model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_hand, "_git_config", {"user.name": "Anna", "user.email": "anna@example.org"}.__getitem__)
    assert name_user() == "Anna <anna@example.org>"
    monkeypatch.setattr(by_hand, "_git_config", lambda key: "")
    monkeypatch.setattr(by_hand.getpass, "getuser", lambda: "login")
    assert name_user() == "login"


@pytest.mark.parametrize(("version", "why", "code"), [("2", "I like it", 4), ("9", "typo", 1), ("1", "", 2), ("three", "x", 2)])
def test_each_refusal_has_its_exit_code(
    version: str, why: str, code: int, model: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(SystemExit) as ended:
        run_by_hand(promote, [version], version=version, why=why, who="anna")
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith("error: ")
    assert read_history("ballast") == []


def test_make_hands_a_reason_with_quotes_to_the_command_unharmed() -> None:
    """As a variable of the environment: as text of the recipe a quote would end it."""
    words = ["make", "-n", "promote", "VERSION=3", 'WHY=it\'s "good"; exit 7', "FORCE=1"]
    recipe = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout
    assert "exit 7" not in recipe and "--force" in recipe and '--why="${WHY:-}"' in recipe


@pytest.mark.parametrize(
    ("line", "is_idle"),
    [
        ("Running stage 'follow_champion':", True),
        ("Stage 'compare' didn't change, skipping", True),
        ("Running stage 'evaluate_champion':", False),
        ("Stage 'compare' is cached - skipping run, checking out outputs", False),
    ],
)
def test_make_repro_says_nothing_to_do_when_only_the_champion_was_looked_for(line: str, is_idle: bool) -> None:
    condition = re.search(r"if (! grep -E .*); then echo 'nothing to do", (ROOT / "Makefile").read_text())
    assert condition is not None
    script = condition[1].replace("$$output", "/dev/stdin")
    assert (subprocess.run(["bash", "-o", "pipefail", "-c", script], input=f"{line}\n", text=True).returncode == 0) is is_idle


def test_a_missing_name_or_version_is_told_as_make_takes_it() -> None:
    with pytest.raises(ParamsError, match="make promote VERSION=3"):
        promote("", "x")
