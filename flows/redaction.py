"""Take secrets out of a line before it goes into a log.

    redact("push to s3 with key abc123xyz", {"AWS_SECRET_ACCESS_KEY": "abc123xyz"})   # push to s3 with key ***

A value is a secret by the name of its variable (a word of it is KEY, TOKEN, SECRET, PASSWORD, …), or because it is the password
of a URL. A log keeps a line for years, so that too much is taken out rather than too little. Not found: a secret that a program
has changed before it printed it (other than by URL or base64 encoding), and one of fewer than six characters.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

HIDDEN = "***"
MIN_SECRET_LENGTH = 6
"""A shorter value would take letters out of every second word."""
SECRET_WORDS = frozenset(
    "KEY KEYS APIKEY TOKEN TOKENS SECRET SECRETS PASSWORD PASSWD PASS PASSPHRASE PASSCODE CREDENTIAL CREDENTIALS AUTH "
    "AUTHORIZATION SAS PAT COOKIE SIGNATURE".split()
)
URL_USER = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*(?=@)")
"""`user:password` of a URL: always hidden, whichever environment it came from."""
URL_PASSWORD = re.compile(r"://[^/\s@:]*:([^/\s@]+)@")


def redact(line: str, environ: Mapping[str, str]) -> str:
    """The line with every secret of the environment, and every user with a password in a URL, replaced by `***`."""
    for secret in find_secrets(environ):
        if secret in line:
            line = line.replace(secret, HIDDEN)
    return URL_USER.sub(HIDDEN, line) if "://" in line else line


def find_secrets(environ: Mapping[str, str]) -> list[str]:
    """The values to be hidden in all their spellings, the longest first: one may be a part of another."""
    spellings = {
        spelling for name, value in environ.items() for secret in _secrets_of(name, value) for spelling in _spell(secret)
    }
    return sorted(spellings, key=lambda spelling: (-len(spelling), spelling))


def is_secret_name(name: str) -> bool:
    return not SECRET_WORDS.isdisjoint(re.split(r"[^A-Z]+", name.upper()))


def _secrets_of(name: str, value: str) -> Iterator[str]:
    if is_secret_name(name):
        yield value
        yield from value.splitlines()  # a private key comes line by line
    yield from URL_PASSWORD.findall(value)


def _spell(secret: str) -> Iterator[str]:
    if len(secret.strip()) >= MIN_SECRET_LENGTH:
        yield from {secret, secret.strip(), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
        yield base64.b64encode(secret.encode()).decode()
