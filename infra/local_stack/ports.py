"""A port that is taken is refused before anything is started: MLflow would print an error into its log and end with code 0."""

import socket
import urllib.error
import urllib.request
from contextlib import suppress

import psutil

from components.errors import BallastError

ANSWER_SECONDS = 2.0
MAX_COMMAND_LENGTH = 120
ANYWHERE = {"0.0.0.0", "::"}


def require_free(host: str, port: int, service: str, variable: str) -> None:
    """Refuse a taken port, and name who has it and how to choose another."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what has just been closed is free
        try:
            probe.bind((host, port))
            return
        except OSError as error:
            reason = error.strerror or str(error)
    owner = find_owner(port)
    raise BallastError(
        f"{service} cannot listen on {host}:{port} ({reason}); {owner or 'its owner is a process of another user'}. "
        f"End that, or choose another port: {variable}={port + 1} make up"
    )


def find_owner(port: int) -> str:
    """`pid 123 has it (its command line)`; empty if only its owner or root may know."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"pid {connection.pid} has it ({command[:MAX_COMMAND_LENGTH]})"
    return ""


def is_answering(url: str) -> bool:
    """Whether a server answers there. One that wants a password is one."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError):
        return False
