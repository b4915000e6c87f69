"""Laws of the search for secrets: each kind is found at its place, look-alikes are not, and no text makes it slow.

The keys are put together here, so that no file of the repository holds one whole.
"""

import random
import string
import time

import pytest

from components.secrets_in_text import RULES, find_secrets

LETTERS = string.ascii_letters + string.digits


def draw(num: int, seed: int = 0, alphabet: str = LETTERS) -> str:
    """Drawn characters; of letters and digits the first three are one of each kind."""
    drawn = "".join(random.Random(seed).choices(alphabet, k=num))
    return f"aB3{drawn[3:]}" if alphabet == LETTERS else drawn


UPPER, HEX = string.ascii_uppercase + string.digits, "0123456789abcdef"
PLANTED = {
    "aws_access_key_id": "AKIA" + draw(16, 1, UPPER),
    "aws_secret_access_key": "aws_secret_access_key = " + draw(40, 2),
    "github_token ghp": "ghp_" + draw(36, 3),
    "github_token fine": "github_pat_" + draw(82, 4),
    "gitlab_token": "glpat-" + draw(20, 5),
    "hugging_face_token": "hf_" + draw(34, 6),
    "openai_key old": "sk-" + draw(48, 7),
    "openai_key project": "sk-proj-" + draw(74, 8),
    "anthropic_key": "sk-ant-" + "api03-" + draw(93, 9),
    "google_api_key": "AIza" + draw(35, 10),
    "google_oauth": "GOCSPX-" + draw(28, 11),
    "slack_token": "xoxb-" + draw(12, 12, string.digits) + "-" + draw(24, 13),
    "webhook": "https://hooks.slack" + ".com/services/T0" + draw(8, 14, UPPER) + "/B0" + draw(8, 15, UPPER) + "/" + draw(24, 16),
    "stripe_key": "sk_live_" + draw(24, 17),
    "npm_token": "npm_" + draw(36, 18),
    "pypi_token": "pypi-" + draw(120, 19),
    "sendgrid_key": "SG." + draw(22, 20) + "." + draw(43, 21),
    "twilio_key": "SK" + draw(32, 22, HEX),
    "telegram_bot_token": "".join(("9", draw(8, 23, string.digits), ":AA", draw(33, 24))),
    "digitalocean_token": "dop_v1_" + draw(64, 25, HEX),
    "databricks_token": "dapi" + draw(32, 26, HEX),
    "azure_key": "AccountKey=" + draw(86, 27) + "==",
    "jwt": "eyJ" + draw(30, 28) + ".eyJ" + draw(60, 29) + "." + draw(43, 30),
    "private_key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + draw(64, 31) + "\n" + draw(64, 32),
    "private_key ssh": "-----BEGIN OPENSSH " + "PRIVATE KEY-----\n" + draw(70, 33),
    "url_with_password": "postgresql://admin:" + "tr0ub4dor" + "@db.internal:5432/main",
    "authorization": "Authorization: Bearer " + draw(40, 34),
    "password_assignment": 'password = "' + "c0rrect-h0rse" + '"',
    "password_assignment json": '{"user": "root", "password":"' + "Pa55w0rd!x" + '"}',
    "password_assignment zh": "密码：" + "qW8#zz91k",
    "key_assignment": "api_key='" + draw(32, 35) + "'",
    "key_assignment secret": "client_secret: " + draw(32, 36),
}
LOOK_ALIKES = [
    "password = getpass.getpass()",
    "password: str = Field(min_length=8)",
    'password = os.environ["DB_PASSWORD"]',
    "The password must have at least 8 characters, 1 number and 1 sign.",
    "api_key = 'YOUR_API_KEY_GOES_HERE_1234'",
    "api_key = settings.openai_api_key_v1",
    'headers = {"Authorization": "Bearer <token>"}',
    'headers = {"Authorization": f"Bearer {access_token}"}',
    "postgresql://user:password@localhost/db",
    "https://example.com:8080/path@2",
    "AKIAIOSFODNN7EXAMPLE",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "sk-learn is short for scikit-learn, and a task-oriented-dialogue-system-for-everyone is long",
    "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA",
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "hf_hub_download and hf_transfer are functions",
    "the secret of a good soup: patience",
    "a token is a word; the key idea: attention",
    "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
]


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("around", ["{}", "Use this:\n{}\nand nothing else.", "请用这个 {} 好的。"])
def test_a_planted_secret_is_found_once_with_its_kind_and_inside_its_place(name: str, around: str) -> None:
    text = around.format(PLANTED[name])
    start = text.index(PLANTED[name])
    found = find_secrets(text)
    assert [span.kind for span in found] == [name.split()[0]]
    assert start <= found[0].start < found[0].end <= start + len(PLANTED[name]) + 1


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_a_look_alike_is_no_secret(text: str) -> None:
    assert find_secrets(text) == []


def test_a_key_in_an_assignment_is_named_by_its_own_kind() -> None:
    assert [span.kind for span in find_secrets(f"OPENAI_API_KEY={PLANTED['openai_key old']}")] == ["openai_key"]


def test_all_secrets_of_a_text_are_found_in_order_of_place() -> None:
    text = "\n".join(PLANTED.values())
    found = find_secrets(text)
    assert [span.kind for span in found] == [name.split()[0] for name in PLANTED]
    assert found == sorted(found, key=lambda span: span.start)


HOSTILE = [
    *(anchor * (60_000 // len(anchor)) for rule in RULES for anchor in rule.anchors),
    *(anchor + "a" * 60_000 for rule in RULES for anchor in rule.anchors[:1]),
    "password=" * 30_000,
    "password:" + " " * 200_000,
    "api_key=" + "a1" * 100_000,
    "a://" * 60_000,
    "a://" + ":" * 200_000,
    "x" * 200_000 + "://",
    "eyJaaaaaaaa." * 20_000,
    ("eyJ" + "a" * 7000 + ".") * 30,
    "-----BEGIN A PRIVATE KEY-----" * 8000,
    "-----BEGIN PRIVATE KEY-----" + " ," * 100_000,
    "Authorization: Bearer " * 10_000,
    "aws secret key is " * 12_000,
]


def test_hostile_text_takes_linear_time() -> None:
    for text in HOSTILE:
        start = time.process_time()
        for rule in RULES:
            rule.spans(text)
        assert time.process_time() - start < 1.5, f"{text[:40]!r}: {time.process_time() - start:.1f} s for {len(text)} characters"
