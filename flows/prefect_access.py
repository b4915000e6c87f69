"""A Prefect server with a password: what it says to who has none, as one line instead of pages of traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from components.errors import BallastError


@contextmanager
def access_errors(url: str) -> Iterator[None]:
    """Of Prefect's own client only: a stage may talk to other servers, whose refusals are theirs to explain."""
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        yield
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code not in (401, 403):
            raise
        server = urlsplit(url).netloc.rpartition("@")[2]
        raise BallastError(
            f"the Prefect server {server} refuses the call (HTTP {code}). Set PREFECT_API_AUTH_STRING to the user:password that "
            "its PREFECT_SERVER_API_AUTH_STRING says, and leave PREFECT_API_KEY unset: docs/security.md"
        ) from None
