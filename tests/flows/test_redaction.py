"""Laws of what is taken out of log lines."""

import base64
from urllib.parse import quote

import pytest

from flows.redaction import redact

SECRET = "pa/ss w&rd+1"
NAMES = [
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "PREFECT_API_AUTH_STRING",
    "api-key",
    "storage_sas_token",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_with_the_name_of_a_secret_is_hidden_in_every_spelling(name: str) -> None:
    for spelling in (SECRET, quote(SECRET, safe=""), base64.b64encode(SECRET.encode()).decode(), f"'{SECRET}'"):
        shown = redact(f"login with {spelling}, failed", {name: SECRET})
        assert "***" in shown and spelling not in shown
        assert shown.startswith("login with ") and shown.endswith(", failed")


def test_the_password_of_a_url_is_hidden_with_and_without_its_environment() -> None:
    assert redact("fetch https://me:pass@host/x", {}) == "fetch https://***@host/x"
    assert redact("password is hunter22", {"DATABASE_URL": "postgresql://me:hunter22@host/db"}) == "password is ***"


def test_other_values_short_ones_and_plain_urls_stay() -> None:
    environ = {"PATH": "/usr/bin/python", "MONKEY": "banana-split", "HF_TOKEN": "a", "AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}
    line = "a /usr/bin/python banana-split http://127.0.0.1:9000 s3://bucket/a@b"
    assert redact(line, environ) == line


def test_of_two_secrets_the_longer_one_goes_first_and_a_key_goes_line_by_line() -> None:
    assert redact("secret-longer", {"A_TOKEN": "secret", "B_TOKEN": "secret-longer"}) == "***"
    assert redact("second line", {"SSH_KEY": "first line\nsecond line"}) == "***"
