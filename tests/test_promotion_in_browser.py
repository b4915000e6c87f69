"""A person promotes in MLflow's own UI, in a real browser, and the pipeline honours it; methods compare side by side there.

BALLAST_SCREENSHOTS=<folder> keeps what the browser saw.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components import champion, promotion
from components.champion import fetch_champion, find_champion
from components.promotion import BY_HAND_WHO, promote, read_history, rollback
from components.tracking_store import initialise_store, open_client
from tests.components.test_champion import store_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test installs it")
pytestmark = [
    pytest.mark.mlflow_server,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: install it (Debian: apt install chromium)"),
]
NAME = "ballast"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
START_SECONDS, ELEMENT_MILLISECONDS = 60, 30_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's server on loopback, with two versions and two runs."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    places = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *places, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(uri, process, folder / "log")
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            patch.setattr(champion, "FETCHED", folder / "fetched")
            patch.setattr(promotion, "LOCK", folder / "registry.lock")
            _fill(folder)
            yield uri
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def _wait_for(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None and time.monotonic() < give_up, log.read_text()
            time.sleep(0.1)


def _fill(folder: Path) -> None:
    experiment = initialise_store()
    client = open_client()
    client.create_registered_model(NAME)
    for method, accuracy in (("sft-0", 0.61), ("gain_aware-0", 0.74)):
        run = client.create_run(experiment, run_name=method, tags={"ballast.model": method}).info.run_id
        client.log_param(run, "preset", method.partition("-")[0])
        client.log_metric(run, "ood_accuracy", accuracy)
        client.set_terminated(run)
        tags = {"gate.verdict": "pass", **{f"ballast.{key}_fingerprint": key for key in ("model", "tokenizer", "base")}}
        client.log_artifacts(run, str(store_model(folder / method)), "model")
        source = f"{client.get_run(run).info.artifact_uri}/model"
        client.create_model_version(NAME, source, run, tags=tags, description=f"`{method}`")
    promote(NAME, 1, who="anna", why="the first")


@pytest.fixture(scope="module")
def page(server: str) -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, headless=True)
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        opened.set_default_timeout(ELEMENT_MILLISECONDS)
        yield opened
        browser.close()


def keep_screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("BALLAST_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png")


def test_an_alias_set_in_the_ui_is_honoured_recorded_and_can_be_rolled_back(server: str, page: Any) -> None:
    page.goto(f"{server}/#/models/{NAME}")
    page.get_by_role("link", name="Version 2").first.click()
    page.get_by_text("Registered At").wait_for()
    page.locator("[data-component-id*='modelversionviewaliaseditor']").first.click()
    dialog = page.get_by_role("dialog").filter(has_text="alias for model version 2")
    dialog.get_by_role("combobox").click()
    page.keyboard.type("champion")
    page.keyboard.press("Enter")
    keep_screenshot(page, "alias-dialog")
    dialog.get_by_role("button", name="Save aliases").click()
    dialog.wait_for(state="hidden")
    page.goto(f"{server}/#/models/{NAME}")
    page.get_by_text("champion", exact=False).first.wait_for()
    keep_screenshot(page, "registry")

    found = find_champion(NAME)
    assert found is not None and (found["version"], found["model_fingerprint"]) == (2, "model")
    entry = read_history(NAME)[-1]
    assert (entry["what"], entry["who"], entry["version"], entry["previous"]) == ("edited", BY_HAND_WHO, 2, 1)
    assert rollback(NAME, who="ben", why="it forgets").version == 1
    assert (find_champion(NAME) or {})["version"] == 1


def test_a_champion_on_a_server_is_downloaded_once(server: str) -> None:
    found = find_champion(NAME)
    assert found is not None
    folder = fetch_champion(found)
    assert {"config.json", "model.safetensors", "tokenizer.json"} == {file.name for file in folder.iterdir() if file.is_file()}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert (fetch_champion(found) / "model.safetensors").stat().st_mtime_ns == written


def test_the_compare_view_shows_the_methods_side_by_side(server: str, page: Any) -> None:
    client = open_client()
    [experiment] = client.search_experiments(filter_string="name = 'Ballast'")
    runs = [run.info.run_id for run in client.search_runs([experiment.experiment_id])]
    listed = ",".join(f'"{run}"' for run in runs)
    page.goto(f'{server}/#/compare-runs?runs=[{listed}]&experiments=["{experiment.experiment_id}"]')
    page.get_by_text("Comparing 2 Runs").first.wait_for()
    for text in ("sft-0", "0.61"):  # the table of runs and the table of metrics are there
        page.get_by_text(text, exact=True).first.wait_for()
    page.get_by_text("0.61", exact=True).first.scroll_into_view_if_needed()
    keep_screenshot(page, "compare")
    names = row_of(page, page.get_by_text("Run Name:", exact=True).first)
    accuracies = row_of(page, page.get_by_role("link", name="ood_accuracy"))
    assert dict(zip(names, accuracies, strict=True)) == {"sft-0": "0.61", "gain_aware-0": "0.74"}


def row_of(page: Any, head: Any) -> list[str]:
    """What stands to the right of the head, on its height, from left to right: as a person reads a table."""
    top = head.bounding_box()
    texts = ("sft-0", "gain_aware-0", "0.61", "0.74")
    places = [(spot.bounding_box(), text) for text in texts for spot in page.get_by_text(text, exact=True).all()]
    row = {box["x"]: text for box, text in places if box and abs(middle(box) - middle(top)) < 8 and box["x"] > top["x"]}
    return [row[x] for x in sorted(row)]


def middle(box: dict[str, float]) -> float:
    return box["y"] + box["height"] / 2
