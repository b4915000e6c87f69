"""Laws of credentials out of a Prefect block: they reach the child's environment and nothing else."""

import os
import subprocess
import sys

import pytest

from components.errors import BallastError
from flows.credentials import child_environ, parse_credentials, read_credentials


def test_without_a_server_there_is_no_block_and_prefect_is_not_imported() -> None:
    code = "import sys; from flows.credentials import child_environ; child_environ(); print('prefect' in sys.modules)"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    assert subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True).stdout == "False\n"


def test_the_child_gets_the_block_s_variables_and_none_of_prefect_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "of-the-server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-worker")
    monkeypatch.setattr("flows.credentials.read_credentials", lambda: {"AWS_ACCESS_KEY_ID": "of-the-block"})
    environ = child_environ()
    assert environ["AWS_ACCESS_KEY_ID"] == "of-the-block" and "PREFECT_API_KEY" not in environ
    assert os.environ["AWS_ACCESS_KEY_ID"] == "of-the-worker"


def test_a_table_or_its_json_text_is_taken_and_nothing_else() -> None:
    assert parse_credentials({"A": "b"}) == parse_credentials('{"A": "b"}') == {"A": "b"}
    for wrong in ("sesame", "[1]", {"A": 1}, None):
        with pytest.raises(BallastError, match="secret/ballast-remote must be a table") as refused:
            parse_credentials(wrong)
        assert "sesame" not in str(refused.value)


def test_a_server_that_is_not_there_is_told_by_its_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr("prefect.blocks.system.Secret.load", lambda *_, **__: (_ for _ in ()).throw(OSError("sesame")))
    with pytest.raises(BallastError, match=r"cannot be asked for the block secret/ballast-remote \(OSError\)") as refused:
        read_credentials()
    assert "sesame" not in str(refused.value)


@pytest.mark.prefect
def test_the_block_is_read_from_a_real_server(tmp_path: object) -> None:
    code = """
from prefect.testing.utilities import prefect_test_harness
import os
with prefect_test_harness(server_startup_timeout=120):
    from prefect.settings import PREFECT_API_URL
    os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value()
    from flows.credentials import read_credentials
    from prefect.blocks.system import Secret
    print("without", read_credentials())
    Secret(value={"AWS_ACCESS_KEY_ID": "of-the-block"}).save("ballast-remote")
    print("with", read_credentials())
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ |= {"PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["without {}", "with {'AWS_ACCESS_KEY_ID': 'of-the-block'}"], done.stderr
