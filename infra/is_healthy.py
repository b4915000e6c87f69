"""The health check of a container: exit code 0 if the address answers with 200.

    python -m infra.is_healthy http://127.0.0.1:4200/api/health

An image without curl or wget: this is all of them that a check needs.
"""

import http.client
import sys
import urllib.error
import urllib.request

ANSWER_SECONDS = 4.0


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            return bool(answer.status == http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException):
        return False


if __name__ == "__main__":
    sys.exit(not is_healthy(sys.argv[1]))
