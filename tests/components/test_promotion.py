"""Laws of promotion: there is always a champion, each move is signed, and a move made in MLflow's UI is one like any other."""

import json
import threading
from pathlib import Path

import pytest

from components import promotion
from components.errors import ParamsError, TrackingError
from components.promotion import (
    BY_HAND_WHO,
    HISTORY_TAG,
    MAX_HISTORY_CHARACTERS,
    GateRefusalError,
    note_hand_edit,
    promote,
    read_history,
    rollback,
)
from components.tracking_store import initialise_store, open_client

NAME = "ballast"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def model(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three versions: 1 and 2 have passed the gate, 3 has not."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    monkeypatch.setattr(promotion, "LOCK", tmp_path / "registry.lock")
    initialise_store()
    client = open_client()
    if client.search_registered_models(f"name = '{NAME}'"):
        client.delete_registered_model(NAME)
    client.create_registered_model(NAME)
    for verdict in ("pass", "pass", "reject"):
        tags = {"gate.verdict": verdict, "gate.reasons": json.dumps(["it forgets too much"])}
        client.create_model_version(NAME, str(tmp_path), tags=tags)


def aliases() -> tuple[int | None, int | None]:
    """Champion and previous champion."""
    found = open_client().get_registered_model(NAME).aliases
    numbers = [found.get("champion"), found.get("previous_champion")]
    champion, previous = (None if number is None else int(number) for number in numbers)
    return champion, previous


def set_in_the_ui(version: int) -> None:
    open_client().set_registered_model_alias(NAME, "champion", str(version))


def test_promotion_keeps_the_previous_champion_and_says_who_when_and_why() -> None:
    assert promote(NAME, 1, who="anna", why="the first").alias == "champion"
    assert aliases() == (1, None)
    promote(NAME, 2, who="ben", why="better on OOD")
    assert promote(NAME, 2, who="carl", why="again").entry is None
    assert aliases() == (2, 1)
    assert [(entry["what"], entry["version"], entry["previous"], entry["who"]) for entry in read_history(NAME)] == [
        ("promoted", 1, None, "anna"),
        ("promoted", 2, 1, "ben"),
    ]
    tags = open_client().get_model_version(NAME, "2").tags
    assert (tags["ballast.promoted.who"], tags["ballast.promoted.why"]) == ("ben", "better on OOD")
    assert tags["ballast.promoted.when"].endswith("+00:00")


def test_a_version_that_the_gate_rejects_is_refused_with_its_reasons_and_force_is_recorded() -> None:
    with pytest.raises(GateRefusalError, match=r"(?s)verdict: reject.*FORCE=1.*it forgets too much") as refusal:
        promote(NAME, 3, who="anna", why="I like it")
    assert refusal.value.exit_code == 4
    assert (aliases(), read_history(NAME)) == ((None, None), [])
    promote(NAME, 3, who="anna", why="I like it", force=True)
    [entry] = read_history(NAME)
    assert (entry["forced"], entry["gate"]) == (True, "reject")


def test_a_version_that_does_not_exist_changes_no_alias_and_the_error_names_those_that_do() -> None:
    promote(NAME, 1, who="anna", why="the first")
    with pytest.raises(TrackingError, match=r"version 9 of ballast.*it has 1, 2, 3"):
        promote(NAME, 9, who="anna", why="typo")
    with pytest.raises(TrackingError, match="register_model"):
        promote("nobody", 1, who="anna", why="typo")
    assert aliases() == (1, None)


@pytest.mark.parametrize(("who", "why", "missing"), [("anna", " ", "WHY"), ("", "better", "WHO")])
def test_nobody_promotes_or_rolls_back_without_a_name_and_a_reason(who: str, why: str, missing: str) -> None:
    with pytest.raises(ParamsError, match=missing):
        promote(NAME, 1, who=who, why=why)
    with pytest.raises(ParamsError, match=missing):
        rollback(NAME, who=who, why=why)


def test_rollback_swaps_and_a_second_one_swaps_back() -> None:
    with pytest.raises(TrackingError, match="no previous champion"):
        rollback(NAME, who="anna", why="nothing there")
    for version in (1, 2):
        promote(NAME, version, who="anna", why="better")
    assert rollback(NAME, who="ben", why="it forgets").version == 1
    assert aliases() == (1, 2)
    assert open_client().get_model_version(NAME, "2").tags["ballast.rolled_back.why"] == "it forgets"
    rollback(NAME, who="ben", why="it did not")
    assert aliases() == (2, 1)
    assert [entry["version"] for entry in read_history(NAME)] == [1, 2, 1, 2]


def test_an_edit_in_the_ui_is_entered_once_and_can_be_rolled_back() -> None:
    promote(NAME, 1, who="anna", why="the first")
    set_in_the_ui(3)
    entry = note_hand_edit(NAME)
    assert entry is not None and (entry["who"], entry["why"], entry["previous"]) == (BY_HAND_WHO, "alias edited by hand", 1)
    assert note_hand_edit(NAME) is None
    assert aliases() == (3, 1)
    assert rollback(NAME, who="ben", why="the gate was right").version == 1


def test_a_reason_that_was_given_in_the_ui_is_kept() -> None:
    open_client().set_model_version_tag(NAME, "2", "ballast.why", "the board wants it")
    set_in_the_ui(2)
    entry = note_hand_edit(NAME)
    assert entry is not None and entry["why"] == "the board wants it"


def test_an_edit_that_nobody_has_seen_is_entered_before_the_next_promotion_or_rollback() -> None:
    promote(NAME, 1, who="anna", why="the first")
    set_in_the_ui(3)
    promote(NAME, 2, who="ben", why="better")
    assert aliases() == (2, 3)
    set_in_the_ui(1)
    assert rollback(NAME, who="ben", why="no").version == 2
    assert [entry["what"] for entry in read_history(NAME)] == ["promoted", "edited", "promoted", "edited", "rolled_back"]


def test_an_alias_that_was_removed_is_entered_and_rollback_brings_the_champion_back() -> None:
    promote(NAME, 1, who="anna", why="the first")
    open_client().delete_registered_model_alias(NAME, "champion")
    entry = note_hand_edit(NAME)
    assert entry is not None and (entry["version"], entry["previous"]) == (None, 1)
    assert rollback(NAME, who="ben", why="come back").version == 1


def test_a_history_is_bounded_newest_last_and_rubbish_in_its_tag_counts_as_none() -> None:
    for index in range(30):
        promote(NAME, index % 2 + 1, who="anna", why=f"{index:02d} " + 1000 * "é")
    text = open_client().get_registered_model(NAME).tags[HISTORY_TAG]
    assert len(text) <= MAX_HISTORY_CHARACTERS
    assert read_history(NAME)[-1]["why"].startswith("29 ")
    open_client().set_registered_model_tag(NAME, HISTORY_TAG, "[1, {")
    assert read_history(NAME) == []
    entry = note_hand_edit(NAME)
    assert entry is not None and entry["version"] == 2


def test_promotions_at_once_leave_two_different_champions_and_never_none() -> None:
    promote(NAME, 3, who="anna", why="the first", force=True)
    threads = [threading.Thread(target=promote, args=(NAME, v), kwargs={"who": "b", "why": "w"}) for v in (1, 2)]
    for thread in threads:
        thread.start()
    num_looks = 0
    while any(thread.is_alive() for thread in threads):
        assert aliases()[0] is not None
        num_looks += 1
    assert num_looks > 0 and set(aliases()) == {1, 2}
    assert len(read_history(NAME)) == 3
